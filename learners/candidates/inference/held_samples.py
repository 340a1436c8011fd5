"""The outputs of many candidate networks for the same samples, as fast as the machine allows.

Images are normalised, laid out channels-last and converted once. A candidate is traced and fused
(``fusion.py``) in milliseconds; networks that ``torch.fx`` cannot trace run as they are. Which of
both is used is settled once, on the original network and its smallest slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.inference.batch_sizes import fitting
from amc_compress.learners.candidates.inference.fusion import fuse
from amc_compress.learners.candidates.inference.staged import Looks
from amc_compress.learners.numerics.layout import (
    laid_out,
    layout_name,
    layout_named,
    owned,
    set_layout,
)
from amc_compress.learners.numerics.precision import autocast, hides_in_rounding
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import (
    Inputs,
    Split,
    ask,
    count,
    device_of,
    joined,
    mapped,
    merged,
    rows,
    tensors_of,
)
from amc_compress.learners.tasks.outputs import tensors_in
from amc_compress.learners.tasks.task import Meter, Task
from amc_env.errors import TrainingDivergedError
from amc_env.validation.sentences import first_line

EVALUATION_BATCH = 125  # 100 to 500 are equally fast on ResNet-20; larger ones leave the cache


_NUMBERS_HELD = 2**20  # of outputs, before a metric sees them

LARGEST_ROUNDING = 0.1
"""How far outputs in bfloat16 may be from float32, relative to their norm, to be used."""


def channels_last(images: Tensor) -> Tensor:
    """Returns images of any dimension, 4-d ones in channels-last layout."""
    return laid_out(images)


class HeldSamples:
    """Measures networks on preloaded samples.

    Args:
        parts: Inputs and targets; those of one part have the same size.
        task: What networks are for.
        dtype: Type to compute in.
        device: Where to compute.
        batch_size: Samples per forward pass, fewer of large ones.
        fused: Whether to fuse candidates; see :func:`fusion_works`.
        layout: Of images and weights; see ``amc_compress.learners.numerics.layout``.
    """

    def __init__(
        self,
        parts: Sequence[Split],
        task: Task = CLASSIFICATION,
        *,
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int = EVALUATION_BATCH,
        fused: bool = True,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.dtype = dtype
        self.task = task
        self._layout = layout_name(layout)
        self.device = device
        self.fused = fused
        self._batches = [
            self._preloaded(inputs, targets)
            for part in parts
            for inputs, targets in _equal(part, fitting(part.inputs, batch_size))
        ]

    @property
    def layout(self) -> torch.memory_format:
        """Of images and weights."""
        return layout_named(self._layout)

    def _preloaded(self, inputs: Inputs, targets: Any) -> Split:
        def placed(tensor: Tensor) -> Tensor:
            tensor = tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            return owned(laid_out(tensor, self.layout))

        return Split(mapped(placed, inputs), mapped(lambda t: owned(t.to(self.device)), targets))

    def answer(
        self, network: nn.Module, take: Callable[[Any, Any], object], least: int | None = None
    ) -> None:
        """Runs a network on all samples.

        Where rounding to ``dtype`` would decide what a network says, it computes in float32.

        Args:
            network: In ``eval`` mode; it may be laid out anew.
            take: Called with the outputs that count, in float32, and their targets: of all
                samples at once, or of some batches at a time where outputs are large.
            least: Ends after the batch with which there are so many; with all if ``None``.

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        waiting: list[Split] = []
        numbers = 0
        with self._asked(network) as outputs_of:
            for batch in self._first(least):
                outputs = outputs_of(batch)
                waiting.append(Split(outputs, batch.targets))
                numbers += sum(tensor.numel() for tensor in tensors_of(outputs))
                if numbers > _NUMBERS_HELD:
                    self._give(waiting, take)
                    waiting, numbers = [], 0
            self._give(waiting, take)

    def measure_in_stages(self, network: nn.Module, looks: Looks) -> None:
        """Runs a network on the samples until enough is known of it.

        Args:
            network: In ``eval`` mode; it may be laid out anew.
            looks: Measures, and says when that is.

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        with self._asked(network) as outputs_of:
            for batch in self._cut(looks.ends):
                self._give([Split(outputs_of(batch), batch.targets)], looks.update)
                if looks.is_due() and looks.is_over():
                    return

    def _cut(self, ends: Sequence[int]) -> Iterator[Split]:
        """Yields batches that end where a network is looked at.

        Fused ones stay whole: their kernels are proved for one size of a batch.
        """
        seen = 0
        for batch in self._batches:
            size = count(batch.targets)
            inside = [end - seen for end in ends if seen < end < seen + size]
            seen += size
            if self.fused or not inside:
                yield batch
                continue
            for start, stop in pairwise([0, *inside, size]):
                yield rows(batch, slice(start, stop))

    @contextmanager
    def _asked(self, network: nn.Module) -> Iterator[Callable[[Split], Any]]:
        """Gives the block what returns the outputs of a batch that count, in float32."""
        exact = self.dtype == torch.bfloat16 and hides_in_rounding(network)
        dtype = torch.float32 if exact else self.dtype
        with torch.inference_mode():
            function = (
                compiled(network, dtype, self.layout) if self.fused else eager(network, self.layout)
            )
            # One context for all: it keeps the weights that it has converted.
            with autocast(dtype, self.device):

                def outputs_of(batch: Split) -> Any:
                    outputs = self.task.outputs(function(cast(batch.inputs, dtype)))
                    return rows(mapped(in_float32, outputs), slice(0, count(batch.targets)))

                yield outputs_of

    def _give(self, batches: Sequence[Split], take: Callable[[Any, Any], object]) -> None:
        """Checks and hands on the outputs and targets of batches, together where they fit."""
        with torch.autocast(self.device.type, enabled=False):
            for outputs, targets in merged(batches):
                _check_finite(outputs)
                take(outputs, targets)

    def _first(self, least: int | None) -> Iterator[Split]:
        """Yields batches until there are so many samples in them."""
        total = 0
        for batch in self._batches:
            if least is not None and total >= least:
                return
            yield batch
            total += count(batch.targets)

    def logits(self, network: nn.Module) -> Any:
        """Returns the outputs for all samples as float32, for images of shape (n, classes)."""
        found: list[Any] = []
        self.answer(network, lambda outputs, _: found.append(outputs))
        return joined(found)

    def measure(self, network: nn.Module, meter: Meter) -> None:
        """Gives a meter what a network says of all samples.

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        self.answer(network, meter.update)


def _check_finite(outputs: Any) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors_of(outputs)):
        raise TrainingDivergedError(
            "Expected finite network outputs, got NaN or infinite ones on the validation "
            "images; check the weights, or evaluate with precision='fp32'."
        )


def in_float32(tensor: Tensor) -> Tensor:
    """Returns numbers in float32, and all else as it is."""
    return tensor.float() if tensor.is_floating_point() else tensor


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Returns inputs with their numbers in a type."""
    found: Inputs = mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
    return found


def _equal(batch: Split, batch_size: int) -> list[Split]:
    """Splits samples into batches of one size; the last repeats the first images if need be.

    A kernel is proved for a batch's size: a smaller rest would have to be proved again. Only
    single tensors are repeated, and never their targets, which say how many count.
    """
    n = count(batch)
    total = max(1, -(-n // batch_size))
    size = -(-n // total)
    missing = size * total - n
    parts = [rows(batch, slice(start, start + size)) for start in range(0, n, size)] or [batch]
    inputs, targets = parts[-1]
    if missing and isinstance(inputs, Tensor):
        first = rows(batch.inputs, slice(0, missing))
        parts[-1] = Split(joined((inputs, first)), targets)
    return parts


def compiled(
    network: nn.Module, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last
) -> Callable[[Inputs], Any]:
    """Fuses a network in ``eval`` mode for inference, or returns it where that fails."""
    network.eval()
    try:
        fused: Callable[[Inputs], Any] = fuse(network, dtype)  # type: ignore[assignment]
        return fused  # of tensors: see ``fusion_works``
    except Exception:
        # The original and its smallest slice could be fused; should some slice in between be
        # different, its accuracy is worth more than the milliseconds.
        return eager(network, layout)


def fusion_works(model: nn.Module, images: Inputs, dtype: torch.dtype) -> bool:
    """Tries the fused original on a few images against the network itself.

    The structure is compared in float32, where only a wrong fusion makes a difference; in
    ``dtype`` the result has to be finite.

    Args:
        model: The original network in ``eval`` mode.
        images: A handful of real images, float32; whatever else a network takes is not fused.
        dtype: Type to compute in.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return False
    try:
        with torch.inference_mode():
            expected = model(images)
            found = fuse(model, torch.float32)(channels_last(images))
            function = fuse(model, dtype)
            with autocast(dtype, images.device):
                rounded = function(channels_last(images.to(dtype)))
    except Exception:
        # Tracing may fail in as many ways as there are networks; the eager path takes them all.
        return False
    if not all(isinstance(output, Tensor) for output in (expected, found, rounded)):
        return False
    if found.shape != expected.shape or rounded.shape != expected.shape:
        return False
    scale = expected.abs().max().clamp(min=1e-6)
    close = ((found - expected).abs() <= 1e-3 * scale).all()
    return bool(close and rounded.isfinite().all())


def settled_dtype(
    networks: Sequence[nn.Module],
    images: Inputs,
    dtype: torch.dtype,
    *,
    fused: bool,
    layout: torch.memory_format = torch.channels_last,
    told: list[str] | None = None,
) -> torch.dtype:
    """Returns ``dtype`` if networks compute in it twice the same, and near float32; else float32.

    Each kernel is proved for its shapes when it is first used. This looks at whole networks: at
    rounding that adds up, and at operators that are not proved.

    Args:
        networks: The original and narrow candidates of it: kernels for few channels fail first.
        images: A handful of real images, float32.
        dtype: What to compute in.
        fused: Whether networks are fused; see :func:`fusion_works`.
        layout: Of images and weights; see ``amc_compress.learners.numerics.layout``.
        told: Gets a sentence about what of the networks cannot compute in ``dtype``.
    """
    if dtype == torch.float32:
        return dtype
    told = [] if told is None else told
    with torch.inference_mode():
        for network in networks:
            placed = mapped(lambda tensor: laid_out(tensor, layout), images)
            exact = _numbers(eager(network, layout)(placed))
            function = compiled(network, dtype, layout) if fused else eager(network, layout)
            try:
                found = _computed_twice(function, images, dtype, layout, told)
            except Exception as error:  # whatever a forward does with numbers of another type
                told.append(f"the network cannot compute in {dtype} ({first_line(error)})")
                return torch.float32
            if found[0].shape != exact.shape:
                return torch.float32
            near = (found[0] - exact).norm() <= LARGEST_ROUNDING * exact.norm()
            if not (torch.equal(*found) and near):
                return torch.float32
    return dtype


def _computed_twice(
    function: Callable[[Inputs], Any],
    images: Inputs,
    dtype: torch.dtype,
    layout: torch.memory_format,
    told: list[str],
) -> list[Tensor]:
    """Returns the numbers of two runs; ``told`` gets what ran in float32."""
    found = []
    for _ in range(2):
        with autocast(dtype, device_of(images)) as exact:
            rounded = mapped(lambda t: laid_out(t, layout), cast(images, dtype))
            found.append(_numbers(function(rounded)))
    sentence = f"what has no kernel for {dtype} runs in float32: {', '.join(exact)}"
    if exact and sentence not in told:
        told.append(sentence)
    return found


def _numbers(outputs: Any) -> Tensor:
    """Returns all numbers of outputs in one tensor."""
    return torch.cat([tensor.float().flatten() for tensor in tensors_in(outputs)])


def eager(
    network: nn.Module, layout: torch.memory_format = torch.channels_last
) -> Callable[[Inputs], Any]:
    """Returns the network itself, in ``eval`` mode and the given layout."""
    set_layout(network, layout)
    return partial(ask, network.eval())

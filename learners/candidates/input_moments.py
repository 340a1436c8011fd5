"""Moments of every layer's inputs, from one pass over calibration images.

For a layer with unfolded inputs ``X`` (rows = sampled output positions, columns = input channel x
kernel position) all later work needs only ``G = X^T X`` and the column means. AMC fits its least
squares on 1 x 1 convolutions only; unfolding the patch makes every convolution a linear layer.

Columns that hardly vary around a large mean are shifted by it before the products: otherwise the
variance would be the difference of two large numbers, nothing but rounding (Chan, Golub and LeVeque
1983, "Algorithms for computing the sample variance").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.layers.wide_layers import MAX_COLUMNS
from amc_compress.learners.tasks.inputs import Inputs, ask, count

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_DOUBLE_UP_TO = 1024
"""Wider Gram matrices are kept in float32: half the memory, and twice the speed of a solve."""

_ROWS_PER_COLUMN = 2

_SHIFT_ABOVE = 100.0
"""Columns whose squared mean is so many times their variance are shifted: up to there float32
products, with a relative error of about 1e-7, leave five digits of the variance."""


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of a layer's unfolded inputs.

    Args:
        gram: ``(X - shift)^T (X - shift)`` per convolution group, shape (conv groups, n, n).
        sums: Column sums of ``X - shift`` per convolution group, shape (conv groups, n).
        rows: Number of sampled positions.
        shift: What was taken from the columns, shape (conv groups, n); ``None`` for nothing.
    """

    gram: Tensor
    sums: Tensor
    rows: int
    shift: Tensor | None = None

    def centred(self) -> Tensor:
        """Returns the Gram matrices of ``X`` minus its column means."""
        return self.gram - self.sums.unsqueeze(2) * self.sums.unsqueeze(1) / self.rows

    def uncentred(self) -> Tensor:
        """Returns the Gram matrices ``X^T X``."""
        if self.shift is None:
            return self.gram
        cross = self.sums.unsqueeze(2) * self.shift.unsqueeze(1)
        square = self.shift.unsqueeze(2) * self.shift.unsqueeze(1)
        return self.gram + cross + cross.transpose(1, 2) + self.rows * square

    def mean(self) -> Tensor:
        """Returns the column means of ``X``, shape (conv groups, n)."""
        mean = self.sums / self.rows
        return mean if self.shift is None else mean + self.shift


def is_convolution(module: nn.Module) -> bool:
    """Whether the module is a 1-, 2- or 3-d convolution, not a transposed one."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def patch_columns(module: nn.Module) -> int:
    """Returns the number of columns ``n`` of the unfolded input, per convolution group."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight[0].numel()


def sample_patches(
    module: Convolution, images: Tensor, positions: int, generator: torch.Generator
) -> Tensor:
    """Unfolds the input of a convolution at random output positions, drawn per image.

    Args:
        module: The convolution.
        images: Its input, shape (images, channels, *size).
        positions: Positions per image; all of them if there are fewer.
        generator: Source of the positions.

    Returns:
        Shape (conv groups, images * positions, n), columns ordered like ``weight.flatten(1)``.
    """
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(images, module._reversed_padding_repeated_twice, mode=mode)
    size = padded.shape[2:]
    outputs = [
        (length - dilation * (kernel - 1) - 1) // stride + 1
        for length, dilation, kernel, stride in zip(
            size, module.dilation, module.kernel_size, module.stride, strict=True
        )
    ]
    total = math.prod(outputs)
    n_images = images.shape[0]
    if total <= positions:
        chosen = torch.arange(total).expand(n_images, total)
    else:
        chosen = torch.rand(n_images, total, generator=generator).topk(positions, 1).indices
    flat = torch.zeros(n_images, chosen.shape[1], 1, dtype=torch.int64)
    rest = chosen
    weight = 1  # flat index of one pixel step along the current axis
    for axis in reversed(range(len(size))):
        offset = torch.arange(module.kernel_size[axis]) * module.dilation[axis]
        start = (rest % outputs[axis]) * module.stride[axis]
        rest = rest // outputs[axis]
        index = (start.unsqueeze(-1) + offset) * weight  # (images, positions, kernel of axis)
        flat = (index.unsqueeze(-1) + flat.unsqueeze(-2)).flatten(2)
        weight *= size[axis]
    columns = padded.flatten(2)
    gathered = columns.gather(
        2, flat.flatten(1).unsqueeze(1).expand(-1, columns.shape[1], -1).to(images.device)
    )
    n_positions = chosen.shape[1]
    split = gathered.reshape(n_images, module.groups, -1, n_positions, flat.shape[2])
    return split.permute(1, 0, 3, 2, 4).reshape(module.groups, n_images * n_positions, -1)


def sample_rows(inputs: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    """Samples tokens of a linear layer's input.

    Args:
        inputs: Shape (images, *tokens, features).
        positions: Tokens per image; all of them if there are fewer.
        generator: Source of the positions.

    Returns:
        Shape (1, images * positions, features).
    """
    tokens = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    n_images, n_tokens, width = tokens.shape
    if n_tokens > positions:
        chosen = torch.rand(n_images, n_tokens, generator=generator).topk(positions, 1).indices
        index = chosen.to(inputs.device).unsqueeze(-1).expand(-1, -1, width)
        tokens = tokens.gather(1, index)
    return tokens.reshape(1, -1, width)


class _Accumulator:
    """Adds up the statistics of one layer, batch by batch."""

    def __init__(self, module: nn.Module, positions: int, generator: torch.Generator) -> None:
        self.module = module
        self.positions = positions
        self.generator = generator
        self.rows = 0
        self.gram: Tensor | None = None
        self.sums: Tensor | None = None
        self.shift: Tensor | None = None

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = (args[0] if args else kwargs["input"]).detach().float()
        module = self.module
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if inputs.dim() == len(module.kernel_size) + 1:
                inputs = inputs.unsqueeze(0)
            rows = sample_patches(module, inputs, self.positions, self.generator)
        else:
            rows = sample_rows(inputs, self.positions, self.generator)
        dtype = torch.float64 if rows.shape[2] <= _DOUBLE_UP_TO else torch.float32
        if self.rows == 0:
            self.shift = _shift(rows)
        if self.shift is not None:
            rows = rows - self.shift.unsqueeze(1).to(rows.dtype)
        # Products in float32, sums over batches in float64: the error of the normal equations is
        # that of one batch, about 1e-6 of the diagonal, well under the ridge of the solve.
        gram = (rows.transpose(1, 2) @ rows).to(dtype)
        sums = rows.to(dtype).sum(1)
        self.gram = gram if self.gram is None else self.gram.add_(gram)
        self.sums = sums if self.sums is None else self.sums.add_(sums)
        self.rows += rows.shape[1]

    def result(self) -> InputStatistics | None:
        """Returns what was added up; ``None`` if the layer was never called."""
        if self.gram is None or self.sums is None:
            return None
        shift = None if self.shift is None else self.shift.to(self.sums.dtype)
        return InputStatistics(self.gram, self.sums, self.rows, shift)


def _shift(rows: Tensor) -> Tensor | None:
    """Returns the means of the columns that hardly vary around them, 0 for all others.

    Args:
        rows: Of the first batch, shape (conv groups, rows, n).

    Returns:
        Shape (conv groups, n), or ``None`` if there are no such columns.
    """
    variance, mean = torch.var_mean(rows, 1, correction=0)
    steady = mean.square() > _SHIFT_ABOVE * variance
    return torch.where(steady, mean, 0.0) if bool(steady.any()) else None


def collect_statistics(
    model: nn.Module,
    batches: Sequence[Inputs],
    layers: Iterable[str],
    *,
    seed: int = 0,
    positions: int = 10,
    max_columns: int = MAX_COLUMNS,
    report: Callable[[int], object] | None = None,
) -> dict[str, InputStatistics]:
    """Runs the original network once and returns the input statistics of its layers.

    Layers that are no convolution or linear module, are wider than ``max_columns``, or are never
    called as a module have none.

    Args:
        model: The original network, in ``eval`` mode; nothing of it changes.
        batches: Calibration images.
        layers: Qualified names of the layers wanted.
        seed: Seed of the sampled positions.
        positions: Output positions per image; more where a layer has so many columns that twice
            as many rows could not be had otherwise.
        max_columns: Widest patch to accumulate.
        report: Called with the number of images done after each batch.
    """
    n_images = sum(map(count, batches))
    modules = dict(model.named_modules())
    accumulators: dict[str, _Accumulator] = {}
    for index, name in enumerate(layers):
        module = modules.get(name)
        if module is None or not (is_convolution(module) or isinstance(module, nn.Linear)):
            continue
        columns = patch_columns(module)
        if columns > max_columns:
            continue
        wanted = max(positions, math.ceil(_ROWS_PER_COLUMN * columns / max(n_images, 1)))
        # One stream per layer: what a layer samples does not depend on which others are wanted.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        accumulators[name] = _Accumulator(module, wanted, generator)
    hooks = [
        modules[name].register_forward_pre_hook(accumulator, with_kwargs=True)
        for name, accumulator in accumulators.items()
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                ask(model, batch)
                if report is not None:
                    report(count(batch))
    finally:
        for hook in hooks:
            hook.remove()
    results = {name: accumulator.result() for name, accumulator in accumulators.items()}
    return {name: result for name, result in results.items() if result is not None}

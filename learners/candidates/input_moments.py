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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.moments.effort import USUAL, Effort
from amc_compress.learners.candidates.moments.order_of_calls import OrderOfCalls
from amc_compress.learners.candidates.moments.products import UpperHalf
from amc_compress.learners.candidates.moments.sampling import sample_rows
from amc_compress.learners.layers.products import Report, Use, watching
from amc_compress.learners.layers.weight_forms import OUTPUTS_FIRST, WeightForm
from amc_compress.learners.layers.wide_layers import MAX_COLUMNS
from amc_compress.learners.numerics.precision import autocast
from amc_compress.learners.tasks.inputs import Inputs, ask, count, mask_of, rows

_DOUBLE_UP_TO = 1024
"""Wider Gram matrices are kept in float32: half the memory, and twice the speed of a solve."""

_ROWS_PER_COLUMN = 2

_ROWS = "rows "
"""Name of a block of rows of half a matrix, before its place."""

_SHIFT_ABOVE = 100.0
"""Columns whose squared mean is so many times their variance are shifted: up to there float32
products, with a relative error of about 1e-7, leave five digits of the variance."""


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of a layer's unfolded inputs.

    Args:
        gram: ``(X - shift)^T (X - shift)`` per convolution group, shape (conv groups, n, n), or
            half of it.
        sums: Column sums of ``X - shift`` per convolution group, shape (conv groups, n).
        rows: Number of sampled positions.
        shift: What was taken from the columns, shape (conv groups, n); ``None`` for nothing.
        form: How the layer stores its weight.
        adds_bias: Whether the layer's bias is added to the product at once.
        is_output: Whether the product is all that the layer returns.
    """

    gram: Tensor | UpperHalf
    sums: Tensor
    rows: int
    shift: Tensor | None = None
    form: WeightForm = OUTPUTS_FIRST
    adds_bias: bool = True
    is_output: bool = True

    def centred(self) -> Tensor | UpperHalf:
        """Returns the Gram matrices of ``X`` minus its column means."""
        sums = self.sums

        def change(gram: Tensor, rows: slice, columns: slice) -> Tensor:
            return gram - sums[:, rows].unsqueeze(2) * sums[:, columns].unsqueeze(1) / self.rows

        return self._changed(change)

    def uncentred(self) -> Tensor | UpperHalf:
        """Returns the Gram matrices ``X^T X``."""
        if self.shift is None:
            return self.gram
        sums, shift = self.sums, self.shift

        def change(gram: Tensor, rows: slice, columns: slice) -> Tensor:
            cross = sums[:, rows].unsqueeze(2) * shift[:, columns].unsqueeze(1)
            other = shift[:, rows].unsqueeze(2) * sums[:, columns].unsqueeze(1)
            square = shift[:, rows].unsqueeze(2) * shift[:, columns].unsqueeze(1)
            return gram + cross + other + self.rows * square

        return self._changed(change)

    def numbers(self) -> dict[str, Tensor]:
        """Returns its tensors by name."""
        found = {"sums": self.sums}
        if self.shift is not None:
            found["shift"] = self.shift
        if isinstance(self.gram, Tensor):
            return {**found, "gram": self.gram}
        return {**found, **{f"{_ROWS}{i}": block for i, block in enumerate(self.gram.blocks)}}

    def without_numbers(self) -> InputStatistics:
        """Returns what it says besides its tensors."""
        empty = self.sums[:0, :0].clone()
        return replace(self, gram=empty, sums=empty, shift=None)

    def with_numbers(self, numbers: Mapping[str, Tensor]) -> InputStatistics:
        """Returns what had such tensors, see :meth:`numbers`."""
        gram: Tensor | UpperHalf
        if "gram" in numbers:
            gram = numbers["gram"]
        else:
            count = sum(name.startswith(_ROWS) for name in numbers)
            gram = UpperHalf([numbers[f"{_ROWS}{i}"] for i in range(count)])
        return replace(self, gram=gram, sums=numbers["sums"], shift=numbers.get("shift"))

    def _changed(self, change: Callable[[Tensor, slice, slice], Tensor]) -> Tensor | UpperHalf:
        if isinstance(self.gram, UpperHalf):
            return self.gram.changed(change)
        return change(self.gram, slice(None), slice(None))

    def mean(self) -> Tensor:
        """Returns the column means of ``X``, shape (conv groups, n)."""
        mean = self.sums / self.rows
        return mean if self.shift is None else mean + self.shift


class _Accumulator:
    """Adds up the statistics of one layer, call by call.

    Args:
        weight: Of the layer.
        positions: Columns of the layer -> positions per sample; 0 for a layer that is too wide.
        generator: Source of the positions.
        halves: Whether half of a wide Gram matrix is what becomes of it.
    """

    def __init__(
        self,
        weight: Tensor,
        positions: Callable[[int], int],
        generator: torch.Generator,
        *,
        halves: bool,
    ) -> None:
        self.weight = weight
        self.mask: Tensor | None = None
        """Of the tokens of the batch that is run."""

        self.positions = positions
        self.generator = generator
        self.halves = halves
        self.rows = 0
        self.gram: Tensor | UpperHalf | None = None
        self.sums: Tensor | None = None
        self.shift: Tensor | None = None
        self.form: WeightForm | None = None
        self.adds_bias = self.is_output = self.is_one_layer = True

    def __call__(self, use: Use) -> None:
        """Adds the inputs of one product."""
        form = use.product.form
        self.is_one_layer &= self.form in (None, form)
        self.form = form
        self.adds_bias &= use.adds_bias
        self.is_output &= use.is_output
        positions = self.positions(form.outputs_first(self.weight)[0].numel())
        if positions and self.is_one_layer:
            self._add(sample_rows(use.product, positions, self.generator, self.mask))

    def _add(self, rows: Tensor) -> None:
        dtype = torch.float64 if rows.shape[2] <= _DOUBLE_UP_TO else torch.float32
        if self.rows == 0:
            self.shift = _shift(rows)
        if self.shift is not None:
            rows = rows - self.shift.unsqueeze(1).to(rows.dtype)
        sums = rows.to(dtype).sum(1)
        self.sums = sums if self.sums is None else self.sums.add_(sums)
        self.rows += rows.shape[1]
        if dtype == torch.float32:
            if self.gram is None:
                self.gram = UpperHalf.zeros(rows, len(rows), rows.shape[2])
            assert isinstance(self.gram, UpperHalf)
            self.gram.add_squares(rows)  # half of the time, the same numbers
            return
        # Products in float32, sums over batches in float64: the error of the normal equations is
        # that of one batch, about 1e-6 of the diagonal, well under the ridge of the solve.
        gram = (rows.transpose(1, 2) @ rows).to(dtype)
        assert not isinstance(self.gram, UpperHalf)
        self.gram = gram if self.gram is None else self.gram.add_(gram)

    def result(self) -> InputStatistics | None:
        """Returns what was added up, and forgets it; ``None`` if nothing was."""
        gram, self.gram = self.gram, None
        if gram is None or self.sums is None or self.form is None or not self.is_one_layer:
            return None
        shift = None if self.shift is None else self.shift.to(self.sums.dtype)
        if isinstance(gram, UpperHalf) and not self.halves:
            gram = gram.whole()
        return InputStatistics(
            gram, self.sums, self.rows, shift, self.form, self.adds_bias, self.is_output
        )


def _exact(report: Report) -> Report:
    """Returns a report that computes as it says, whatever the network computes in.

    Products that are rounded to bfloat16 add up to no Gram matrix.
    """

    def told(use: Use) -> None:
        with torch.autocast(use.product.inputs.device.type, enabled=False):
            report(use)

    return told


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
    positions: int | None = None,
    max_columns: int = MAX_COLUMNS,
    effort: Effort = USUAL,
    n_images: int | None = None,
    also: Mapping[nn.Module, Report] | None = None,
    report: Callable[[int], object] | None = None,
    only: Collection[str] | None = None,
    order: OrderOfCalls | None = None,
) -> dict[str, InputStatistics]:
    """Runs the original network once and returns the input statistics of its layers.

    Layers that are no module with a ``weight``, are wider than ``max_columns``, or never multiply
    with it (but with something computed from it) have none.

    Args:
        model: The original network, in ``eval`` mode; nothing of it changes.
        batches: Calibration images.
        layers: Qualified names of the layers wanted.
        seed: Seed of the sampled positions.
        positions: Output positions per image, those of ``effort`` if not given; more where a layer
            has so many columns that twice as many rows could not be had otherwise.
        max_columns: Widest patch to accumulate.
        effort: How the moments are taken.
        n_images: In the batches; counted if not given.
        also: Other layers -> what is told of their products in the same pass.
        report: Called with the number of images done after each batch.
        only: Those of the layers to collect; all if not given. What is sampled of one does not
            depend on it.
        order: In which they ran before, so that batches are run no further than to the last one;
            written down if it is not known.
    """
    least = effort.positions if positions is None else positions
    n_images = sum(map(count, batches)) if n_images is None else n_images
    modules = dict(model.named_modules())

    def wanted(columns: int) -> int:
        if columns > max_columns:
            return 0
        return max(least, math.ceil(_ROWS_PER_COLUMN * columns / max(n_images, 1)))

    accumulators: dict[str, _Accumulator] = {}
    layers = tuple(layers)
    weights = _weights_of(modules, layers)
    for index, name in enumerate(layers):
        if name not in weights or (only is not None and name not in only):
            continue
        # One stream per layer: what a layer samples does not depend on which others are wanted.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        accumulators[name] = _Accumulator(
            weights[name], wanted, generator, halves=effort.is_limited
        )
    watched: dict[nn.Module, Report] = dict(also or {})
    watched |= {modules[name]: accumulator for name, accumulator in accumulators.items()}
    watched = {module: _exact(told) for module, told in watched.items()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    context = autocast(effort.dtype, device)
    runs = OrderOfCalls(()) if order is None else order
    with watching(watched), runs.following(model, accumulators), torch.no_grad(), context:
        for batch in batches:
            mask = mask_of(batch)
            for accumulator in accumulators.values():
                accumulator.mask = mask
            runs.run(partial(ask, model, batch))
            if report is not None:
                report(count(batch))
    results = {name: accumulator.result() for name, accumulator in accumulators.items()}
    return {name: result for name, result in results.items() if result is not None}


def _weights_of(modules: Mapping[str, nn.Module], layers: Iterable[str]) -> dict[str, Tensor]:
    """Returns layer -> weight, of the layers that are a module with one of two axes or more."""
    found = {name: getattr(modules.get(name), "weight", None) for name in layers}
    return {name: w for name, w in found.items() if isinstance(w, Tensor) and w.dim() > 1}


def most_moments(model: nn.Module, layers: Sequence[str]) -> int:
    """Returns bytes that the Gram matrices of some layers do not exceed, whatever multiplies.

    Args:
        model: The original network; it is not run.
        layers: Qualified names of the layers wanted.
    """
    modules, total = dict(model.named_modules()), 0
    for name, weight in _weights_of(modules, layers).items():
        groups = getattr(modules[name], "groups", 1)
        # Of a weight with outputs first, or with inputs first.
        of_either = weight.numel() // weight.shape[0], weight.numel() // weight.shape[1] // groups
        total += groups * max(of_either) ** 2 * 8
    return total


def sizes_of_moments(
    model: nn.Module,
    batch: Inputs,
    layers: Sequence[str],
    effort: Effort = USUAL,
    max_columns: int = MAX_COLUMNS,
) -> dict[str, int]:
    """Returns layer -> bytes of its Gram matrices, of those that multiply with their weight.

    Args:
        model: The original network, in ``eval`` mode.
        batch: Of calibration images; a few are run.
        layers: Qualified names of the layers wanted.
        effort: How the moments are taken.
        max_columns: Widest patch that there are moments of.
    """
    modules = dict(model.named_modules())
    found: dict[str, int] = {}

    def note(name: str, weight: Tensor) -> Report:
        def seen(use: Use) -> None:
            columns = use.product.form.outputs_first(weight)[0].numel()
            each = 8 if columns <= _DOUBLE_UP_TO else 2 if effort.is_limited else 4
            found[name] = use.product.groups * columns**2 * each * (columns <= max_columns)

        return seen

    watched = {
        modules[name]: note(name, weight) for name, weight in _weights_of(modules, layers).items()
    }
    with watching(watched), torch.no_grad():
        ask(model, rows(batch, slice(0, 1)))
    return found

"""Least-squares repair of a layer that lost input channels (He et al. 2017, equation 5).

With ``Y = X W^T`` of the original network, the weights on the columns ``m`` that stay solve

    min_W' ||X_m W'^T - Y||^2 + lambda ||W' - W_m||^2
    (G_mm + lambda I) W'^T = (G W^T)_m + lambda W_m^T,       G = X^T X,  lambda = ridge tr(G_mm)/n

so ``X`` is never seen again: one small Cholesky solve per layer and plan instead of a fit on tens
of thousands of rows. The ridge pulls towards the original weights, not towards zero: channels
whose inputs are always zero keep what they had. Layers with a bias are fitted with an intercept,
that is with centred ``X`` and ``Y``; so are layers with a batch norm right behind them, whose
running mean takes the intercept. ``G`` comes from the original network, so layers are repaired
independently of each other and in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.input_moments import InputStatistics
from amc_compress.learners.candidates.moments.nested import (
    Chain,
    NestedLeastSquares,
    dampings,
    factorised,
)
from amc_compress.learners.candidates.moments.products import (
    UpperHalf,
    from_upper_entries,
    upper_entries,
)
from amc_compress.learners.candidates.norms_before import NormBefore, Renormalised

RIDGE = 1e-6

_SMALL = 2**17
"""Weights up to which a copy in the type of the moments is held."""

_WIDE = 1024
"""Columns up to which every cut is fitted alone, with a ridge of its own."""


class LayerReconstruction:
    """All of one layer's repair that does not depend on the plan.

    Args:
        weight: Original weight, as the layer stores it.
        bias: Original bias, shape (outputs,), or ``None``.
        statistics: Second moments of the original inputs.
        ridge: Regularisation relative to the mean diagonal of ``G``.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        statistics: InputStatistics,
        ridge: float = RIDGE,
    ) -> None:
        self.form = statistics.form
        weight = self.form.outputs_first(weight.detach())
        self.shape = weight.shape
        self.conv_groups, _, width = statistics.gram.shape
        self.ridge = ridge
        self.kernel_size = weight[0, 0].numel()
        self.rows = statistics.rows
        self.norm: NormBefore | None = None
        """The norm over channels that it reads, which a cut takes over those that stay."""

        self.order: Tensor | None = None
        """Its inputs, those that are cut first last, where that is the same in all plans."""

        self._nests: list[NestedLeastSquares] | None = None
        self._right: list[Tensor] = []
        self.mean: Tensor | None = None
        if bias is None:
            gram = statistics.uncentred()
        else:
            gram = statistics.centred()
            self.mean = statistics.mean()
        self._gram: Tensor | UpperHalf | None = gram
        self.input_mean = statistics.mean().flatten()
        like = statistics.sums
        self.bias = None if bias is None else bias.detach().to(like)
        self._like = like.new_empty(0)
        self._width = width
        self._stored = weight
        self._weight = self._converted() if weight.numel() <= _SMALL else None
        self._target: Tensor | None = None
        self._energy: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the half of ``G`` that mirrors the other.

        Not for a process that is being started: tensors are shared with it, whole, instead of
        copied.
        """
        state, gram = dict(vars(self)), self._gram
        if isinstance(gram, Tensor) and get_spawning_popen() is None and torch.equal(gram, gram.mT):
            state["_gram"] = None
            state["half"] = upper_entries(gram)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        half = state.pop("half", None)
        if half is not None:
            gram = from_upper_entries(half, state["_width"])
            state["_gram"] = gram + gram.triu(1).mT
        vars(self).update(state)

    @property
    def weight(self) -> Tensor:
        """The original's, shape (conv groups, outputs per group, n); not to be changed.

        Of a large layer made anew each time: in float64 all of them are twice the network.
        """
        return self._converted() if self._weight is None else self._weight

    def _converted(self) -> Tensor:
        return self._stored.to(self._like).reshape(self.conv_groups, -1, self._width)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds besides the original's weight."""
        own = (self._gram, self._target, self._weight, *(self._nests or ()), *self._right)
        return sum(x.nbytes for x in own if x is not None)

    @property
    def gram(self) -> Tensor:
        """``G``, shape (conv groups, n, n); of a large network's wide layer made anew each time."""
        if self._gram is None:  # there is no memory for it besides its factor
            return torch.stack([nest.gram() for nest in self._nests or ()])
        return self._gram.whole() if isinstance(self._gram, UpperHalf) else self._gram

    @property
    def target(self) -> Tensor:
        """``X^T Y``, shape (conv groups, n, outputs per group)."""
        if self._target is not None:
            return self._target
        found = self.gram @ self.weight.transpose(1, 2)
        if isinstance(self._gram, Tensor):
            self._target = found
        return found

    @property
    def energy(self) -> float:
        """``||Y||^2`` on the sampled rows, around its mean where there is a bias."""
        if self._energy is None:
            is_half = not isinstance(self._gram, Tensor)
            if is_half and (nests := self._factored()):
                pairs = zip(nests, self._right, self.weight, strict=True)
                self._energy = sum(nest.energy(*pair) for nest, *pair in pairs)
            else:
                self._energy = (self.target * self.weight.transpose(1, 2)).sum().item()
        return self._energy

    def solve(self, inputs: Tensor, outputs: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns the repaired ``(weight, bias)`` of the sliced layer.

        Args:
            inputs: Kept coordinates of the weight's inputs, sorted.
            outputs: Kept coordinates of its outputs, sorted; all if not given.

        Returns:
            As the layer stores them.
        """
        columns = self._columns(inputs)
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for group, rows in enumerate(self._rows_per_group(outputs)):
            if rows.numel() == 0:
                continue
            if nests := self._factored():
                mean = self._means(group, columns)
                found = nests[group].solve(columns, self._right[group].index_select(1, rows))
                solved = self._before(group, columns, rows) if found is None else found
            else:
                sub, cross, mean = self._moments(group, inputs, columns)
                solved = self._solve_group(group, columns, rows, sub, cross)
            weights.append(solved.T)
            if self.bias is not None and self.mean is not None:
                per_group = self.shape[0] // self.conv_groups
                original = self.mean[group] @ self.weight[group].index_select(0, rows).T
                now = mean @ solved
                biases.append(self.bias[group * per_group + rows] + original - now)
        weight = torch.cat(weights).reshape(-1, inputs.numel(), *self.shape[2:])
        return self.form.stored(weight).float(), torch.cat(biases).float() if biases else None

    def matrix(self, weight: Tensor) -> Tensor:
        """Returns a weight as the layer stores it in the type and shape of :attr:`weight`."""
        outputs_first = self.form.outputs_first(weight).to(self._like)
        return outputs_first.reshape(self.conv_groups, -1, self._width)

    def relative_error(self, inputs: Tensor) -> float:
        """Returns ``||Y - Y'||^2 / ||Y||^2`` on the sampled rows, in [0, 1] up to rounding.

        Layers with a bias count the variation of ``Y`` around its mean only.
        """
        return self.squared_error(inputs) / self.energy if self.energy > 0.0 else 0.0

    def squared_error(self, inputs: Tensor) -> float:
        """Returns ``||Y - X_m W'^T||^2`` with the repaired weights, from ``G`` alone."""
        columns = self._columns(inputs)
        total = 0.0
        for group, rows in enumerate(self._rows_per_group(None)):
            sub, cross, _ = self._moments(group, inputs, columns)
            solved = self._solve_group(group, columns, rows, sub, cross)
            total += ((sub @ solved - 2.0 * cross) * solved).sum().item()
        return max(0.0, self.energy + total)

    def on_original(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """Returns weights that compute on the original's inputs what a layer does after the cut.

        Up to a constant.

        Args:
            weight: Of all outputs, those first: shape (outputs, inputs that stay, *kernel).
            inputs: Those that stay, sorted.
        """
        if self.norm is None:
            return weight
        flat = weight.reshape(len(weight), -1).T.to(self._like)
        return self._change(inputs).transposed(flat).T.reshape(weight.shape).to(weight)

    def _change(self, inputs: Tensor) -> Renormalised:
        """What a cut of the norm that the layer reads does to the inputs that stay."""
        assert self.norm is not None, "no norm before the layer"
        columns = self._columns(inputs)
        mean = self.input_mean.index_select(0, columns)
        gram = self.gram[0].index_select(0, columns).index_select(1, columns)
        covariance = gram / self.rows
        if self.mean is None:
            covariance = covariance - mean.outer(mean)
        return self.norm.of(inputs, self.kernel_size, (mean, covariance))

    def _moments(
        self, group: int, inputs: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ``X_m^T X_m``, ``X_m^T Y`` and the mean of ``X_m``, as the cut layer reads it."""
        sub = self.gram[group].index_select(0, columns).index_select(1, columns)
        cross = self.target[group].index_select(0, columns)
        mean = self._means(group, columns)
        if self.norm is None:
            return sub, cross, mean
        change = self._change(inputs)
        outputs = self.input_mean @ self.weight[group].T  # their mean, without the bias
        if self.mean is None:
            sub = sub - self.rows * mean.outer(mean)
            cross = cross - self.rows * mean.outer(outputs)
        sub, cross, mean = (
            change.linear(change.linear(sub).T),
            change.linear(cross),
            change.mean(mean),
        )
        if self.mean is None:
            sub = sub + self.rows * mean.outer(mean)
            cross = cross + self.rows * mean.outer(outputs)
        return sub, cross, mean

    def _solve_group(
        self, group: int, columns: Tensor, rows: Tensor, sub: Tensor, cross: Tensor
    ) -> Tensor:
        """Solves the normal equations of one convolution group."""
        right = cross.index_select(1, rows)
        before = self._before(group, columns, rows)
        if (found := factorised(sub, dampings(self.ridge, sub))) is None:
            return before
        factor, damping = found
        return torch.cholesky_solve(right + damping * before, factor)

    def _before(self, group: int, columns: Tensor, rows: Tensor) -> Tensor:
        return self.weight[group].index_select(0, rows).index_select(1, columns).T

    def _means(self, group: int, columns: Tensor) -> Tensor:
        return self.input_mean.view(self.conv_groups, -1)[group].index_select(0, columns)

    def nested_errors(self, chains: Sequence[Chain], rows: Tensor | None) -> list[Tensor] | None:
        """Returns what the repair cannot restore after each step of some chains of cuts.

        Args:
            chains: Of the inputs that are cut together, the first ones first; each chain begins
                with the whole layer.
            rows: What of the outputs counts: the squared length of ``rows @ output``, shape (any
                number, outputs); None for the outputs themselves.

        Returns:
            Per chain the sum over the sampled rows, shape (steps,), as ``moments.nested`` defines
            it; None where every cut has to be fitted alone.
        """
        if self.norm is not None:
            return None
        nests = self._factored() or self._factors()
        columns = [[self._columns(step) for step in chain] for chain in chains]
        parts = [None] * self.conv_groups if rows is None else rows.chunk(self.conv_groups, 1)
        found = []
        for nest, weight, part in zip(nests, self.weight, parts, strict=True):
            errors = nest.errors(columns, weight, part)
            if errors is None:
                return None
            found.append(errors)
        return [torch.stack(group).sum(0) for group in zip(*found, strict=True)]

    def _factors(self) -> list[NestedLeastSquares]:
        order = self._columns(torch.arange(self.shape[1]) if self.order is None else self.order)
        if not isinstance(self._gram, UpperHalf):
            return [NestedLeastSquares(gram, order, self.ridge) for gram in self.gram]
        # One whole matrix at a time, and none besides its factor.
        singles = [UpperHalf([b[i : i + 1] for b in self._gram.blocks])
                   for i in range(self.conv_groups)]  # fmt: skip
        return [NestedLeastSquares(single, order, self.ridge) for single in singles]

    def _factored(self) -> list[NestedLeastSquares]:
        """Returns the factors along the order of a wide layer, made once; none of other layers.

        They take the place of the Gram matrices. A narrow layer is solved in no time.
        """
        is_wide = self._width > _WIDE
        if self._nests is None and is_wide and self.order is not None and self.norm is None:
            made = self._factors()
            self._nests = made if all(nest.is_solved for nest in made) else []
            if self._nests:
                if isinstance(self._gram, Tensor):
                    self._energy = self.energy
                self._right = [n.right(w) for n, w in zip(made, self.weight, strict=True)]
                self._gram = self._target = None
        return self._nests or []

    def _columns(self, inputs: Tensor) -> Tensor:
        """Expands input channels to patch columns."""
        offsets = torch.arange(self.kernel_size, device=inputs.device)
        columns = (inputs.unsqueeze(1) * self.kernel_size + offsets).reshape(-1)
        return columns.to(self._like.device)

    def _rows_per_group(self, outputs: Tensor | None) -> list[Tensor]:
        """Splits kept outputs by convolution group, as indices inside the group."""
        per_group = self.shape[0] // self.conv_groups
        if outputs is None:
            outputs = torch.arange(self.shape[0])
        outputs = outputs.to(self._like.device)
        owner = outputs // per_group
        return [outputs[owner == g] - g * per_group for g in range(self.conv_groups)]


def prepare_reconstruction(
    model: nn.Module,
    statistics: Mapping[str, InputStatistics],
    with_norm: Collection[str] = (),
    ridge: float = RIDGE,
) -> dict[str, LayerReconstruction]:
    """Returns the plan-independent part of the repair for every layer with statistics.

    Args:
        model: The original network.
        statistics: Second moments by layer name.
        with_norm: Layers with a batch norm right behind them: they are fitted with an intercept
            even if they have no bias, because the batch norm's running mean can take it.
        ridge: See :class:`LayerReconstruction`.
    """
    modules = dict(model.named_modules())
    prepared = {}
    for name, moments in statistics.items():
        weight, bias = modules[name].weight, getattr(modules[name], "bias", None)
        assert isinstance(weight, Tensor)
        if not isinstance(bias, Tensor):
            outputs = moments.form.outputs_first(weight).shape[0]
            goes_to_norm = name in with_norm and moments.is_output
            bias = weight.new_zeros(outputs) if goes_to_norm else None
        elif not moments.adds_bias:
            bias = None  # what becomes of it in the layer is not known
        prepared[name] = LayerReconstruction(weight, bias, moments, ridge)
    return prepared

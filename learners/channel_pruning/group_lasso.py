"""Channel selection by group lasso: proximal gradient on the consumers' reconstruction.

The units of a channel group are read by the layers ``k = 1 .. K``. With the original inputs
``X_k`` and weights ``W0_k`` of layer ``k``, its Gram matrix ``G_k = X_k^T X_k`` and the energy
``E_k = ||X_k W0_k^T||^2`` of its output, the weights to find minimise

    f(W) = sum_k ||X_k (W0_k - W_k)^T||^2 / (2 E_k),     df/dW_k = (W_k - W0_k) G_k / E_k,    (1)

with as few units as wanted, where a unit is all weights of all consumers that read it. One step,
PocketFlow's, is a gradient step and a shrinkage of every unit ``j``:

    V = W - df/dW / L,    n_j = ||V_j||,    W_j <- V_j max(0, 1 - tau / n_j),                  (2)

with ``tau`` the percentile of ``n`` that rises from 0 to the share of units to cut. As many units
as wanted survive the last step; of equal norms those with the lower index.

``L_k = lambda_max(G_k) / E_k`` differs between consumers, so all of this happens in
``sqrt(L_k) W_k``: there (1) has the same curvature for each, the step is 1, and a consumer with
large inputs and small weights counts as much as one the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.channel_pruning.criteria import rank_units
from amc_compress.learners.channel_pruning.learner import ChannelOptions
from amc_compress.learners.channel_pruning.ranking import consumers
from amc_compress.learners.channel_pruning.selection import SolvedSelection
from amc_env.validation.checks import check_whole, checked

_EXACT_SIZE = 1024
"""Up to here all eigenvalues of a matrix take less time than a selection."""

_POWER_STEPS = 60
_STARTS = 4


@dataclass
class _Consumer:
    """One layer that reads the units, in coordinates in which its curvature is at most 1.

    Args:
        gram: ``G / lambda_max``, shape (conv groups, n, n), columns of one unit side by side.
        original: ``sqrt(L) W0``, shape (conv groups, outputs per group, n).
        weight: ``sqrt(L) W``, likewise.
        per_unit: Columns of one unit.
    """

    gram: Tensor
    original: Tensor
    weight: Tensor
    per_unit: int

    def step(self) -> Tensor:
        """Takes a gradient step; returns the squared norm of every unit's weights."""
        self.weight = self.weight - (self.weight - self.original) @ self.gram
        return self.weight.square().sum((0, 1)).reshape(-1, self.per_unit).sum(1)

    def shrink(self, factors: Tensor) -> None:
        """Scales the weights of every unit."""
        self.weight = self.weight * factors.to(self.weight).repeat_interleave(self.per_unit)


def shrunk_norms(
    layers: Sequence[tuple[LayerReconstruction, Tensor]], count: int, iterations: int
) -> Tensor | None:
    """Returns ``n`` of (2) at the last step, shape (size,); the largest ``count`` survive it.

    The last threshold lies between the norms of the units that go and of those that stay.

    Args:
        layers: The layers that read the units, each with the patch columns of every unit,
            shape (size, columns per unit).
        count: How many units are to stay.
        iterations: Proximal steps.

    Returns:
        ``None`` if no layer reads anything but zeros.
    """
    problems = [p for p in (_prepare(*given) for given in layers) if p is not None]
    if not problems:
        return None
    size = len(layers[0][1])
    norms = torch.zeros(size, dtype=torch.float64)
    for iteration in range(iterations):
        norms = sum((p.step().double().cpu() for p in problems), torch.zeros_like(norms)).sqrt()
        share = (iteration + 1) / iterations * (size - count) / size
        factors = (1.0 - torch.quantile(norms, share) / norms.clamp(min=1e-300)).clamp(min=0.0)
        for problem in problems:
            problem.shrink(factors)
    return norms


def _prepare(layer: LayerReconstruction, columns: Tensor) -> _Consumer | None:
    """Gathers what a layer reads of the units; the rest of its inputs keep their weights."""
    flat = columns.reshape(-1)
    gram = layer.gram.index_select(1, flat).index_select(2, flat)
    weight = layer.weight.index_select(2, flat)
    largest = largest_eigenvalue(gram)
    if largest <= 0.0:
        return None
    original = weight * (largest / layer.energy) ** 0.5
    return _Consumer(gram / largest, original, original, columns.shape[1])


def largest_eigenvalue(gram: Tensor) -> float:
    """Returns the largest eigenvalue of all matrices; of large ones by power iteration.

    That approaches from below, which is good enough: proximal steps converge up to twice the step
    length that the true value allows.

    Args:
        gram: Symmetric, without negative eigenvalues, shape (matrices, n, n).
    """
    if gram.shape[1] <= _EXACT_SIZE:
        return max(0.0, float(torch.linalg.eigvalsh(gram).max()))
    # A column can be orthogonal to the leading vector, where inputs are never active together;
    # random vectors are not.
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(gram.shape[1], _STARTS, generator=generator, dtype=torch.float64)
    vectors = random.to(gram).expand(len(gram), -1, -1)
    value = torch.zeros(1, dtype=gram.dtype, device=gram.device)
    for _ in range(_POWER_STEPS):
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)
        vectors = gram @ vectors
        value = vectors.norm(dim=1)
    return float(value.max())


@checked
@dataclass(frozen=True, kw_only=True)
class GroupLassoOptions(ChannelOptions):
    """What ``GroupLassoPruning`` is told; ``criterion`` ranks groups without input statistics.

    Attributes:
        iterations: Proximal steps per selection.
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("iterations", self.iterations, 1)


class GroupLassoPruning(SolvedSelection):
    """Channel pruning that selects by group lasso (PocketFlow's ``chn-pruned-gpu``).

    Yuan & Lin 2006 for the penalty; the ramped threshold is PocketFlow's. The layers behind the
    units that stay are repaired by least squares, like those of any channel pruning. The options
    are those of :class:`GroupLassoOptions`.
    """

    Options = GroupLassoOptions
    options: GroupLassoOptions

    def _solve(self, group: str, count: int) -> Tensor | None:
        layers = consumers(self.traced, self._layers, group)
        norms = shrunk_norms(layers, count, self.options.iterations)
        # Ranked rather than taken from the last shrinkage: that leaves fewer where norms are equal.
        return None if norms is None else rank_units(norms)[:count].sort().values

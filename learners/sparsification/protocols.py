"""Protocols: layer densities from one overall density, without a search.

===================  ==============================================================================
``uniform``          the same density everywhere
``heuristic``        sparsity ``min(alpha ln N_i, max_i)``: layers of many weights lose more (the
                     formula of PocketFlow, which does not clip and can empty a layer)
``global``           the largest magnitudes of the whole network stay
``normalised``       the same after dividing each layer by its root mean square
===================  ==============================================================================

Each finds its one number by bisection, so that what some layer cannot take is spread over the
others. Then every layer moves to its grid, two steps at most, so that the kept weights do not
exceed the target, and fall short of it by less than the largest step of any layer: half a percent
of its weights, rounded to whole blocks for blocks, and all but N/M of them for N:M.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc_env.errors import InfeasibleBudgetError
from amc_env.plan import CompressionPlan, Decision
from amc_env.validation.checks import check_known

Array = npt.NDArray[np.float64]

_BISECTIONS = 100
_TINY = 1e-9
_STEPS_UP = 2
"""From the grid point below: more would bend the rule of small layers to use up a few weights."""


def _uniform(sizes: Array, least: Array, total: float, _: Callable[[], list[Tensor]]) -> Array:
    return _solve(lambda x: np.clip(x * sizes, least, sizes), 0.0, 1.0, total)


def _heuristic(sizes: Array, least: Array, total: float, _: Callable[[], list[Tensor]]) -> Array:
    rates = np.log(np.maximum(sizes, 2.0))  # one weight alone has a logarithm of 0: never moved
    highest = 1.0 / rates.min()
    return _solve(
        lambda x: np.clip((1.0 - (1.0 - x) * highest * rates) * sizes, least, sizes),
        0.0, 1.0, total,
    )  # fmt: skip


def _by_threshold(
    sizes: Array, least: Array, total: float, scores: Callable[[], list[Tensor]], normalise: bool
) -> Array:
    ascending = []
    for values in scores():
        values = values.detach().double().flatten().cpu()
        scale = values.square().mean().sqrt().clamp(min=1e-30) if normalise else 1.0
        ascending.append((values / scale).sort().values.numpy())

    def kept(minus_threshold: float) -> Array:
        counts = [len(a) - np.searchsorted(a, -minus_threshold, side="left") for a in ascending]
        return np.clip(np.array(counts, dtype=np.float64), least, sizes)

    return _solve(kept, -max(a[-1] for a in ascending) - 1.0, 0.0, total)


PROTOCOLS: dict[str, Callable[[Array, Array, float, Callable[[], list[Tensor]]], Array]] = {
    "uniform": _uniform,
    "heuristic": _heuristic,
    "global": partial(_by_threshold, normalise=False),
    "normalised": partial(_by_threshold, normalise=True),
}
"""Name -> (sizes, fewest weights, target, scores per layer) -> requested numbers of weights."""


def _solve(kept: Callable[[float], Array], low: float, high: float, total: float) -> Array:
    """Returns ``kept(x)`` for the ``x`` at which its sum reaches ``total``; it rises with x.

    Where it leaps over the total (of equal magnitudes all are above a threshold, or none), every
    layer gets the same share of its leap.
    """
    if kept(high).sum() <= total:
        return kept(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if kept(middle).sum() <= total:
            low = middle
        else:
            high = middle
    below, above = kept(low), kept(high)
    share: float = (total - below.sum()) / (above.sum() - below.sum())
    return below + share * (above - below)


def plan_for(
    protocol: str,
    density: float,
    decisions: Sequence[Decision],
    dense: float,
    scores: Callable[[], list[Tensor]],
) -> CompressionPlan:
    """Returns the plan of a protocol.

    Args:
        protocol: Name in :data:`PROTOCOLS`.
        density: Share of all weights of convolutions and linear layers that may stay.
        decisions: Densities of layers.
        dense: Number of weights that no decision is about; they count as kept.
        scores: Returns magnitudes per decision, what ``Pattern.scores`` makes of the weights.

    Raises:
        InfeasibleBudgetError: If the density cannot be reached.
        ValueError: If there is no such protocol.
    """
    check_known("protocol", protocol, sorted(PROTOCOLS))
    sizes = np.array([d.size for d in decisions], dtype=np.float64)
    least = np.array([d.units(d.choices[0]) for d in decisions], dtype=np.float64)
    every = sizes.sum() + dense
    total = math.floor(density * every + _TINY) - dense if 0.0 < density <= 1.0 else -1.0
    if total < least.sum():
        raise InfeasibleBudgetError(
            f"Expected an overall density from {(least.sum() + dense) / every:.4f} (all layers at "
            f"their smallest, {dense:.0f} weights of layers that stay dense) to 1, got {density}."
        )
    return _on_grid(decisions, PROTOCOLS[protocol](sizes, least, total, scores), total)


def _on_grid(decisions: Sequence[Decision], requested: Array, total: float) -> CompressionPlan:
    """Rounds down to the grid, then spends what is left where most is missing."""
    counts = [np.array([d.units(c) for c in d.choices], dtype=np.float64) for d in decisions]
    below = [
        max(int(np.searchsorted(grid, request + _TINY, side="right")) - 1, 0)
        for grid, request in zip(counts, requested, strict=True)
    ]
    place = list(below)
    left = total - sum(grid[i] for grid, i in zip(counts, place, strict=True))

    def step(k: int) -> float:
        return float(counts[k][place[k] + 1] - counts[k][place[k]])

    def urge(k: int) -> tuple[float, float]:
        # First those below their request, the most by their own step; then the largest that fits.
        missing = requested[k] - counts[k][place[k]]
        return (missing / step(k) if missing > 0.0 else 0.0, step(k))

    while True:
        open_ = [
            k
            for k, grid in enumerate(counts)
            if place[k] + 1 < len(grid) and place[k] < below[k] + _STEPS_UP and step(k) <= left
        ]
        if not open_:
            break
        best = max(open_, key=urge)
        left -= step(best)
        place[best] += 1
    values: Mapping[str, float] = {
        d.key: d.choices[i] for d, i in zip(decisions, place, strict=True)
    }
    return CompressionPlan(values)


def check_density(name: str, value: float) -> float:
    """Returns a density.

    Raises:
        ValueError: If it is no number above 0 and at most 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < value <= 1.0:
        raise ValueError(f"Expected {name} above 0 and at most 1, got {value}.")
    return value


def scores_of(weights: Sequence[Tensor], score: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Returns the scores of every layer's weights, without gradients."""
    with torch.no_grad():
        return [score(weight) for weight in weights]

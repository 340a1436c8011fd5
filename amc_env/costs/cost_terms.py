"""A cost as a sum over decisions and pairs of decisions, read off its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Cost = Callable[[Array], float]

_EXACT = 1e-6
_N_CHECKS = 20


@dataclass(frozen=True)
class CostTerms:
    """``cost(v) = constant + sum_i single[i][a_i] + sum_ij pair[i, j][a_i, a_j]``.

    ``a_i`` is the index of decision i's choice. Multiply-adds are of this form (an input times an
    output width), bytes of bits alone, too (without any pair); bytes of channels and bits are not.

    Args:
        constant: Cost of the plan in which every decision takes its last choice.
        single: Per decision what each choice adds; 0 for the last.
        pair: What two decisions add together, for those that depend on each other.
        is_exact: Whether random plans cost what the sum says.
    """

    constant: float
    single: tuple[Array, ...]
    pair: dict[tuple[int, int], Array]
    is_exact: bool


def cost_terms(
    cost: Cost, grids: Sequence[Array], rng: np.random.Generator, tolerance: float = _EXACT
) -> CostTerms:
    """Reads the terms off a cost: differences to the plan of all last choices.

    Args:
        cost: Values of all decisions -> cost.
        grids: The choices of each decision, ascending.
        rng: Draws the plans that the result is checked on.
        tolerance: What counts as nothing, as a share of the cost of the last choices.
    """
    top = np.array([grid[-1] for grid in grids])
    constant = cost(top)

    def at(changes: dict[int, float]) -> float:
        values = top.copy()
        for i, value in changes.items():
            values[i] = value
        return cost(values) - constant

    single = tuple(np.array([at({i: c}) for c in grid]) for i, grid in enumerate(grids))
    pair: dict[tuple[int, int], Array] = {}
    for i in range(len(grids)):
        for j in range(i + 1, len(grids)):
            lowest = at({i: grids[i][0], j: grids[j][0]}) - single[i][0] - single[j][0]
            if abs(lowest) > tolerance * constant:
                both = np.array([[at({i: a, j: b}) for b in grids[j]] for a in grids[i]])
                pair[i, j] = both - single[i][:, None] - single[j][None, :]
    terms = CostTerms(constant, single, pair, is_exact=True)
    for _ in range(_N_CHECKS):
        index = [int(rng.integers(len(grid))) for grid in grids]
        true = cost(np.array([grid[k] for grid, k in zip(grids, index, strict=True)]))
        if abs(evaluate(terms, index) - true) > tolerance * constant:
            return CostTerms(constant, single, pair, is_exact=False)
    return terms


def linearised(cost: Cost, grids: Sequence[Array], index: Sequence[int]) -> CostTerms:
    """Returns the sum over decisions that is right for changes of one decision of a plan."""
    here = np.array([grid[k] for grid, k in zip(grids, index, strict=True)])
    constant = cost(here)
    single = []
    for i, grid in enumerate(grids):
        changed = np.repeat(here[None], len(grid), axis=0)
        changed[:, i] = grid
        single.append(np.array([cost(values) - constant for values in changed]))
    return CostTerms(constant, tuple(single), {}, is_exact=False)


def evaluate(terms: CostTerms, index: Sequence[int]) -> float:
    """Returns what the terms say a plan costs."""
    total = terms.constant + sum(float(s[k]) for s, k in zip(terms.single, index, strict=True))
    return total + sum(float(p[index[i], index[j]]) for (i, j), p in terms.pair.items())

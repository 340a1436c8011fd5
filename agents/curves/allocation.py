"""Allocation: from curves of single decisions to the best plan within the budget.

A multiple-choice knapsack: every decision takes one choice, damages add up, costs must stay within
their bounds. Where costs are sums over decisions and pairs of them it is solved exactly, as an
integer program by HiGHS (through SciPy); products in a cost are linearised exactly, a variable per
pair of choices (Adams & Sherali 1986). Other costs are linearised around one plan after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from amc_compress.agents.trials import AgentError
from amc_env import CompressionEnv, CompressionPlan
from amc_env.costs.cost_terms import Array, CostTerms, cost_terms, linearised

Curves = Sequence[npt.NDArray[np.float64]]
"""Per decision the damage of every choice; 0 for the last one, never rising with the choice."""

MAX_CHOICES = 24
"""Of a finer grid so many choices enter the program; the others are tried afterwards."""

_ROUNDS = 12
_GAP = 1e-4
_NODES = 20_000


def checked_curves(env: CompressionEnv, curves: Mapping[str, Any], what: str) -> Curves:
    """Returns the curves in decision order, made never to rise with the choice.

    Args:
        env: The decision problem.
        curves: Decision key -> damage of every choice.
        what: Where they come from, for the message.

    Raises:
        AgentError: If a curve is missing, is not finite, or has another length than the grid.
    """
    checked = []
    for decision in env.decisions:
        curve = np.asarray(curves.get(decision.key, ()), dtype=np.float64)
        if curve.shape != (len(decision.choices),) or not np.isfinite(curve).all():
            raise AgentError(
                f"Expected {what} to hold {len(decision.choices)} finite numbers for "
                f"{decision.key}, got {curve.tolist()}."
            )
        falling = np.maximum.accumulate(curve[::-1])[::-1]
        checked.append(falling - falling[-1])
    return checked


def allocate(env: CompressionEnv, curves: Curves) -> CompressionPlan:
    """Returns the plan with the least sum of damages that meets the budget.

    Exact up to a gap of 1e-4 where every bounded cost is a sum over decisions and pairs and no grid
    has more than :data:`MAX_CHOICES` choices.

    Args:
        env: The decision problem.
        curves: See :data:`Curves`.
    """
    grids = [np.array(d.choices) for d in env.decisions]
    subsets = [_thinned(len(grid)) for grid in grids]
    thin = [grid[s] for grid, s in zip(grids, subsets, strict=True)]
    damage = [curve[s] for curve, s in zip(curves, subsets, strict=True)]
    rng = np.random.default_rng(0)
    terms = {name: cost_terms(env.costs[name], thin, rng) for name in env.budget.bounds}
    if all(t.is_exact for t in terms.values()):
        found = _solve(env, damage, terms, {})
    else:
        found = _solve_by_rounds(env, damage, thin)
    if found is None:  # bounds so narrow that the thinned grids have no plan
        start = env.uniform_plan().values_for(env.decisions)
        index = [d.choices.index(v) for d, v in zip(env.decisions, start, strict=True)]
    else:
        index = [int(s[k]) for s, k in zip(subsets, found, strict=True)]
    return env.project([float(grids[i][k]) for i, k in enumerate(polished(env, curves, index))])


def allocate_by_threshold(env: CompressionEnv, curves: Curves) -> CompressionPlan:
    """Returns the plan in which every decision is damaged as much as any other one may be.

    The largest damage ``t`` for which the plan is within its upper bounds when every decision takes
    the smallest choice whose damage is at most ``t``, found by bisection over the damages there
    are (what NVIDIA Model-Optimizer's FastNAS and AIMET's greedy selection do).

    Args:
        env: The decision problem.
        curves: See :data:`Curves`.
    """
    grids = [np.array(d.choices) for d in env.decisions]
    levels = np.unique(np.concatenate(list(curves)))

    def index_at(level: float) -> list[int]:
        return [int(np.argmax(curve <= level)) for curve in curves]

    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _excess(env, grids, index_at(levels[middle])) == 0.0 else (
            middle + 1, high,
        )  # fmt: skip
    index = _filled(env, curves, grids, index_at(levels[low]))
    return env.project([float(grid[k]) for grid, k in zip(grids, index, strict=True)])


def polished(env: CompressionEnv, curves: Curves, index: Sequence[int]) -> list[int]:
    """Returns a plan from which no step up, paid by steps down elsewhere, lessens the damage."""
    grids = [np.array(d.choices) for d in env.decisions]
    best = _filled(env, curves, grids, index)
    damage = _damage(curves, best)
    improved = _is_met(env, grids, best)
    while improved:
        improved = False
        for i in range(len(best)):
            if best[i] + 1 >= len(grids[i]):
                continue
            for j in range(len(best)):
                candidate = _exchanged(env, grids, best, i, j)
                if candidate is None:
                    continue
                candidate = _filled(env, curves, grids, candidate)
                less = _damage(curves, candidate) < damage - 1e-12
                if less and _is_met(env, grids, candidate):
                    best, damage, improved = candidate, _damage(curves, candidate), True
                    break
    return best


def _exchanged(
    env: CompressionEnv, grids: Sequence[Array], index: Sequence[int], i: int, j: int
) -> list[int] | None:
    """One step up of decision i, as many down of j as needed; None if that is not enough."""
    if i == j:
        return None
    candidate = [*index]
    candidate[i] += 1
    while _excess(env, grids, candidate) > 0.0:
        if candidate[j] == 0:
            return None
        candidate[j] -= 1
    return candidate


def _filled(
    env: CompressionEnv, curves: Curves, grids: Sequence[Array], index: Sequence[int]
) -> list[int]:
    """Spends the remaining budget greedily on the steps that reduce the damage most."""
    filled = [*index]
    open_ = [i for i, grid in enumerate(grids) if filled[i] + 1 < len(grid)]
    while open_:
        i = max(open_, key=lambda k: (curves[k][filled[k]] - curves[k][filled[k] + 1], -k))
        filled[i] += 1
        if _excess(env, grids, filled) > 0.0:
            filled[i] -= 1
            open_.remove(i)
        elif filled[i] + 1 == len(grids[i]):
            open_.remove(i)
    return filled


def _damage(curves: Curves, index: Sequence[int]) -> float:
    return float(sum(curve[k] for curve, k in zip(curves, index, strict=True)))


def _excess(env: CompressionEnv, grids: Sequence[Array], index: Sequence[int]) -> float:
    """The largest share by which an upper bound is broken, 0 if none is."""
    values = np.array([grid[k] for grid, k in zip(grids, index, strict=True)])
    return max(
        0.0,
        *(
            env.costs[name](values) / (upper * env.original_cost[name]) - 1.0
            for name, (_, upper) in env.budget.bounds.items()
        ),
    )


def _is_met(env: CompressionEnv, grids: Sequence[Array], index: Sequence[int]) -> bool:
    """Whether lower bounds hold, too."""
    values = np.array([grid[k] for grid, k in zip(grids, index, strict=True)])
    return all(
        lower <= env.costs[name](values) / env.original_cost[name] <= upper
        for name, (lower, upper) in env.budget.bounds.items()
    )


def _thinned(n: int) -> npt.NDArray[np.int64]:
    """Indices of the choices that enter the program, the ends among them."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_CHOICES)).round().astype(np.int64))


def _solve_by_rounds(
    env: CompressionEnv, damage: Sequence[Array], grids: Sequence[Array]
) -> list[int] | None:
    """Solves with costs that are right around the last plan; keeps the best that fits.

    A plan that turns out too expensive tightens the bound of the next round by as much.
    """
    index = [len(grid) // 2 for grid in grids]
    best: list[int] | None = None
    scale = 1.0
    for _ in range(_ROUNDS):
        terms = {name: linearised(env.costs[name], grids, index) for name in env.budget.bounds}
        found = _solve(env, damage, terms, dict.fromkeys(terms, scale))
        if found is None or found == index:
            break
        index = found
        excess = _excess(env, grids, index)
        if excess > 0.0:
            scale = max(0.5, scale / (1.0 + excess))
            continue
        if best is None or _damage(damage, index) < _damage(damage, best):
            best = index
        scale = min(1.0, scale * 1.02)
    return best


@dataclass(frozen=True)
class _Variables:
    """Where the variables of each decision and pair begin, and how many there are."""

    single: list[int]
    pair: dict[tuple[int, int], int]
    count: int


def _number(damage: Sequence[Array], terms: Mapping[str, CostTerms]) -> _Variables:
    starts, count = [], 0
    for curve in damage:
        starts.append(count)
        count += len(curve)
    pairs: dict[tuple[int, int], int] = {}
    for key in sorted({key for t in terms.values() for key in t.pair}):
        pairs[key] = count
        count += len(damage[key[0]]) * len(damage[key[1]])
    return _Variables(starts, pairs, count)


def _solve(
    env: CompressionEnv,
    damage: Sequence[Array],
    terms: Mapping[str, CostTerms],
    scale: Mapping[str, float],
) -> list[int] | None:
    """Returns the index of every decision's choice; None if no plan fits."""
    names = _number(damage, terms)
    objective = np.zeros(names.count)
    for start, curve in zip(names.single, damage, strict=True):
        objective[start : start + len(curve)] = curve
    n_choices = names.single[-1] + len(damage[-1])
    integrality = np.zeros(names.count)
    integrality[:n_choices] = 1
    solution = milp(
        objective,
        constraints=[_one_choice_each(damage, names), *_within_bounds(env, terms, names, scale)],
        bounds=Bounds(0.0, 1.0),
        integrality=integrality,
        options={"mip_rel_gap": _GAP, "node_limit": _NODES},
    )
    if solution.x is None:
        return None
    return [
        int(np.argmax(solution.x[start : start + len(curve)]))
        for start, curve in zip(names.single, damage, strict=True)
    ]


def _one_choice_each(damage: Sequence[Array], names: _Variables) -> LinearConstraint:
    """One choice per decision; the products of a pair add up to the choices of both."""
    rows: list[tuple[int, int, float]] = []
    right: list[float] = []
    for start, curve in zip(names.single, damage, strict=True):
        rows += [(len(right), start + k, 1.0) for k in range(len(curve))]
        right.append(1.0)
    for (i, j), start in names.pair.items():
        n, m = len(damage[i]), len(damage[j])
        for a in range(n):
            rows += [(len(right), start + a * m + b, 1.0) for b in range(m)]
            rows.append((len(right), names.single[i] + a, -1.0))
            right.append(0.0)
        for b in range(m):
            rows += [(len(right), start + a * m + b, 1.0) for a in range(n)]
            rows.append((len(right), names.single[j] + b, -1.0))
            right.append(0.0)
    row, column, value = zip(*rows, strict=True)
    matrix = coo_array((value, (row, column)), shape=(len(right), names.count)).tocsr()
    return LinearConstraint(matrix, right, right)


def _within_bounds(
    env: CompressionEnv,
    terms: Mapping[str, CostTerms],
    names: _Variables,
    scale: Mapping[str, float],
) -> list[LinearConstraint]:
    constraints = []
    for name, t in terms.items():
        row = np.zeros(names.count)
        for start, added in zip(names.single, t.single, strict=True):
            row[start : start + len(added)] = added
        for key, both in t.pair.items():
            row[names.pair[key] : names.pair[key] + both.size] = both.ravel()
        lower, upper = (x * env.original_cost[name] for x in env.budget.bounds[name])
        # In units of the original cost: solvers like numbers around 1.
        unit = env.original_cost[name]
        constraints.append(
            LinearConstraint(
                row[None] / unit,
                (lower - t.constant) / unit,
                (upper * scale.get(name, 1.0) - t.constant) / unit,
            )
        )
    return constraints

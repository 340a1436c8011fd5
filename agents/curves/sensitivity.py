"""Sensitivity agents: measure each decision alone, then solve for the plan."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.curves.allocation import Curves, allocate, allocate_by_threshold
from amc_compress.agents.curves.prior import read_curves
from amc_compress.agents.rollout import Search
from amc_compress.agents.trials import AgentError, Trial
from amc_env import CompressionEnv, CompressionPlan
from amc_env.plan import CURVES
from amc_env.scores.metric import relative_loss

ALLOCATIONS = ("knapsack", "threshold")
SENSITIVITIES = ("score", *CURVES)
_OLD_NAME = "accuracy"  # of "score"

_WORST = 0.01
"""Share of the best score (of the original one, where that is unknown) that counts as nothing."""


class Sensitivity(Agent):
    """Curves of single decisions, once; then the exact plan of least damage.

    With ``curves="score"`` the damage of a choice is ``log(original score / score)`` of the network
    in which nothing else is changed; the relative loss, where scores are negative. These
    evaluations are counted like all others;
    where there are not enough of them for all choices, some are evaluated and the rest
    interpolated, monotonically. The other curves cost no evaluation: ``"layer_errors"`` are the
    errors of the layers' outputs, ``"gradient_scores"`` second-order estimates of the loss (both
    are the learner's). The uniform plan is evaluated as well, so the result is never below it.

    Args:
        curves: Name in :data:`SENSITIVITIES`.
        allocation: ``"knapsack"``: the least sum of damages; ``"threshold"``: the same largest
            damage everywhere.
        points: Evaluations per decision, at most.
        finalists: See :class:`Agent`.

    Raises:
        ValueError: If an option has no such value.
    """

    name = "sensitivity"
    deterministic: ClassVar[bool] = True

    def __init__(
        self,
        *,
        curves: str = "score",
        allocation: str = "knapsack",
        points: int = 8,
        finalists: int = DEFAULT_FINALISTS,
    ) -> None:
        super().__init__(finalists=finalists)
        curves = "score" if curves == _OLD_NAME else curves
        if curves not in SENSITIVITIES:
            raise ValueError(f"Expected curves to be one of {SENSITIVITIES}, got {curves!r}.")
        if allocation not in ALLOCATIONS:
            raise ValueError(f"Expected allocation to be one of {ALLOCATIONS}, got {allocation!r}.")
        if points < 1:
            raise ValueError(f"Expected points >= 1, got {points}.")
        self.curves = curves
        self.allocation = allocation
        self.points = points

    def run(self, search: Search) -> None:  # noqa: D102
        uniform = search.env.uniform_plan()
        search.submit_uniform()  # the probes need not wait for it
        search.wait_for_room()
        measured = self.curves == "score"
        if measured and search.remaining < search.env.n_decisions + 1:
            search.results()
            return  # not one evaluation for every decision: the uniform plan is all there is
        curves = self._probe(search) if measured else _curves_of(search.env, self.curves)
        decide = allocate if self.allocation == "knapsack" else allocate_by_threshold
        plan = decide(search.env, curves)
        if plan != uniform and search.remaining:
            search.submit(plan, self.name)
        search.results()

    def _probe(self, search: Search) -> Curves:
        """Evaluates some choices of each decision, all else whole; none depends on another."""
        env = search.env
        share = (search.remaining - 1) // env.n_decisions
        whole = [d.choices[-1] for d in env.decisions]
        chosen = [spread(len(d.choices) - 1, min(share, self.points)) for d in env.decisions]
        before = len(search.pending)
        trials: list[Trial] = []
        for i, decision in enumerate(env.decisions):
            for k in chosen[i]:
                values = [*whole[:i], decision.choices[k], *whole[i + 1 :]]
                trials += search.wait_for_room()
                search.submit(
                    CompressionPlan.from_values(env.decisions, values), "probe", probe=True
                )
        trials += search.results()
        damages = iter([_damage(env, trial.score) for trial in trials[before:]])
        return [
            interpolated(indices, [next(damages) for _ in indices], len(decision.choices))
            for indices, decision in zip(chosen, env.decisions, strict=True)
        ]


def _damage(env: CompressionEnv, score: float) -> float:
    """What a plan loses; sums of it over decisions predict the loss of all of them."""
    original = env.original_score
    whole = env.metric.best_score or original
    if original >= 0.0 and whole > 0.0:
        worst = _WORST * whole
        return math.log(max(original, worst) / max(score, worst))
    return relative_loss(original, score)


def spread(n: int, count: int) -> list[int]:
    """``count`` of the first ``n`` indices, evenly, the first one among them."""
    count = min(count, n)
    return [k * n // count for k in range(count)]


def interpolated(indices: list[int], damages: list[float], n: int) -> npt.NDArray[np.float64]:
    """Returns a damage for each of ``n`` choices that never rises with the choice; 0 for the last.

    Evaluations are noisy: isotonic regression makes those that are there monotone, and a monotone
    cubic (Fritsch & Carlson 1980) fills in between.

    Args:
        indices: Which choices were evaluated, ascending, without the last.
        damages: Their damages.
        n: How many choices there are.
    """
    from sklearn.isotonic import IsotonicRegression

    x = np.array([*indices, n - 1], dtype=float)
    y = np.array([*(max(0.0, d) for d in damages), 0.0])
    if len(x) == 1:
        return np.zeros(n)
    falling = IsotonicRegression(increasing=False).fit(x, y).predict(x)
    falling -= falling[-1]
    curve: npt.NDArray[np.float64] = PchipInterpolator(x, falling)(np.arange(n))
    return curve


def _curves_of(env: CompressionEnv, name: str) -> Curves:
    curves = read_curves(env, name)
    if curves is None:
        raise AgentError(
            f"Expected a learner with {name}(), which {type(env.learner).__name__} has not; take "
            f'curves="score", or another agent.'
        )
    return curves


class SensitivityThreshold(Sensitivity):
    """Sensitivity and bisection: the same largest damage for every decision."""

    name = "sensitivity-threshold"

    def __init__(self, *, allocation: str = "threshold", **options: object) -> None:
        super().__init__(allocation=allocation, **options)  # type: ignore[arg-type]


class GradientScores(Sensitivity):
    """Gradient scores and integer programming: seconds, and two evaluations."""

    name = "gradient"

    def __init__(self, *, curves: str = "gradient_scores", **options: object) -> None:
        super().__init__(curves=curves, **options)  # type: ignore[arg-type]


class LayerErrors(Sensitivity):
    """Errors of the layers' outputs and integer programming: seconds, and two evaluations."""

    name = "layer-errors"

    def __init__(self, *, curves: str = "layer_errors", **options: object) -> None:
        super().__init__(curves=curves, **options)  # type: ignore[arg-type]

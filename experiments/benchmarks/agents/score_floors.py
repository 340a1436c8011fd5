"""Ways to the cheapest plan within a drop of the score, on recorded tasks.

Prints the cost found (mean of the seeds), evaluations and processor seconds of each way, as in
``docs/goals.md``. Recorded tasks answer from a surrogate, so that evaluations are free. Example::

    python -m amc_compress.benchmarks.agents.score_floors --seeds 3 --evaluations 100
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from amc_compress.agents import agent_from_label
from amc_compress.agents.floors.cheapest import DESCENT, FloorSearch
from amc_compress.benchmarks.bench import start
from amc_env import Budget, CompressionEnv, Result
from amc_env.recorded_tasks.recorded import make_recorded


@dataclass(frozen=True)
class Goal:
    """A recorded task, with what is allowed and what is minimized.

    Args:
        task: Its name.
        cost: To be made small.
        drop: Of the score.
    """

    task: str
    cost: str
    drop: float

    def __str__(self) -> str:
        return f"{self.task}, {self.cost}, {100 * self.drop:g} points"


GOALS = (
    Goal("digits-channels", "macs", 0.02),
    Goal("digits-channels", "macs", 0.05),
    Goal("resnet20-channels", "macs", 0.05),
    Goal("resnet20-channels", "macs", 0.10),
    Goal("resnet20-bits", "mean_bits", 0.01),
    Goal("resnet20-bits", "mean_bits", 0.03),
    Goal("resnet20-joint", "bytes", 0.05),
)

Way = Callable[[CompressionEnv, Goal, float, int, int], tuple[float, int]]
"""Environment, goal, least score, evaluations and seed -> cost and evaluations used."""


def by_levels(label: str, descent: float) -> Way:
    """Returns the bisection with an agent, a share of the evaluations left to the descent."""

    def way(
        env: CompressionEnv, goal: Goal, floor: float, evaluations: int, seed: int
    ) -> tuple[float, int]:
        found = FloorSearch(
            env, lambda: agent_from_label(label)[0], evaluations, seed,
            floor=floor, cost=goal.cost, descent=descent,
        ).run()  # fmt: skip
        return env.cost_ratio(found.plan)[goal.cost], len(found.trials)

    return way


def by_constraint(label: str) -> Way:
    """Returns one search with a reward that is the saving, and below the floor what is missing."""

    def way(
        env: CompressionEnv, goal: Goal, floor: float, evaluations: int, seed: int
    ) -> tuple[float, int]:
        def reward(result: Result) -> float:
            if result.score >= floor:
                return 1.0 - result.cost_ratio[goal.cost]
            return result.score - floor

        constrained = CompressionEnv(env.learner, env.budget, reward=reward, action="absolute")
        label_of = label.replace("COST", goal.cost)
        trials = agent_from_label(label_of)[0].search(constrained, evaluations, seed).trials
        kept = [t.cost_ratio[goal.cost] for t in trials if t.score >= floor]
        return min(kept, default=1.0), len(trials)

    return way


WAYS: dict[str, Way] = {
    "constraint, nsga2": by_constraint("nsga2:objectives=COST"),
    "constraint, tpe": by_constraint("tpe:objectives=COST"),
    "bisection, local": by_levels("local", 0.0),
    "bisection, tpe": by_levels("tpe", 0.0),
    "bisection, ddpg-one-shot": by_levels("ddpg-one-shot", 0.0),
    "descent": by_levels("local", 1.0),
    "bisection, then 70% descent": by_levels("local", 0.7),
    f"bisection, ddpg-one-shot, then {DESCENT:.0%} descent": by_levels("ddpg-one-shot", DESCENT),
}


def row(goal: Goal, name: str, evaluations: int, seeds: Sequence[int]) -> str:
    """Returns the line of one way on one goal."""
    costs, used = [], []
    started = time.process_time()
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # budgets leave what was recorded, for all alike
            env = make_recorded(goal.task, Budget(**{goal.cost: 1.0}))
        floor = env.learner.original_score - goal.drop
        cost, count = WAYS[name](env, goal, floor, evaluations, seed)
        costs.append(cost)
        used.append(count)
    seconds = (time.process_time() - started) / len(seeds)
    return (
        f"| {goal} | {name} | {np.mean(costs):.3f} ({min(costs):.3f} to {max(costs):.3f}) | "
        f"{np.mean(used):.0f} | {seconds:.1f} |"
    )


def main(
    evaluations: Annotated[int, typer.Option(help="Of each search, at most.")] = 100,
    seeds: Annotated[int, typer.Option(help="Searches of each way.")] = 3,
    only: Annotated[str, typer.Option(help="Goals that begin so.")] = "",
    ways: Annotated[str, typer.Option(help="Ways that begin so.")] = "",
) -> None:
    """Prints the table."""
    print("| goal | way | cost | evaluations | CPU s |\n|---|---|---|---|---|")
    for goal in (g for g in GOALS if str(g).startswith(only)):
        for name in (w for w in WAYS if w.startswith(ways)):
            print(row(goal, name, evaluations, range(seeds)), flush=True)


if __name__ == "__main__":
    start(main)

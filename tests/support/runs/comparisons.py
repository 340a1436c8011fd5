"""Results of comparisons that never took place, for the tests of what reads them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from amc_compress.comparison.records import (
    EvaluatedPlan,
    FinalEvaluation,
    Results,
    SearchRecord,
    TaskFacts,
)

CHOICES = (0.25, 0.5, 0.75, 1.0)
UNIFORM_REWARD = 0.6


def facts(name: str, uniform_reward: float = UNIFORM_REWARD, recorded: bool = False) -> TaskFacts:
    return TaskFacts(
        name=name,
        decisions=("keep/a", "keep/b"),
        choices=(CHOICES, CHOICES),
        budget="macs=0.5",
        original_score=0.9,
        uniform_reward=uniform_reward,
        recorded=recorded,
    )


def trial(
    evaluation: int, reward: float, agent_seconds: float = 0.1, judge_seconds: float = 0.5
) -> EvaluatedPlan:
    return EvaluatedPlan(
        evaluation=evaluation,
        plan=(evaluation % 4, evaluation // 4 % 4),
        score=min(1.0, max(0.0, reward)),
        reward=reward,
        cost_ratio={"macs": 0.5},
        agent_seconds=agent_seconds,
        judge_seconds=judge_seconds,
        source="policy",
    )


def search(
    task: str,
    agent: str,
    seed: int,
    rewards: Sequence[float],
    *,
    evaluations: int | None = None,
    error: str | None = None,
    final: FinalEvaluation | None = None,
    agent_seconds: float = 0.1,
) -> SearchRecord:
    """A search that evaluated plans of these rewards, one after the other."""
    return SearchRecord(
        task=task,
        agent=agent,
        seed=seed,
        evaluations=len(rewards) if evaluations is None else evaluations,
        trials=tuple(trial(i, r, agent_seconds) for i, r in enumerate(rewards, start=1)),
        final=final,
        error=error,
    )


def results(rewards: Mapping[str, Mapping[str, Sequence[float]]], evaluations: int = 1) -> Results:
    """Searches of one plan: task -> agent -> the reward of each seed."""
    return Results(
        {task: facts(task) for task in rewards},
        tuple(
            search(task, agent, seed, [reward], evaluations=evaluations)
            for task, agents in rewards.items()
            for agent, values in agents.items()
            for seed, reward in enumerate(values)
        ),
    )


# Agent -> (how much of the gain it ends with, evaluations to get halfway there, spread over seeds,
# own seconds per evaluation).
AGENTS = {
    "uniform": (0.0, 1, 0.0, 0.001),
    "random": (0.62, 40, 0.06, 0.002),
    "local": (0.93, 22, 0.05, 0.003),
    "evolution": (0.88, 45, 0.05, 0.003),
    "nsga2": (0.80, 60, 0.05, 0.01),
    "cmaes": (0.84, 50, 0.07, 0.01),
    "tpe": (0.90, 28, 0.04, 0.08),
    "gp": (0.95, 20, 0.04, 0.9),
    "ddpg": (0.87, 35, 0.05, 0.12),
    "td3": (0.88, 38, 0.05, 0.15),
    "sac": (0.85, 42, 0.06, 0.2),
    "ppo": (0.70, 90, 0.09, 0.05),
    "one-shot:agent=td3,entropy=0.01": (0.78, 55, 0.08, 0.1),
    "sensitivity": (0.72, 4, 0.0, 0.001),
    "grid": (0.5, 70, 0.0, 0.001),
}
ONCE = ("uniform", "sensitivity", "grid")
TASKS = ("resnet20-channels-50", "resnet20-bits-3", "mobilenet-joint", "digits-channels-30")


def realistic(
    agents: Sequence[str] = tuple(AGENTS),
    tasks: Sequence[str] = TASKS,
    seeds: int = 5,
    evaluations: int = 200,
    failed: Mapping[tuple[str, str, int], str] | None = None,
) -> Results:
    """Searches that rise fast, then slowly, with noise: what curves of real ones look like.

    Args:
        agents: Of :data:`AGENTS`.
        tasks: Names.
        seeds: Searches of each agent and task; one for those in :data:`ONCE`.
        evaluations: Evaluations of each search.
        failed: (task, agent, seed) -> why that search failed.
    """
    failed = failed or {}
    records = [
        _realistic_search(task, agent, seed, evaluations, failed.get((task, agent, seed)))
        for task in tasks
        for agent in agents
        for seed in range(1 if agent in ONCE else seeds)
    ]
    recorded = {task: facts(task, recorded=task.startswith("digits")) for task in tasks}
    return Results(recorded, tuple(records))


def _realistic_search(
    task: str, agent: str, seed: int, evaluations: int, error: str | None
) -> SearchRecord:
    rng = np.random.default_rng(zlib.crc32(f"{task}/{agent}/{seed}".encode()))
    if error is not None:
        return SearchRecord(task, agent, seed, evaluations, error=error)
    share, half, spread, seconds = AGENTS[agent]
    difficulty = 1.0 + 0.5 * TASKS.index(task) if task in TASKS else 1.0
    share = share + rng.normal(0.0, spread) - 0.03 * rng.normal(0.0, 1.0) * (agent not in ONCE)
    first = 60 if agent == "sensitivity" else 1
    trials = []
    for evaluation in range(first, 2 if agent == "uniform" else evaluations + 1):
        progress = evaluation / (evaluation + half * difficulty)
        mean = UNIFORM_REWARD + 0.2 * share * (1.25 * progress - 0.35 * (agent != "uniform"))
        reward = mean - (0.0 if agent == "uniform" else abs(rng.normal(0.0, 0.02)))
        charged = 0.55 if evaluation > first else 0.55 * first
        trials.append(trial(evaluation, float(reward), seconds * rng.uniform(0.8, 1.2), charged))
    validation = float(max(t.reward for t in trials) - abs(rng.normal(0.0, 0.004)))
    final = FinalEvaluation((0, 1), validation, validation + 0.09, validation + 0.08, 30.0)
    return SearchRecord(task, agent, seed, evaluations, tuple(trials), final, 12.0)

"""All statistics of a comparison, computed once for figures, tables and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats

from amc_compress.comparison.records import Results, SearchRecord, TaskFacts
from amc_compress.comparison.statistics.curves import (
    Curve,
    evaluation_curves,
    iqm_curves,
    seconds_curves,
)
from amc_compress.comparison.statistics.differences import Difference, differences
from amc_compress.comparison.statistics.ranks import (
    Wins,
    balaji_allen_scores,
    expected_ranks,
    pairwise_wins,
    ranks_of_means,
)
from amc_compress.comparison.statistics.scores import (
    Comparison,
    ComparisonError,
    FloatArray,
    Sample,
    ScoreMatrices,
    marks,
    score_matrices,
    select,
    shared_tasks,
)
from amc_compress.comparison.statistics.statistics import (
    RESAMPLES,
    Interval,
    Profile,
    aggregates,
    improvements,
    performance_profiles,
    require_rliable,
)

_THRESHOLDS = 101
_LOWEST_THRESHOLD = -0.5


@dataclass(frozen=True)
class TaskAnalysis:
    """Statistics of one task.

    Args:
        facts: Of the task.
        agents: Who searched it, best mean first.
        samples: Number of evaluations -> agent -> best rewards; the last are those at the end.
        curves: Agent -> best reward against evaluations.
        seconds: Agent -> best reward against processor seconds.
        differences: Of every pair of agents, or of every agent and the reference.
        ranks: Agent -> rank of its mean reward.
        expected_ranks: Agent -> mean rank of a search drawn at random.
    """

    facts: TaskFacts
    agents: tuple[str, ...]
    samples: Mapping[int, Mapping[str, Sample]]
    curves: Mapping[str, Curve]
    seconds: Mapping[str, Curve]
    differences: tuple[Difference, ...]
    ranks: Mapping[str, float]
    expected_ranks: Mapping[str, float]

    @property
    def evaluations(self) -> int:
        """How many evaluations the searches were given."""
        return max(self.samples)

    @property
    def final(self) -> Mapping[str, Sample]:
        """Agent -> best rewards at the end."""
        return self.samples[self.evaluations]


@dataclass(frozen=True)
class Overall:
    """Statistics over all tasks that every agent searched.

    Args:
        matrices: The scores.
        agents: Highest interquartile mean first.
        aggregates: Agent -> aggregate -> value.
        curves: Agent -> interquartile mean against evaluations.
        at_marks: Number of evaluations -> agent -> interquartile mean; before the end of any
            search.
        improvements: (X, Y) -> probability that X beats Y.
        profiles: Agent -> share of its searches above each score.
        mean_ranks: Agent -> mean over tasks of the rank of its mean reward.
        expected_ranks: Agent -> mean over tasks of its expected rank.
        wins: (X, Y) -> searches of X that beat those of Y with the same seed.
        balaji_allen: Agent -> the statistic of Balaji & Allen 2018.
    """

    matrices: ScoreMatrices
    agents: tuple[str, ...]
    aggregates: Mapping[str, Mapping[str, Interval]]
    curves: Mapping[str, Curve]
    at_marks: Mapping[int, Mapping[str, float]]
    improvements: Mapping[tuple[str, str], Interval]
    profiles: Mapping[str, Profile]
    mean_ranks: Mapping[str, float]
    expected_ranks: Mapping[str, float]
    wins: Mapping[tuple[str, str], Wins]
    balaji_allen: Mapping[str, float]


@dataclass(frozen=True)
class Analysis:
    """A comparison, analysed.

    Args:
        comparison: The searches.
        reference: The agent that others are compared with; None compares every pair.
        tasks: Name -> what is known about it.
        overall: What is known about all tasks together; None if they have nothing in common.
        notes: What was left out and what was assumed, one sentence each.
    """

    comparison: Comparison
    reference: str | None
    tasks: Mapping[str, TaskAnalysis]
    overall: Overall | None
    notes: tuple[str, ...]

    @property
    def failures(self) -> tuple[SearchRecord, ...]:
        """Returns the searches that failed."""
        searches = self.comparison.searches.values()
        return tuple(s for group in searches for s in group if s.error is not None)


def analyse(
    results: Results,
    *,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Analysis:
    """Computes everything.

    Args:
        results: A results file.
        reference: Compare every agent with this one instead of every pair.
        seed: Of all resampling; equal results and seeds give equal answers.
        resamples: How often seeds are drawn again for the scores over all tasks.

    Raises:
        MissingDependencyError: Without the ``compare`` extra.
        ComparisonError: If there is nothing to compare, or the reference is not among the agents.
    """
    require_rliable()
    comparison = select(results)
    if reference is not None and reference not in comparison.agents:
        raise ComparisonError(
            f"Expected a reference among the agents that were compared, got {reference!r}; "
            f"choose one of: {', '.join(comparison.agents)}."
        )
    tasks = {name: _analyse_task(comparison, name, reference, seed) for name in comparison.tasks}
    notes = [*comparison.notes, *_assumptions(tasks)]
    if not shared_tasks(comparison)[0]:
        notes += [*shared_tasks(comparison)[1], "No task is left for scores over all tasks."]
        return Analysis(comparison, reference, tasks, None, tuple(notes))
    matrices = score_matrices(comparison)
    overall = _analyse_all(comparison, matrices, tasks, seed, resamples)
    return Analysis(comparison, reference, tasks, overall, (*notes, *matrices.notes))


def _analyse_task(
    comparison: Comparison, name: str, reference: str | None, seed: int
) -> TaskAnalysis:
    samples = {mark: comparison.samples(name, mark) for mark in marks(comparison.evaluations[name])}
    final = samples[comparison.evaluations[name]]
    ranks = ranks_of_means(final)
    return TaskAnalysis(
        facts=comparison.tasks[name],
        agents=tuple(sorted(final, key=lambda agent: ranks[agent])),
        samples=samples,
        curves=evaluation_curves(comparison, name, seed=seed),
        seconds=seconds_curves(comparison, name, seed=seed),
        differences=tuple(differences(final, reference=reference, seed=seed)),
        ranks=ranks,
        expected_ranks=expected_ranks(final),
    )


def _analyse_all(
    comparison: Comparison,
    matrices: ScoreMatrices,
    tasks: Mapping[str, TaskAnalysis],
    seed: int,
    resamples: int,
) -> Overall:
    scores = matrices.scores
    shared = [tasks[name] for name in matrices.tasks]
    found = aggregates(scores, seed=seed, resamples=resamples)
    ends = {task.evaluations for task in shared}
    before = [mark for mark in marks(min(ends)) if {mark} != ends]
    return Overall(
        matrices=matrices,
        agents=tuple(sorted(scores, key=lambda agent: -found[agent]["iqm"].estimate)),
        aggregates=found,
        curves=iqm_curves(comparison, matrices),
        at_marks={
            mark: _interquartile_means(score_matrices(comparison, mark).scores) for mark in before
        },
        improvements=improvements(scores, seed=seed, resamples=resamples),
        profiles=performance_profiles(scores, _thresholds(scores), seed=seed, resamples=resamples),
        mean_ranks={a: float(np.mean([t.ranks[a] for t in shared])) for a in scores},
        expected_ranks={a: float(np.mean([t.expected_ranks[a] for t in shared])) for a in scores},
        wins=pairwise_wins(task.final for task in shared),
        balaji_allen=balaji_allen_scores(task.final for task in shared),
    )


def _interquartile_means(scores: Mapping[str, FloatArray]) -> dict[str, float]:
    return {
        agent: float(scipy.stats.trim_mean(matrix, 0.25, axis=None))
        for agent, matrix in scores.items()
    }


def _thresholds(scores: Mapping[str, FloatArray]) -> FloatArray:
    lowest = min(0.0, *(float(matrix.min()) for matrix in scores.values()))
    return np.linspace(max(_LOWEST_THRESHOLD, lowest), 1.0, _THRESHOLDS)


def _assumptions(tasks: Mapping[str, TaskAnalysis]) -> list[str]:
    notes = []
    fixed: dict[str, None] = {}
    for name, task in tasks.items():
        once = [agent for agent, sample in task.final.items() if len(sample.rewards) < 2]
        unknown = [agent for agent in once if not task.final[agent].is_fixed]
        if unknown:
            notes.append(
                f"On {name} there is one seed only of {', '.join(unknown)}: no intervals, and no "
                f"difference from it is called real."
            )
        fixed |= dict.fromkeys(agent for agent in once if task.final[agent].is_fixed)
    if fixed:
        notes.append(
            f"Run once, as they are deterministic: {', '.join(fixed)}. The one search counts for "
            f"every seed."
        )
    return notes

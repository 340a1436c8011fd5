"""Selection of comparable searches, and scores normalised per task.

The score of a reward is 0 for the task's uniform plan and 1 for the best plan that any search in
the file found, so that tasks can be averaged. A search that failed, or had evaluated no plan within
the budget by then, counts as the uniform plan: the constant predictor of Gijsbers et al. 2019
(AMLB, 1907.00909). How often that happened is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from amc_compress.agents import is_deterministic
from amc_compress.comparison.records import Results, SearchRecord, TaskFacts
from amc_env import CompressionError
from amc_env.validation.sentences import counted

FloatArray = npt.NDArray[np.float64]

_FIRST_MARK = 25
_CUT_SHORT = (
    "The last line of the results was cut short and is left out; the command that was writing it, "
    "given again, makes that search again."
)


class ComparisonError(CompressionError, ValueError):
    """The requested comparison of results is impossible."""


@dataclass(frozen=True)
class Sample:
    """Best rewards of one agent on one task, one per seed.

    Args:
        seeds: Their seeds, ascending.
        rewards: Best reward of each, shape (seeds,).
        imputed: How many of them are the uniform plan's reward, without a plan of their own.
        is_fixed: Whether the agent is declared deterministic by its agent.
    """

    seeds: tuple[int, ...]
    rewards: FloatArray
    imputed: int = 0
    is_fixed: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds; exactly the common value if all are equal."""
        return float(self.rewards[0] + np.mean(self.rewards - self.rewards[0]))

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; NaN for a single search."""
        if len(self.rewards) < 2:
            return math.nan
        return float(np.std(self.rewards - self.rewards[0], ddof=1))


@dataclass(frozen=True)
class Comparison:
    """The searches of a file that can be compared.

    Args:
        tasks: Facts of the tasks that were searched, by name.
        agents: Every agent, in the order of the file.
        evaluations: Task -> how many evaluations its searches were given.
        searches: (task, agent) -> its searches, by seed.
        best_rewards: Task -> best reward of any trial in the file, at least the uniform plan's.
        notes: What was left out, one sentence each.
        unopened: How many searches failed because their task could not be opened; the notes say
            why, and nothing else of the comparison knows of them.
    """

    tasks: Mapping[str, TaskFacts]
    agents: tuple[str, ...]
    evaluations: Mapping[str, int]
    searches: Mapping[tuple[str, str], tuple[SearchRecord, ...]]
    best_rewards: Mapping[str, float]
    notes: tuple[str, ...] = ()
    unopened: int = 0

    def agents_of(self, task: str) -> tuple[str, ...]:
        """Returns the agents that searched a task."""
        return tuple(agent for agent in self.agents if (task, agent) in self.searches)

    def samples(self, task: str, evaluations: int | None = None) -> dict[str, Sample]:
        """Returns every agent's best rewards within so many evaluations, by default all."""
        count = self.evaluations[task] if evaluations is None else evaluations
        runs = {agent: self.searches[task, agent] for agent in self.agents_of(task)}
        found = {}
        for agent, searches in runs.items():
            best = [s.best_at(count) if s.error is None else -math.inf for s in searches]
            uniform = self.tasks[task].uniform_reward
            found[agent] = Sample(
                tuple(s.seed for s in searches),
                np.array([uniform if math.isinf(b) else b for b in best]),
                sum(math.isinf(b) for b in best),
                _is_fixed(agent, searches),
            )
        return found

    def scores(self, task: str, rewards: FloatArray) -> FloatArray:
        """Returns the scores of rewards on a task.

        Raises:
            ComparisonError: If no search found anything better than the uniform plan.
        """
        uniform = self.tasks[task].uniform_reward
        gain = self.best_rewards[task] - uniform
        if gain <= 0:
            raise ComparisonError(
                f"Expected a search that found more than the uniform plan on {task!r}, got none: "
                f"the task has no scale; leave it out, or search longer."
            )
        return np.asarray((rewards - uniform) / gain, dtype=np.float64)


@dataclass(frozen=True)
class ScoreMatrices:
    """Scores of agents on the tasks that all of them searched.

    Args:
        tasks: Names of the tasks, in the order of the columns.
        scores: Agent -> scores, shape (seeds, tasks). Seeds of different tasks are independent of
            each other, so a row means nothing: every column is sorted.
        imputed: Agent -> how many scores are the uniform plan's, without one of their own.
        notes: What was left out, one sentence each.
    """

    tasks: tuple[str, ...]
    scores: dict[str, FloatArray]
    imputed: dict[str, int]
    notes: tuple[str, ...] = field(default=())


def select(results: Results) -> Comparison:
    """Selects the searches with equal numbers of evaluations.

    On each task these are the searches with the number of evaluations that most of its agents were
    given (the larger one, if two are as frequent). A task that could not be opened is left out.

    Raises:
        ComparisonError: If there is nothing to compare, or a search evaluated plans of no task of
            the file.
    """
    cut = [_CUT_SHORT] if results.cut_short else []
    if not results.searches:
        raise ComparisonError(
            " ".join(["Expected results with searches, got none; run amc compare first.", *cut])
        )
    _check(results)
    count = len(results.searches)
    results, unopened = _of_opened_tasks(results)
    if not results.searches:
        raise ComparisonError(
            f"Expected a task that could be opened, got none; fix the errors listed here and "
            f"repeat the comparison. {' '.join(unopened)}"
        )
    evaluations = {
        task: _usual_evaluations([s for s in results.searches if s.task == task])
        for task in results.tasks
        if any(s.task == task for s in results.searches)
    }
    kept = [s for s in results.searches if s.evaluations == evaluations[s.task]]
    grouped: dict[tuple[str, str], list[SearchRecord]] = {}
    for search in kept:
        grouped.setdefault((search.task, search.agent), []).append(search)
    best = {
        task: max(
            [results.tasks[task].uniform_reward]
            + [t.reward for s in results.searches if s.task == task for t in s.trials]
        )
        for task in evaluations
    }
    return Comparison(
        tasks={task: results.tasks[task] for task in evaluations},
        agents=tuple(dict.fromkeys(s.agent for s in kept)),
        evaluations=evaluations,
        searches={k: tuple(sorted(v, key=lambda s: s.seed)) for k, v in grouped.items()},
        best_rewards=best,
        notes=(*cut, *unopened, *_left_out(results.searches, evaluations)),
        unopened=count - len(results.searches),
    )


def shared_tasks(comparison: Comparison) -> tuple[tuple[str, ...], list[str]]:
    """Returns the tasks with a score for every agent, and why the others have none."""
    shared, notes = [], []
    for task in comparison.tasks:
        missing = [a for a in comparison.agents if a not in comparison.agents_of(task)]
        if missing:
            notes.append(
                f"{task} is left out of the scores over all tasks: not searched by "
                f"{', '.join(missing)}."
            )
        elif comparison.best_rewards[task] <= comparison.tasks[task].uniform_reward:
            notes.append(
                f"{task} is left out of the scores over all tasks: no search found anything "
                f"better than the uniform plan."
            )
        else:
            shared.append(task)
    return tuple(shared), notes


def score_matrices(comparison: Comparison, evaluations: int | None = None) -> ScoreMatrices:
    """Returns the scores of all agents on the tasks that all of them searched.

    Args:
        comparison: The searches.
        evaluations: Within how many evaluations; by default all that each task was given.

    Raises:
        ComparisonError: If no task is left, or its searches were given fewer evaluations.
    """
    tasks, notes = shared_tasks(comparison)
    if not tasks:
        raise ComparisonError(
            "Expected a task that every agent searched and on which some search beat the uniform "
            f"plan, got none. {' '.join(notes)}"
        )
    least = min(comparison.evaluations[task] for task in tasks)
    if evaluations is not None and not 1 <= evaluations <= least:
        raise ComparisonError(f"Expected between 1 and {least} evaluations, got {evaluations}.")
    samples = {task: comparison.samples(task, evaluations) for task in tasks}
    rows = {a: _row_count([samples[t][a] for t in tasks]) for a in comparison.agents}
    most = max(2, *rows.values())  # two equal rows say that there is no chance; one, nothing
    scores, imputed = {}, {}
    for agent in comparison.agents:
        cells = [samples[task][agent] for task in tasks]
        is_fixed = all(c.is_fixed for c in cells)
        spare = sum(max(0, len(c.rewards) - rows[agent]) for c in cells)
        if spare:
            notes.append(
                f"Left out of the scores over all tasks: "
                f"{counted(spare, 'search', 'searches')} of {agent}, which has only "
                f"{rows[agent]} on another task."
            )
        n = most if is_fixed and rows[agent] == 1 else rows[agent]
        columns = [
            np.sort(np.resize(comparison.scores(task, cell.rewards[: rows[agent]]), n))
            for task, cell in zip(tasks, cells, strict=True)
        ]
        scores[agent] = np.stack(columns, axis=1)
        imputed[agent] = sum(c.imputed for c in cells)
    return ScoreMatrices(tasks, scores, imputed, tuple(notes))


def marks(evaluations: int) -> tuple[int, ...]:
    """Returns the numbers of evaluations at which searches are compared: 25, 50, 100, ..., all."""
    found = []
    mark = _FIRST_MARK
    while mark < evaluations:
        found.append(mark)
        mark *= 2
    return (*found, evaluations)


def _is_fixed(agent: str, searches: Iterable[SearchRecord]) -> bool:
    """Whether seeds change nothing: what the agent said when it searched, or what ours say now."""
    said = [s.deterministic for s in searches if s.deterministic is not None]
    return said[-1] if said else is_deterministic(agent)


def _row_count(samples: Sequence[Sample]) -> int:
    """The fewest searches of any task, but for single ones that count for every seed."""
    counts = [len(s.rewards) for s in samples if len(s.rewards) > 1 or not s.is_fixed]
    return min(counts, default=1)


def _usual_evaluations(searches: Iterable[SearchRecord]) -> int:
    """The number of evaluations that most agents were given."""
    given = {(s.agent, s.evaluations) for s in searches}
    counts = Counter(evaluations for _, evaluations in given)
    return max(counts, key=lambda evaluations: (counts[evaluations], evaluations))


def _of_opened_tasks(results: Results) -> tuple[Results, tuple[str, ...]]:
    """Leaves out the tasks without facts, whose searches all failed; says which and why."""
    unopened: dict[str, list[SearchRecord]] = {}
    for search in results.searches:
        if search.task not in results.tasks:
            unopened.setdefault(search.task, []).append(search)
    notes = tuple(
        f"{task} is left out: it could not be opened, so "
        f"{counted(len(failed), 'search', 'searches')} of it failed: {failed[-1].error}"
        for task, failed in unopened.items()
    )
    kept = tuple(search for search in results.searches if search.task in results.tasks)
    return replace(results, searches=kept), notes


def _left_out(searches: Sequence[SearchRecord], evaluations: Mapping[str, int]) -> tuple[str, ...]:
    others = Counter(
        (s.task, s.agent, s.evaluations) for s in searches if s.evaluations != evaluations[s.task]
    )
    return tuple(
        f"Left out on {task}: {counted(number, 'search', 'searches')} of {agent}, given "
        f"{counted(given, 'evaluation')} where most agents were given {evaluations[task]}."
        for (task, agent, given), number in others.items()
    )


def _check(results: Results) -> None:
    for search in results.searches:
        if search.trials and search.task not in results.tasks:
            raise ComparisonError(
                f"Expected the facts of the task {search.task!r} in the file, got none; remove "
                f"its searches, or compare again in a new folder."
            )

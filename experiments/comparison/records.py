"""The results file of a comparison: one JSON line per search, below a line that says what it is.

The first line is ``{"format": "amc-comparison", "version": 1, "tasks": {...}}`` with the facts of
each task (its decisions' keys and choices, the original score, the budget); every further line
is one :class:`SearchRecord`. Lines are appended as searches end, so a comparison that was killed
keeps what it has; a last line that was cut short is left out and its search is done again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from amc_env import RunFolderError
from amc_env.files import JsonLines
from amc_env.scores.metric import ACCURACY, Metric, checked_score
from amc_env.validation.checks import check_whole, checked
from amc_env.validation.shapes import renamed_keys

RESULTS = "results.jsonl"
"""Name of the file in the folder of a comparison."""

SearchKey = tuple[str, str, int, int]
"""Task, agent, seed and number of evaluations: what makes it the same search."""

_OLD_NAMES = {"accuracy": "score", "original_accuracy": "original_score"}
_FINAL_SCORES = ("validation", "finetuned_validation", "test")

FORMAT = "amc-comparison"
VERSION = 1


@checked
@dataclass(frozen=True)
class TaskFacts:
    """Facts about a task that the results file keeps.

    Args:
        name: Its name, e.g. ``"resnet20-channels-50"``.
        decisions: Keys of the decisions, in order.
        choices: The legal values of each decision, ascending.
        budget: The budget in its text form.
        original_score: Score of the uncompressed network.
        uniform_reward: Reward of the uniform plan: score 0.
        recorded: Whether plans are evaluated by a fitted surrogate instead of a network.
        metric: What scores are made from.
    """

    name: str
    decisions: tuple[str, ...]
    choices: tuple[tuple[float, ...], ...]
    budget: str
    original_score: float
    uniform_reward: float
    recorded: bool = False
    metric: Metric = ACCURACY


@checked
@dataclass(frozen=True)
class EvaluatedPlan:
    """One trial of a search.

    Args:
        evaluation: How many evaluations the search had spent when this one came, itself included;
            counted from 1. Evaluations of plans outside the budget (the curves of ``sensitivity``)
            count and are no trials, so the first trial may have a large number.
        plan: Index of each decision's choice, in the order of ``TaskFacts.decisions``.
        score: What is searched for, higher is better: the proxy accuracy, for a classifier.
        reward: What the task's reward made of it.
        cost_ratio: Cost name -> cost / original cost, of the bounded costs.
        agent_seconds: Processor seconds of the agent since the trial before, evaluation left out.
        judge_seconds: Processor seconds that evaluating it (and what was evaluated off the budget
            since the trial before) took when it was first evaluated, in whatever search that was.
        source: Who proposed it, e.g. ``"uniform"``, ``"policy"``.
    """

    evaluation: int
    plan: tuple[int, ...]
    score: float
    reward: float
    cost_ratio: Mapping[str, float]
    agent_seconds: float
    judge_seconds: float
    source: str

    def __post_init__(self) -> None:
        checked_score(self.score, "a recorded trial")
        check_whole("evaluation", self.evaluation, 1)
        if any(ratio < 0.0 for ratio in self.cost_ratio.values()):
            raise ValueError("Expected every cost_ratio to be at least 0.")


@checked
@dataclass(frozen=True)
class FinalEvaluation:
    """Evaluation of a search's winner: validation, fine-tuned, test.

    Args:
        plan: Its choices, as in :class:`EvaluatedPlan`.
        validation: Its score on the whole validation split; None for a recorded task, which has no
            network to evaluate.
        finetuned_validation: The same after fine-tuning; None if it was not fine-tuned.
        test: Score on the test set after fine-tuning, touched once; None if not.
        finetune_seconds: Processor seconds of the fine-tuning.
        finetune_epochs: How long it took, in epochs; None if it was not fine-tuned, or before
            this was noted.
    """

    plan: tuple[int, ...]
    validation: float | None
    finetuned_validation: float | None = None
    test: float | None = None
    finetune_seconds: float | None = None
    finetune_epochs: int | None = None

    def __post_init__(self) -> None:
        for name in _FINAL_SCORES:
            if (score := getattr(self, name)) is not None:
                checked_score(score, name)


@checked
@dataclass(frozen=True)
class SearchRecord:
    """One search: a task, an agent, a seed.

    Args:
        task: Name of the task.
        agent: Label of the agent: its name, or ``name:option=value,...``.
        seed: Seed of the search.
        evaluations: How many evaluations it was given.
        trials: What it evaluated within the budget, in order; empty if it failed before the first.
        final: Its winner; None if it failed.
        prepare_seconds: Processor seconds until the task was ready to be searched.
        error: Why it failed, one sentence; None if it did not.
        deterministic: Whether the agent says that seeds change nothing; None if it failed, or
            before this was noted.
    """

    task: str
    agent: str
    seed: int
    evaluations: int
    trials: tuple[EvaluatedPlan, ...] = ()
    final: FinalEvaluation | None = None
    prepare_seconds: float = 0.0
    error: str | None = None
    deterministic: bool | None = None

    @property
    def key(self) -> SearchKey:
        """Identity of the search."""
        return (self.task, self.agent, self.seed, self.evaluations)

    def best_at(self, evaluations: int) -> float:
        """Returns the best reward within so many evaluations, minus infinity if there is none."""
        found = [t.reward for t in self.trials if t.evaluation <= evaluations]
        return max(found, default=-math.inf)


@dataclass(frozen=True)
class Results:
    """A results file in memory.

    Args:
        tasks: Task name -> its facts.
        searches: Every search, in the order of the file.
        cut_short: Whether a last line was left out because it was cut short.
    """

    tasks: Mapping[str, TaskFacts] = field(default_factory=dict)
    searches: Sequence[SearchRecord] = ()
    cut_short: bool = False

    def only(self, tasks: Sequence[str] = (), agents: Sequence[str] = ()) -> Results:
        """Returns the searches of these agents on these tasks; of all where none is named.

        Raises:
            ValueError: If there is no such task or agent.
        """
        if not self.searches or not (tasks or agents):
            return self
        found = dict.fromkeys(search.agent for search in self.searches)
        # Tasks that could not be opened have searches, failed ones, but no facts.
        searched = dict.fromkeys([*self.tasks, *(search.task for search in self.searches)])
        for kind, names, known in (("task", tasks, searched), ("agent", agents, found)):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(
                    f"Expected {kind}s that were compared, got {', '.join(unknown)}; there are: "
                    f"{', '.join(known)}."
                )
        chosen = [
            search
            for search in self.searches
            if search.task in (tasks or searched) and search.agent in (agents or found)
        ]
        facts = {name: self.tasks[name] for name in tasks or self.tasks if name in self.tasks}
        return replace(self, tasks=facts, searches=chosen)


def read_results(path: Path) -> Results:
    """Reads a results file; a missing one is empty.

    Raises:
        RunFolderError: If it is something else, of another version, or damaged before its end.
    """
    if not path.exists():
        return Results()
    lines = _lines(path)
    tasks = lines.head(
        lambda head: {name: _facts_from(facts) for name, facts in head["tasks"].items()}
    )

    def search_from(row: Mapping[str, Any]) -> SearchRecord:
        record = _search_from(row)
        facts = tasks.get(record.task)
        _check_plans(record, facts)
        _check_scores(record, ACCURACY if facts is None else facts.metric)
        return _without_validation(record) if facts is not None and facts.recorded else record

    # A later line about the same search takes its place.
    searches = {record.key: record for record in lines.rows(search_from)}
    return Results(tasks, tuple(searches.values()), cut_short=lines.is_cut_short)


def _lines(path: Path) -> JsonLines:
    return JsonLines(
        path,
        FORMAT,
        VERSION,
        content="results of a comparison",
        remedy="remove the line, and its search is done again",
    )


def check_unchanged(known: TaskFacts, facts: TaskFacts, path: Path) -> None:
    """Checks that a task is what it was when the results file was begun.

    Raises:
        RunFolderError: With what has changed.
    """
    changed = [k for k, v in asdict(known).items() if v != asdict(facts)[k]]
    if changed:
        raise RunFolderError(
            f"The task {facts.name!r} is not what it was when {path} was started: other "
            f"{', '.join(changed)}. Compare with the same data, weights and options, or in a "
            f"new folder."
        )


class ResultsFile:
    """Appends searches to a results file, each as soon as it has ended.

    Args:
        path: The file; what it holds already is kept.

    Raises:
        RunFolderError: As :func:`read_results`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = read_results(path)
        self._lines = _lines(path)
        self._lines.mend()
        self.results = replace(self.results, cut_short=False)

    def add_task(self, facts: TaskFacts) -> None:
        """Records a task.

        Raises:
            RunFolderError: If a task of that name was compared before and is another one.
        """
        known = self.results.tasks.get(facts.name)
        if known == facts:
            return
        if known is not None:
            check_unchanged(known, facts, self.path)
        self.results = replace(self.results, tasks={**self.results.tasks, facts.name: facts})
        self._write()

    def add(self, record: SearchRecord) -> None:
        """Appends a search; one with the same key takes the place of an earlier one."""
        if not self.path.exists():  # no task has been opened yet, so nothing has begun the file
            self._write()
        self._lines.append(asdict(record))
        others = [s for s in self.results.searches if s.key != record.key]
        self.results = replace(self.results, searches=(*others, record))

    def _write(self) -> None:
        tasks = {name: asdict(facts) for name, facts in self.results.tasks.items()}
        self._lines.write(map(asdict, self.results.searches), tasks=tasks)


def _facts_from(row: Mapping[str, Any]) -> TaskFacts:
    known = {
        "decisions": tuple(row["decisions"]),
        "choices": tuple(tuple(values) for values in row["choices"]),
        "metric": Metric.from_dict(row.get("metric")),
    }
    facts = TaskFacts(**{**renamed_keys(row, _OLD_NAMES), **known})
    facts.metric.checked(facts.original_score, "the uncompressed network")
    return facts


def _search_from(row: Mapping[str, Any]) -> SearchRecord:
    trials = tuple(
        EvaluatedPlan(**{**renamed_keys(t, _OLD_NAMES), "plan": tuple(t["plan"])})
        for t in row["trials"]
    )
    final = row["final"]
    if final is not None:
        final = FinalEvaluation(**{**final, "plan": tuple(final["plan"])})
    return SearchRecord(**{**row, "trials": trials, "final": final})


def _without_validation(record: SearchRecord) -> SearchRecord:
    """Drops the surrogate's answer that older versions wrote for recorded tasks."""
    if record.final is None:
        return record
    return replace(record, final=replace(record.final, validation=None))


def _check_plans(record: SearchRecord, facts: TaskFacts | None) -> None:
    """Compares the plans of a search with the grid of its task, and equal plans with each other."""
    plans: list[EvaluatedPlan | FinalEvaluation] = [*record.trials]
    plans += [record.final] if record.final is not None else []
    for found in plans if facts is not None else ():
        sizes = [len(choices) for choices in facts.choices] if facts is not None else []
        if len(found.plan) != len(sizes) or any(
            not 0 <= i < n for i, n in zip(found.plan, sizes, strict=True)
        ):
            raise ValueError(
                f"Expected plans of {len(sizes)} choices that the task offers, got "
                f"{list(found.plan)}"
            )
    known: dict[tuple[int, ...], float] = {}
    for trial in record.trials:
        if not math.isclose(known.setdefault(trial.plan, trial.score), trial.score):
            raise ValueError(f"Two scores of the plan {list(trial.plan)}")


def _check_scores(record: SearchRecord, metric: Metric) -> None:
    for trial in record.trials:
        metric.checked(trial.score, "a recorded trial")
    for name in _FINAL_SCORES if record.final is not None else ():
        if (score := getattr(record.final, name)) is not None:
            metric.checked(score, name)

"""Runs the searches of a comparison in processes, and writes each as soon as it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from amc_compress.comparison.labels import parse_label
from amc_compress.comparison.records import RESULTS, Results, ResultsFile, SearchRecord
from amc_compress.comparison.searches.jobs import Job, carried_out
from amc_compress.comparison.tasks import Places, budget_of, check_task, find_task
from amc_compress.evaluations.where import Where
from amc_compress.runs.storage.leftovers import remove_leftovers
from amc_env.errors import InputDataError, MissingDependencyError, RunFolderError
from amc_env.files import only_one

Tell = Callable[[SearchRecord], None]


@dataclass(frozen=True)
class Missing:
    """What is not available here; everything else still runs.

    Args:
        tasks: Name of a task -> one sentence about what is missing.
        agents: Label of an agent -> the same, with the line that installs it.
    """

    tasks: Mapping[str, str]
    agents: Mapping[str, str]

    def reason(self, job: Job) -> str | None:
        """Returns why a search cannot be made, or None."""
        return self.tasks.get(job.task) or self.agents.get(job.agent)


@dataclass(frozen=True)
class ComparisonSettings:
    """The tasks, agents and seeds of a comparison.

    Args:
        tasks: Names of tasks.
        agents: Labels of agents, ``"name"`` or ``"name:option=value,..."``.
        seeds: Seeds of the searches.
        evaluations: Evaluations of each search.
        places: Where data and weights are.
        folder: Where results and evaluations are kept.
        where: What makes the searches, each as a whole.
    """

    tasks: tuple[str, ...]
    agents: tuple[str, ...]
    seeds: tuple[int, ...]
    evaluations: int
    places: Places
    folder: Path
    where: Where = field(default_factory=Where)

    def __post_init__(self) -> None:
        for name in ("tasks", "agents", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given):
                raise ValueError(f"Expected distinct {name}, at least one, got {list(given)}.")
        if self.evaluations < 1:
            raise ValueError(f"Expected evaluations >= 1, got {self.evaluations}.")

    def check(self) -> Missing:
        """Rejects unknown names; returns what is not available here.

        Raises:
            ValueError: If a task, an agent or an option of an agent is unknown, or an agent would
                be given another problem than the others.
        """
        agents, requests = {}, []
        for label in self.agents:
            try:
                request = parse_label(label)[1]
                if request.bounds:
                    requests.append(request)
            except MissingDependencyError as error:
                agents[label] = str(error)
        missing = {}
        for task in [find_task(name) for name in self.tasks]:
            try:
                check_task(task, self.places)
            except InputDataError as error:
                missing[task.name] = str(error)
                continue
            if requests:
                budget = budget_of(task)  # a recorded task's is read from its file
                for request in requests:
                    request.within(budget)
        return Missing(missing, agents)


def jobs_of(comparison: ComparisonSettings) -> list[Job]:
    """Returns all searches: task by task, and within a task seed by seed.

    A comparison that is broken off then has whole seeds of all agents.
    """
    return [
        Job(task, agent, seed, comparison.evaluations, comparison.places, comparison.folder)
        for task in comparison.tasks
        for seed in comparison.seeds
        for agent in comparison.agents
    ]


def jobs_left(comparison: ComparisonSettings, results: Results) -> list[Job]:
    """Returns the searches that results do not hold yet; failed ones are made again."""
    done = {search.key for search in results.searches if search.error is None}
    return [job for job in jobs_of(comparison) if job.key not in done]


@contextlib.contextmanager
def only_results(folder: Path) -> Iterator[ResultsFile]:
    """Opens the results of a comparison for this process alone, while the block lasts.

    Raises:
        RunFolderError: If another process is at it, or the file is that of another release.
    """
    with only_one(folder / RESULTS):
        remove_leftovers(folder, but_of_running=True)  # `amc record` may work in it, too
        yield ResultsFile(folder / RESULTS)


def make_searches(
    comparison: ComparisonSettings,
    missing: Missing,
    file: ResultsFile,
    tell: Tell = lambda record: None,
) -> None:
    """Makes the searches that a results file does not hold yet.

    Args:
        comparison: What is compared.
        missing: What :meth:`ComparisonSettings.check` found; searches that need it fail at once.
        file: Of :func:`only_results`.
        tell: Called with every search that ends.
    """
    todo = []
    for job in jobs_left(comparison, file.results):
        reason = missing.reason(job)
        if reason is None:
            todo.append(replace(job, known=file.results.tasks.get(job.task)))
            continue
        record = job.failed(reason)
        file.add(record)
        tell(record)
    for facts, record in carried_out(todo, comparison.where):
        if facts is not None:
            try:
                file.add_task(facts)
            except RunFolderError as error:  # its trials are of another task than the others'
                record = SearchRecord(*record.key, error=str(error))
        file.add(record)
        tell(record)

"""Runs the searches of a comparison in processes, and writes each as soon as it has ended."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from agents import agent_from_label
from amc_env.errors import InputDataError
from experiments.comparison.records import ResultsFile, SearchRecord, TaskFacts
from experiments.comparison.searching import OpenTask, open_task, run_search
from experiments.comparison.tasks import Places, check_task, find_task

RESULTS = "results.jsonl"

_MAX_TRIES = 2
_ENV = "env."

Tell = Callable[[SearchRecord], None]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Args:
        tasks: Names of tasks.
        agents: Labels of agents, ``"name"`` or ``"name:option=value,..."``.
        seeds: Seeds of the searches.
        evaluations: Judgements of each search.
        places: Where data and weights are.
        folder: Where results and judgements are kept.
        workers: Processes.
    """

    tasks: tuple[str, ...]
    agents: tuple[str, ...]
    seeds: tuple[int, ...]
    evaluations: int
    places: Places
    folder: Path
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("tasks", "agents", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given):
                raise ValueError(f"Expected distinct {name}, at least one, got {list(given)}.")
        if self.evaluations < 1 or self.workers < 1:
            raise ValueError(
                f"Expected evaluations and workers >= 1, got {self.evaluations} and {self.workers}."
            )

    def check(self) -> dict[str, str]:
        """Refuses names that are not known; returns the tasks that cannot be opened here.

        Returns:
            Task name -> one sentence about what is missing. All other tasks can go on.

        Raises:
            ValueError: If a task, an agent or an option of an agent is unknown.
            MissingDependencyError: If an agent needs a package that is not installed.
        """
        for label in self.agents:
            agent_from_label(label, _ENV)
        missing = {}
        for task in [find_task(name) for name in self.tasks]:
            try:
                check_task(task, self.places)
            except InputDataError as error:
                missing[task.name] = str(error)
        return missing


@dataclass(frozen=True)
class Job:
    """One search to be made."""

    task: str
    agent: str
    seed: int
    evaluations: int
    places: Places
    folder: Path

    @property
    def key(self) -> tuple[str, str, int, int]:
        """As :attr:`SearchRecord.key`."""
        return (self.task, self.agent, self.seed, self.evaluations)

    @property
    def opens(self) -> tuple[str, str | None, tuple[tuple[str, str], ...], Path]:
        """What opening the task depends on."""
        weights = tuple(sorted(self.places.weights.items()))
        return (self.task, self.places.data, weights, self.folder)


def jobs_of(comparison: Comparison) -> list[Job]:
    """Returns all searches: task by task, and within a task seed by seed.

    A comparison that is broken off then has whole seeds of all agents.
    """
    return [
        Job(task, agent, seed, comparison.evaluations, comparison.places, comparison.folder)
        for task in comparison.tasks
        for seed in comparison.seeds
        for agent in comparison.agents
    ]


def run_comparison(comparison: Comparison, tell: Tell = lambda record: None) -> ResultsFile:
    """Makes the searches that are not in the results file yet; failed ones are made again.

    Args:
        comparison: What is compared.
        tell: Called with every search that ends.

    Raises:
        RunFolderError: If the results file is that of another release or of other tasks.
    """
    file = ResultsFile(comparison.folder / RESULTS)
    missing = comparison.check()
    todo = []
    for job in jobs_of(comparison):
        known = file.find(job.key)
        if known is not None and known.error is None:
            continue
        if job.task in missing:
            record = SearchRecord(*job.key, error=missing[job.task])
            file.add(record)
            tell(record)
        else:
            todo.append(job)
    for facts, record in _carried_out(todo, comparison.workers):
        if facts is not None:
            file.add_task(facts)
        file.add(record)
        tell(record)
    return file


def _carried_out(
    jobs: Sequence[Job], workers: int
) -> Iterator[tuple[TaskFacts | None, SearchRecord]]:
    """Yields what the jobs come to, in the order in which they end."""
    if workers == 1:
        for job in jobs:
            yield carry_out(job)
        return
    waiting, tries = list(jobs), dict.fromkeys((job.key for job in jobs), 0)
    while waiting:
        running: dict[Future[tuple[TaskFacts | None, SearchRecord]], Job] = {}
        # Processes are started afresh: forked ones would inherit torch's threads in some state.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                while waiting or running:
                    # A few jobs at a time, so that few are blamed if a process is killed.
                    while waiting and len(running) < workers:
                        job = waiting.pop(0)
                        tries[job.key] += 1
                        running[pool.submit(carry_out, job)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        del running[future]
                        yield outcome
            except BrokenProcessPool:
                for job in running.values():
                    if tries[job.key] < _MAX_TRIES:
                        waiting.insert(0, job)
                    else:
                        text = "Its process was killed twice; is there enough memory?"
                        yield None, SearchRecord(*job.key, error=text)


def carry_out(job: Job) -> tuple[TaskFacts | None, SearchRecord]:
    """Makes one search on one thread; the task stays open for the next job of this process."""
    import torch

    torch.set_num_threads(1)
    try:
        opened = _opened(*job.opens)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return None, SearchRecord(*job.key, error=text)
    return opened.facts, run_search(opened, job.agent, job.seed, job.evaluations)


@lru_cache(maxsize=1)
def _opened(
    task: str, data: str | None, weights: tuple[tuple[str, str], ...], folder: Path
) -> OpenTask:
    return open_task(find_task(task), Places(data, dict(weights)), folder)

"""Runs search jobs in this process or in several that may be killed."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from amc_compress.comparison.records import (
    RESULTS,
    SearchKey,
    SearchRecord,
    TaskFacts,
    check_unchanged,
)
from amc_compress.comparison.searches.searching import (
    OpenTask,
    in_one_line,
    prepare_task,
    search_once,
)
from amc_compress.comparison.tasks import Places, find_task

Outcome = tuple[TaskFacts | None, SearchRecord]
"""A search that ended, and the facts of its task if that could be opened."""


@dataclass(frozen=True)
class Job:
    """One search to be made.

    Args:
        task: Name of the task.
        agent: Label of the agent.
        seed: Seed of the search.
        evaluations: Evaluations that it may spend.
        places: Where data and weights are.
        folder: Of the comparison.
        known: What the task was when the results file was begun; None if it is new there.
    """

    task: str
    agent: str
    seed: int
    evaluations: int
    places: Places
    folder: Path
    known: TaskFacts | None = None

    @property
    def key(self) -> SearchKey:
        """As :attr:`SearchRecord.key`."""
        return (self.task, self.agent, self.seed, self.evaluations)

    @property
    def opens(self) -> tuple[str, str | None, tuple[tuple[str, str], ...], Path]:
        """What opening the task depends on."""
        weights = tuple(sorted(self.places.weights.items()))
        return (self.task, self.places.data, weights, self.folder)

    def failed(self, error: BaseException | str) -> SearchRecord:
        """Returns the record of a search that never began."""
        return SearchRecord(*self.key, error=in_one_line(error))


def carried_out(jobs: Iterable[Job], workers: int) -> Iterator[Outcome]:
    """Yields the results of jobs, in the order in which they end.

    A process that is killed takes the whole pool with it, and there is no telling whose it was. So
    the searches that were running are made again one by one, each in a process of its own; only
    one whose own process is killed then has failed.

    Args:
        jobs: What is to be done.
        workers: Processes; with one, everything is done in this process.
    """
    if workers == 1:
        yield from map(carry_out, jobs)
        return
    waiting = deque(jobs)
    while waiting:
        for suspect in (yield from _until_killed(waiting, workers)):
            if (yield from _until_killed(deque([suspect]), 1)):
                text = "Its process was killed twice, once alone; is there enough memory?"
                yield None, suspect.failed(text)


def _until_killed(waiting: deque[Job], workers: int) -> Generator[Outcome, None, list[Job]]:
    """Works until nothing waits, or a process is killed; returns the jobs that were running then.

    Jobs are taken from ``waiting`` as they begin.
    """
    running: dict[Future[Outcome], Job] = {}
    # Processes are started afresh: forked ones would inherit torch's threads in some state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            while waiting or running:
                # A few jobs at a time, so that few are suspected if a process is killed.
                while waiting and len(running) < workers:
                    future = pool.submit(carry_out, waiting[0])
                    running[future] = waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    del running[future]
                    yield outcome
        except BrokenProcessPool:
            pass
    for future in [f for f in running if f.exception() is None]:  # ended before the pool broke
        del running[future]
        yield future.result()
    return list(running.values())


def carry_out(job: Job) -> Outcome:
    """Makes one search on one thread; the task stays open for the next job of this process."""
    import torch

    torch.set_num_threads(1)
    try:
        opened = _opened(*job.opens)
        if job.known is not None:  # before the search, which would be thrown away
            check_unchanged(job.known, opened.facts, job.folder / RESULTS)
    except (Exception, SystemExit) as error:
        return None, job.failed(error)
    return opened.facts, search_once(opened, job.agent, job.seed, job.evaluations)


@lru_cache(maxsize=1)
def _opened(
    task: str, data: str | None, weights: tuple[tuple[str, str], ...], folder: Path
) -> OpenTask:
    return prepare_task(find_task(task), Places(data, dict(weights)), folder)

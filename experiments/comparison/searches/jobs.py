"""Runs search jobs in this process or in several that may be killed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from amc_compress.evaluations.dispatcher import Dispatcher
from amc_compress.evaluations.payload import Payload
from amc_compress.evaluations.where import Where

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


def carried_out(jobs: Iterable[Job], where: Where) -> Iterator[Outcome]:
    """Yields the results of jobs, in the order in which they end.

    A search whose process is killed is made again elsewhere; after a few times it has failed.

    Args:
        jobs: What is to be done.
        where: By what; a search is made by one worker as a whole.
    """
    if where.is_here:
        yield from map(carry_out, jobs)
        return
    with Dispatcher(where.backend(Payload.of(carry_out))) as dispatcher:
        dispatcher.submit([*jobs])
        while dispatcher.pending:
            job, answer = dispatcher.finished()
            yield (None, job.failed(answer.failure)) if answer.failure else answer.value


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

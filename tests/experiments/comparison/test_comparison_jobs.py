"""Jobs in processes: none is lost, and only the one whose process is killed has failed."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from support.runs import killed
from support.runs.killed import KilledJob

from amc_compress.comparison.searches import jobs


def test_only_the_job_whose_process_is_killed_fails(monkeypatch):
    monkeypatch.setattr(jobs, "carry_out", killed.carry_out)
    bystander = KilledJob("a", seconds=2.0)  # still under way when the other one is killed
    todo = [bystander, KilledJob("killer", is_killer=True), KilledJob("b"), KilledJob("c")]
    outcomes = [text for _, text in jobs.carried_out(todo, 2)]
    failed = [text for text in outcomes if not text.endswith(": done")]
    assert failed == ["killer: Its process was killed twice, once alone; is there enough memory?"]
    assert sorted(set(outcomes) - set(failed)) == ["a: done", "b: done", "c: done"]
    assert len(outcomes) == 4


class BreaksAtTheSecondJob:
    """A pool that is found broken when the second job is handed over."""

    handed_over = 0

    def __init__(self, workers, mp_context):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, job):
        type(self).handed_over += 1
        if self.handed_over == 2:
            raise BrokenProcessPool
        future = Future()
        future.set_result(function(job))
        return future


def test_a_job_that_could_not_be_handed_over_is_not_lost(monkeypatch):
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", BreaksAtTheSecondJob)
    monkeypatch.setattr(jobs, "carry_out", killed.carry_out)
    outcomes = [text for _, text in jobs.carried_out([KilledJob(name) for name in "abc"], 2)]
    assert sorted(outcomes) == ["a: done", "b: done", "c: done"]

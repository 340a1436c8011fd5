"""Jobs in processes: none is lost, and only the one whose process is killed has failed."""

from __future__ import annotations

import pytest
from support.runs import killed
from support.runs.killed import KilledJob

from amc_compress.comparison.searches import jobs
from amc_compress.evaluations.where import Where


@pytest.mark.slow  # torch is imported by every process that takes the place of one
def test_only_the_job_whose_process_is_killed_fails(monkeypatch):
    monkeypatch.setattr(jobs, "carry_out", killed.carry_out)
    bystander = KilledJob("a", seconds=2.0)  # still under way when the other one is killed
    todo = [bystander, KilledJob("killer", is_killer=True), KilledJob("b"), KilledJob("c")]
    outcomes = [text for _, text in jobs.carried_out(todo, Where(2))]
    failed = [text for text in outcomes if not text.endswith(": done")]
    assert len(failed) == 1
    assert failed[0].startswith("killer: It failed 3 times, the last time: its process was killed")
    assert sorted(set(outcomes) - set(failed)) == ["a: done", "b: done", "c: done"]
    assert len(outcomes) == 4

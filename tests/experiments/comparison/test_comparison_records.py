"""The results file: whole lines only, one record per search, nothing of another version."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from amc_compress.comparison.records import (
    EvaluatedPlan,
    FinalEvaluation,
    ResultsFile,
    SearchRecord,
    TaskFacts,
    read_results,
)
from amc_env import RunFolderError

TASK = TaskFacts("t", ("a:keep_ratio",), ((0.5, 0.75, 1.0),), "macs=0.5", 0.9, 0.6)


def record(seed: int = 0, agent: str = "local", **changes) -> SearchRecord:
    trials = tuple(
        EvaluatedPlan(e, (i,), r, r, {"macs": 0.4}, 0.1, 0.2, "local")
        for e, i, r in ((1, 0, 0.6), (4, 1, 0.7), (5, 2, 0.65))
    )
    final = FinalEvaluation((1,), 0.69)
    return replace(SearchRecord("t", agent, seed, 5, trials, final, 1.5), **changes)


def written(path: Path, *records: SearchRecord) -> Path:
    file = ResultsFile(path)
    file.add_task(TASK)
    for row in records:
        file.add(row)
    return path


def test_what_was_written_is_read(tmp_path):
    path = written(tmp_path / "r.jsonl", record(), record(1), record(2, error="It broke."))
    results = read_results(path)
    assert results.tasks == {"t": TASK}
    assert list(results.searches) == [record(), record(1), record(2, error="It broke.")]


def test_only_some_agents_and_tasks(tmp_path):
    path = written(tmp_path / "r.jsonl", record(), record(agent="tpe"))
    file = ResultsFile(path)
    file.add_task(replace(TASK, name="u"))
    file.add(record(task="u"))
    results = read_results(path)
    assert results.only() == results
    of_tpe = results.only(agents=["tpe"])
    assert [s.agent for s in of_tpe.searches] == ["tpe"]
    of_u = results.only(tasks=["u"], agents=["local"])
    assert list(of_u.tasks) == ["u"]
    assert of_u.searches == [record(task="u")]
    with pytest.raises(ValueError, match=r"agents that were compared, got td3; .*: local, tpe\."):
        results.only(agents=["local", "td3"])
    with pytest.raises(ValueError, match=r"tasks that were compared, got v; there are: t, u\."):
        results.only(tasks=["v"])


def test_a_task_that_was_never_opened_is_one_too(tmp_path):
    failed = record(task="v", trials=(), final=None, error="There is no data.")
    results = read_results(written(tmp_path / "r.jsonl", record(), failed))
    assert results.only() == results
    assert results.only(agents=["local"]).searches == [record(), failed]
    assert results.only(tasks=["v"]).searches == [failed]


def test_the_best_within_so_many_evaluations_counts_those_off_the_budget():
    assert record().best_at(1) == 0.6
    assert record().best_at(3) == 0.6  # evaluations 2 and 3 were spent outside the budget
    assert record().best_at(4) == 0.7
    assert record(trials=()).best_at(9) == -math.inf


def test_a_later_line_about_the_same_search_takes_its_place(tmp_path):
    better = record(final=FinalEvaluation((1,), 0.69, 0.8, 0.79, 12.0))
    results = read_results(written(tmp_path / "r.jsonl", record(), record(1), better))
    assert sorted(r.seed for r in results.searches) == [0, 1]
    assert next(r for r in results.searches if r.seed == 0) == better


def test_a_line_that_was_cut_short_is_left_out_and_its_search_is_missing(tmp_path):
    path = written(tmp_path / "r.jsonl", record(), record(1))
    path.write_bytes(path.read_bytes()[:-40])
    assert read_results(path).cut_short
    file = ResultsFile(path)
    assert [r.seed for r in file.results.searches] == [0]
    assert not file.results.cut_short  # its last line was taken away
    file.add(record(1))
    assert [r.seed for r in read_results(path).searches] == [0, 1]


def test_a_damaged_line_before_the_end_is_named(tmp_path):
    path = written(tmp_path / "r.jsonl", record(), record(1))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")
    with pytest.raises(RunFolderError, match=r"Line 2 of .*remove the line"):
        read_results(path)


def test_a_damaged_byte_is_that_of_its_line(tmp_path):
    path = written(tmp_path / "r.jsonl", record(), record(1))
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:20] + b"\xff" + lines[2][20:]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RunFolderError, match=r"Line 3 of .*remove the line"):
        read_results(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b'{"format": "other"}\n', b"[1]\n", b"\xff\xfe", b'{"format": "am']
)
def test_other_files_are_rejected(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match="results of a comparison"):
        read_results(path)


def test_other_versions_are_rejected_with_what_to_do(tmp_path):
    path = written(tmp_path / "r.jsonl")
    head = json.loads(path.read_text())
    path.write_text(json.dumps(head | {"version": 2}) + "\n")
    with pytest.raises(RunFolderError, match=r"version 1 .* got version 2; read them with"):
        read_results(path)


def test_a_task_that_has_changed_is_rejected_by_what_changed(tmp_path):
    path = written(tmp_path / "r.jsonl", record())
    file = ResultsFile(path)
    file.add_task(TASK)  # the same again: nothing to say
    with pytest.raises(RunFolderError, match="other original_score"):
        file.add_task(replace(TASK, original_score=0.8))


def test_results_of_before_have_no_epochs_and_no_validation_of_recorded_tasks(tmp_path):
    path = tmp_path / "r.jsonl"
    file = ResultsFile(path)
    file.add_task(TASK)
    file.add_task(replace(TASK, name="t-recorded", recorded=True))
    trained = FinalEvaluation((1,), 0.69, 0.8, 0.79, 12.0, finetune_epochs=2)
    file.add(record(final=trained))
    file.add(record(task="t-recorded"))
    path.write_text(path.read_text().replace(', "finetune_epochs": 2', ""))
    real, recorded = read_results(path).searches
    assert real.final == replace(trained, finetune_epochs=None)
    assert recorded.final == FinalEvaluation((1,), None)


def test_a_failure_before_any_task_was_opened_begins_the_file(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    failed = SearchRecord("t", "local", 0, 5, error="No data.")
    ResultsFile(path).add(failed)
    file = ResultsFile(path)
    assert list(file.results.searches) == [failed]
    file.add_task(TASK)
    file.add(record(1))
    assert list(read_results(path).searches) == [failed, record(1)]


def test_a_missing_file_is_an_empty_one(tmp_path):
    assert not read_results(tmp_path / "none.jsonl").searches

"""The store of evaluations: several processes, cut lines, other tasks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from amc_compress.comparison.searches.evaluation_store import (
    Evaluation,
    EvaluationStore,
    TaskFingerprint,
)
from amc_env import CompressionEnv, RunFolderError
from amc_env.recorded_tasks.synthetic import SyntheticLearner

TASK = TaskFingerprint(("a:keep_ratio", "b:keep_ratio"), ((0.25, 0.5, 1.0), (0.5, 1.0)), 0.9, "net")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "evaluations.jsonl"


def test_what_was_added_is_found_again_by_the_next_reader(path):
    store = EvaluationStore(path, TASK)
    assert store.get((0, 1)) is None
    assert store.add((0, 1), 0.1 + 0.2, 1.5) == Evaluation(0.1 + 0.2, 1.5)
    store.add([2, 0], 0.5, 0.0)
    again = EvaluationStore(path, TASK)
    assert dict(again) == dict(store) == {
        (0, 1): Evaluation(0.1 + 0.2, 1.5),
        (2, 0): Evaluation(0.5, 0.0),
    }  # fmt: skip
    assert again.get([0, 1]) == Evaluation(0.1 + 0.2, 1.5)
    assert len(again) == 2


def test_refresh_reads_what_others_appended(path):
    one, two = EvaluationStore(path, TASK), EvaluationStore(path, TASK)
    one.add((0, 0), 0.25, 1.0)
    assert two.get((0, 0)) is None
    assert two.refresh() == 1
    assert two.get((0, 0)) == Evaluation(0.25, 1.0)
    assert two.refresh() == 0


def test_the_first_line_about_a_plan_counts_for_all(path):
    one, two = EvaluationStore(path, TASK), EvaluationStore(path, TASK)
    one.add((0, 0), 0.25, 1.0)
    assert two.add((0, 0), 0.75, 2.0) == Evaluation(0.25, 1.0)
    assert one.refresh() == 0
    assert one.get((0, 0)) == EvaluationStore(path, TASK).get((0, 0)) == Evaluation(0.25, 1.0)


WRITER = """
import sys
from pathlib import Path
from amc_compress.comparison.searches.evaluation_store import EvaluationStore, TaskFingerprint

choices = tuple(i / 2000 for i in range(1, 2001))
task = TaskFingerprint(("a:density",), (choices,), 0.9)
store = EvaluationStore(Path(sys.argv[1]), task)
sys.stdin.readline()  # all processes begin together
for i in range(int(sys.argv[2]), 600, 3):
    store.add((i,), i / 1000, 0.5)
"""


def test_processes_append_at_the_same_time_and_every_line_is_there(path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(start)], stdin=subprocess.PIPE, text=True
        )
        for start in range(3)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    for process in processes:
        process.stdin.close()
    lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    assert sorted(row["plan"][0] for row in rows) == list(range(600))
    assert all(row["score"] == row["plan"][0] / 1000 for row in rows)
    assert not [p for p in path.parent.iterdir() if p != path]


def test_a_line_waits_for_another_writer(path):
    fcntl = pytest.importorskip("fcntl")
    store = EvaluationStore(path, TASK)
    writer = threading.Thread(target=store.add, args=((0, 0), 0.25, 1.0))
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
    writer.join()
    assert len(EvaluationStore(path, TASK)) == 1


@pytest.mark.parametrize("kept", [1, 15, -2])
def test_a_last_line_that_was_cut_short_is_left_out_and_later_ones_are_not(path, kept):
    store = EvaluationStore(path, TASK)
    store.add((0, 0), 0.25, 1.0)
    end = path.stat().st_size
    store.add((1, 1), 0.5, 1.0)
    content = path.read_bytes()
    path.write_bytes(content[: end + kept] if kept > 0 else content[:kept])
    again = EvaluationStore(path, TASK)
    assert dict(again) == {(0, 0): Evaluation(0.25, 1.0)}
    again.add((2, 1), 0.75, 1.0)
    assert dict(EvaluationStore(path, TASK)) == {
        (0, 0): Evaluation(0.25, 1.0),
        (2, 1): Evaluation(0.75, 1.0),
    }


def test_a_line_that_is_still_being_written_is_read_when_it_is_complete(path):
    store = EvaluationStore(path, TASK)
    with path.open("a") as file:
        file.write('{"plan": [0, 0], "accur')
        file.flush()
        assert store.refresh() == 0
        file.write('acy": 0.5, "seconds": 1}\n')
    assert store.refresh() == 1


def test_a_full_disk_is_an_error_and_loses_no_other_line(path, monkeypatch):
    store = EvaluationStore(path, TASK)
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:9]))
        with pytest.raises(OSError, match="No space left") as caught:
            store.add((0, 0), 0.25, 1.0)
    assert caught.value.errno == errno.ENOSPC
    store.add((1, 1), 0.5, 1.0)
    assert dict(store) == dict(EvaluationStore(path, TASK)) == {(1, 1): Evaluation(0.5, 1.0)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"original_score": 0.91}, "original_score"),
        ({"decisions": ("a:keep_ratio", "c:keep_ratio")}, "decisions"),
        ({"choices": ((0.25, 0.5, 1.0), (0.25, 1.0))}, "choices"),
        ({"origin": "another net"}, "origin"),
    ],
)
def test_another_task_is_rejected_by_name_and_the_file_is_left_alone(path, change, named):
    EvaluationStore(path, TASK).add((0, 0), 0.25, 1.0)
    before = path.read_bytes()
    with pytest.raises(RunFolderError, match=rf"of another task: other {named}\. Evaluate with"):
        EvaluationStore(path, dataclasses.replace(TASK, **change))
    assert path.read_bytes() == before


def test_another_version_is_rejected(path):
    path.parent.mkdir()
    path.write_text('{"format": "amc-judgements", "version": 2, "task": {}}\n')
    with pytest.raises(RunFolderError, match=r"version 1 in .*, got version 2; read them with"):
        EvaluationStore(path, TASK)


@pytest.mark.parametrize("content", ["", "[]\n", "{}\n", "no json", '{"format": "amc-comparison"}'])
def test_something_else_is_rejected_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(RunFolderError, match=r"got something else; choose another file"):
        EvaluationStore(path, TASK)
    assert path.read_text() == content


@pytest.mark.parametrize(
    "row",
    [
        {"plan": [0, 5], "accuracy": 0.5, "seconds": 1.0},
        {"plan": [0], "accuracy": 0.5, "seconds": 1.0},
        {"plan": [0, 0], "accuracy": 1.5, "seconds": 1.0},
        {"plan": [0, 0], "accuracy": 0.5},
        {"plan": 3, "accuracy": 0.5, "seconds": 1.0},
        [],
    ],
)
def test_a_line_that_is_no_evaluation_of_the_task_is_an_error(path, row):
    EvaluationStore(path, TASK)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(RunFolderError, match=r"no evaluation of this task .*; remove it: "):
        EvaluationStore(path, TASK)


@pytest.mark.parametrize(
    ("plan", "accuracy", "seconds"),
    [((0, 2), 0.5, 1.0), ((0,), 0.5, 1.0), ((0, 0), float("nan"), 1.0), ((0, 0), 0.5, -1.0)],
)
def test_wrong_evaluations_are_rejected_before_they_are_written(path, plan, accuracy, seconds):
    store = EvaluationStore(path, TASK)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Expected"):
        store.add(plan, accuracy, seconds)
    assert path.read_bytes() == before


def test_the_fingerprint_of_an_environment_holds_its_grid():
    env = CompressionEnv(SyntheticLearner(3), "macs=0.5")
    task = TaskFingerprint.of(env, "synthetic")
    assert task.choices == tuple(d.choices for d in env.decisions)
    assert task.decisions == tuple(d.key for d in env.decisions)
    assert (task.original_score, task.origin) == (0.92, "synthetic")


def test_evaluations_of_before_there_were_scores_are_read_and_added_to(path):
    path.parent.mkdir(exist_ok=True)
    task = dataclasses.asdict(TASK)
    task["original_accuracy"] = task.pop("original_score")
    del task["metric"]
    head = {"format": "amc-judgements", "version": 1, "task": task}
    row = {"plan": [0, 0], "accuracy": 0.25, "seconds": 1.0}
    path.write_text(json.dumps(head) + "\n" + json.dumps(row) + "\n")
    EvaluationStore(path, TASK).add((1, 1), 0.5, 1.0)
    expected = {(0, 0): Evaluation(0.25, 1.0), (1, 1): Evaluation(0.5, 1.0)}
    assert dict(EvaluationStore(path, TASK)) == expected


def test_evaluations_of_another_metric_are_any_finite_number(path):
    task = dataclasses.replace(TASK, metric="perplexity", original_score=-20.0)
    EvaluationStore(path, task).add((0, 0), -1234.5, 1.0)
    assert dict(EvaluationStore(path, task)) == {(0, 0): Evaluation(-1234.5, 1.0)}
    with pytest.raises(RunFolderError, match="of another task: other original_score, metric"):
        EvaluationStore(path, TASK)
    with pytest.raises(ValueError, match="Expected a finite score"):
        EvaluationStore(path, task).add((1, 1), float("nan"), 1.0)

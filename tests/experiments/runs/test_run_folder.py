"""The run folder: atomic, versioned, and never half-read."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from amc_compress.cli import BAD_INPUT, explain
from amc_compress.config.run_config import RunConfig
from amc_compress.report.summary import read_summary, rows
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.folder import RunFolder, is_used
from amc_compress.runs.networks import read_shape, save_network
from amc_compress.runs.storage.trials import TrialRecorder, read_trials
from amc_env import CompressionPlan, RunFolderError
from amc_env.files import is_disk_full, read_json, write_atomic
from amc_env.scores.metric import ACCURACY, Metric

FACTS = DataFacts("digits", 10, (1, 8, 8), tuple("0123456789"))
PLAN = CompressionPlan({"a:keep_ratio": 0.5, "b:keep_ratio": 0.25})


def trial(episode: int, reward: float = 0.5, source: str = "policy") -> Any:
    return SimpleNamespace(
        episode=episode, plan=PLAN, score=0.5, reward=reward, cost_ratio={"macs": 0.5},
        seconds=0.1, source=source, within_budget=True, failure="", processor="", elsewhere=0.0,
        measured=None,
    )  # fmt: skip


def recorder(path: Path) -> TrialRecorder:
    return TrialRecorder(path, lambda plan: {"macs": 100.0})


# ---- files


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_failed_write_leaves_the_old_file_and_no_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    file = tmp_path / "file"
    write_atomic(file, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomic(file, "new")
    assert is_disk_full(caught.value)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("verb", "how"), [("search", " with --resume."), ("compare", "."), ("automl", ".")]
)
def test_a_full_disk_names_resume_only_where_there_is_such_an_option(verb: str, how: str) -> None:
    message, code = explain(OSError(errno.ENOSPC, "No space left on device"), [verb, "--quiet"])
    assert message.endswith(f"repeat the command{how}")
    assert code == BAD_INPUT


def test_disk_full_is_recognised_behind_other_errors() -> None:
    error = RunFolderError("Cannot write.")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(error)
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "x", "version": 1', "cut short"),
        ("\x00\xff", "cut short"),
        ('{"format": "y", "version": 1}', "not what this program writes"),
        ("[]", "not what this program writes"),
        ('{"format": "x", "version": 2}', "version 2"),
        ('{"format": "x"}', "version None"),
    ],
)
def test_json_of_another_kind_is_rejected(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(RunFolderError, match=message):
        read_json(tmp_path / "f.json", "x", 1)


# ---- the folder


def test_folder_read_back_is_the_folder_written(tmp_path: Path) -> None:
    config = RunConfig(model="resnet20", budget="macs=0.45:0.5,bytes=0.3", ignore=("a", "b"),
                       mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))  # fmt: skip
    with RunFolder.create(tmp_path / "run", config, FACTS) as made:
        made.start("search")
        made.finish("search", seconds=1.5)
    read = RunFolder.open(tmp_path / "run")
    assert read.config.settled() == config.settled()
    assert read.facts == FACTS
    assert read.results("search") == {"done": True, "seconds": 1.5}


def test_used_folder_is_rejected_without_resume(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(RunFolderError, match="--resume"):
        RunFolder.create(tmp_path, RunConfig(), FACTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["holiday.jpg"]


def test_folder_of_something_else_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.create_or_resume(tmp_path, RunConfig(), FACTS, resume=True)


def test_start_that_died_before_its_configuration_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.123.tmp").write_text('{"half')
    assert not is_used(tmp_path)
    RunFolder.create(tmp_path, RunConfig(), FACTS).close()


def test_resume_names_the_option_that_differs(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", RunConfig(seed=0), FACTS) as folder:
        folder.start("search")
    with pytest.raises(RunFolderError, match="--criterion is 'l1' there and 'l2' now") as caught:
        RunFolder.create_or_resume(tmp_path / "run", RunConfig(criterion="l2"), FACTS, resume=True)
    assert "--seed" not in str(caught.value)


def test_options_of_stages_to_come_may_change(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", RunConfig(epochs=30), FACTS) as folder:
        folder.start("search")
    with RunFolder.create_or_resume(
        tmp_path / "run", RunConfig(epochs=60), FACTS, resume=True
    ) as folder:
        folder.start("finetune")
    assert RunFolder.open(tmp_path / "run").config.epochs == 60
    with pytest.raises(RunFolderError, match="--epochs is 60 there and 30 now"):
        RunFolder.create_or_resume(tmp_path / "run", RunConfig(epochs=30), FACTS, resume=True)


def test_schedule_stays_while_its_bytes_are_counted(tmp_path: Path) -> None:
    sparse = RunConfig(learner="sparse", budget="bytes=0.3")
    with RunFolder.create(tmp_path / "run", sparse, FACTS) as folder:
        folder.start("search")
    other = replace(sparse, schedule="one-shot")
    with pytest.raises(RunFolderError, match="is searched with --schedule gradual, by which"):
        RunFolder.create_or_resume(tmp_path / "run", other, FACTS, resume=True)
    with RunFolder.create_or_resume(tmp_path / "run", sparse, FACTS, resume=True) as folder:
        folder.finish("search")
    with RunFolder.create_or_resume(tmp_path / "run", other, FACTS, resume=True) as folder:
        assert folder.config.schedule == "one-shot"


def test_other_spelling_of_the_same_budget_is_no_difference(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", RunConfig(budget="macs=0.50"), FACTS) as folder:
        folder.start("search")
    config = RunConfig(budget="macs=.5")
    with RunFolder.create_or_resume(tmp_path / "run", config, FACTS, resume=True) as folder:
        assert folder.has_begun("search")
        assert folder.config.budget == RunConfig(budget="macs=0.5").budget


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        RunFolder.create(tmp_path / "run", RunConfig(), FACTS),
        pytest.raises(RunFolderError, match="Another process"),
    ):
        RunFolder.create_or_resume(tmp_path / "run", RunConfig(), FACTS, resume=True)


@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    with RunFolder.create(tmp_path / "run", RunConfig(), FACTS) as folder:
        folder.start("search")
    path = tmp_path / "run" / name
    path.write_text(path.read_text()[:50])
    with pytest.raises(RunFolderError, match=name):
        RunFolder.open(tmp_path / "run")


def test_folder_of_another_version_is_rejected(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", RunConfig(), FACTS).close()
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(RunFolderError, match="version 99"):
        RunFolder.open(tmp_path / "run")


def test_option_unknown_to_this_release_is_named(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", RunConfig(), FACTS).close()
    path = tmp_path / "run" / "config.json"
    document = json.loads(path.read_text())
    document["options"]["colour"] = "red"
    path.write_text(json.dumps(document))
    with pytest.raises(RunFolderError, match="colour"):
        RunFolder.open(tmp_path / "run")


def test_truncated_plan_is_rejected(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", RunConfig(), FACTS) as folder:
        folder.write_plan(PLAN)
        assert folder.read_plan() == PLAN
        path = folder / "plan.json"
        path.write_text(path.read_text()[:-20])
        with pytest.raises(RunFolderError, match=r"plan\.json is damaged"):
            folder.read_plan()


# ---- trials


def test_half_written_last_line_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    record = recorder(path)
    for episode in range(3):
        record(trial(episode, 0.1 * episode))
    complete = path.read_bytes()
    path.write_bytes(complete + b'{"episode": 3, "plan": {"a:kee')  # kill -9 while writing
    again = recorder(path)
    assert [t.episode for t in again.recorded] == [0, 1, 2]
    assert path.read_bytes() == complete


def test_replayed_trials_are_verified_and_not_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    first = recorder(path)
    first(trial(0, 0.1))
    first(trial(1, 0.2))
    again = recorder(path)
    for episode, reward in enumerate((0.1, 0.2, 0.3)):
        again(trial(episode, reward))
    assert [t.reward for t in read_trials(path)] == [0.1, 0.2, 0.3]


def test_replay_that_goes_another_way_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    recorder(path)(trial(0, 0.1))
    with pytest.raises(RunFolderError, match="Episode 0 went differently"):
        recorder(path)(trial(0, 0.2))


def test_damage_in_the_middle_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    record = recorder(path)
    for episode in range(3):
        record(trial(episode))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20] + "\n" + lines[2])
    with pytest.raises(RunFolderError, match="Line 2"):
        read_trials(path)


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 0}, "--evaluations >= 1"),
        ({"threads": -1}, r"--threads in \[0, 1024\]"),
        ({"round_to": 0}, "--round-to >= 1"),
        ({"learning_rate": 0.0}, "--learning-rate > 0"),
        ({"learning_rate": float("nan")}, "--learning-rate as a finite number"),
        ({"threads": 10**9}, r"--threads in \[0, 1024\]"),
        ({"epochs": 10**400}, "--epochs <= "),
        ({"epochs": "many"}, "epochs to be a whole number"),
        ({"distillation_weight": 1.5}, "--distillation-weight"),
        ({"teacher": "mother"}, "--teacher"),
        ({"budget": "macs=1.5"}, "budget of macs"),
        ({"budget": "half"}, "Expected a budget like"),
        ({"precision": "fp8"}, "--precision"),
        ({"validation_split": "head"}, "--validation-split"),
    ],
)
def test_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(**options)


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    network, kept = torch.nn.Linear(2, 2), {"a": torch.tensor([0, 2])}
    files = [tmp_path / str(number) for number in range(8)]
    for path in files:
        save_network(network, path, plan=PLAN, kept=kept)
    assert len({path.read_bytes() for path in files}) == 1
    found = read_shape(files[0])
    assert found.kept["a"].tolist() == [0, 2]
    assert found.structure is None


# ---- scores


def test_state_of_before_there_were_scores_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunFolder.create(path, RunConfig(), FACTS) as folder:
        folder.finish("train", seconds=1.0, epochs=2, validation_score=0.9)
        best = {"score": 0.8, "reward": 0.8, "cost_ratio": {"macs": 0.5}}
        stages = [{"score": 0.8, "finetuned_score": None}]
        folder.finish("search", best=best, uniform=best, original_score=0.9, stages=stages)
        folder.finish("finetune", validation_score_before=0.8, validation_score=0.85)
        folder.finish("evaluate", score={"original": 0.9, "compressed": 0.85})
        expected = {stage: folder.results(stage) for stage in ("train", "search", "finetune")}
    state = path / "state.json"
    old = state.read_text().replace("finetuned_score", "finetuned_accuracy")
    state.write_text(old.replace("score", "accuracy"))
    with RunFolder.open(path) as folder:
        assert {stage: folder.results(stage) for stage in expected} == expected
        assert folder.results("evaluate")["score"] == {"original": 0.9, "compressed": 0.85}
        assert folder.metric == ACCURACY


def test_folder_knows_what_its_scores_are_made_from(tmp_path: Path) -> None:
    path = tmp_path / "run"
    metric = Metric("perplexity", higher_is_better=False)
    with RunFolder.create(path, RunConfig(), FACTS) as folder:
        before = (path / "config.json").read_text()
        folder.measure_by(ACCURACY)
        assert not (path / "state.json").exists()
        folder.measure_by(metric)
    assert (path / "config.json").read_text() == before
    with RunFolder.open(path) as folder:
        assert folder.metric == metric
    state = json.loads((path / "state.json").read_text())
    state["metric"]["best_score"] = "high"
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(RunFolderError, match=r"state.json is damaged \(expected metric.best_score"):
        RunFolder.open(path)


def summary_of(score: float, **more: Any) -> dict[str, Any]:
    network = {"macs": 10, "params": 10, "bytes": 10, "latency_ms": None, **more}
    return {
        "original": {**network, "accuracy": score, "perplexity": -score},
        "compressed": {**network, "accuracy": score - 0.01, "perplexity": -score + 0.01},
        "cpu_seconds_per_episode": 0.1,
    }


def test_summary_is_shown_in_the_form_of_its_metric(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary_of(0.98)))
    row = rows(read_summary(tmp_path))[0]
    assert row == ("test accuracy", "98.00%", "97.00%", "-1.00 points")
    summary = summary_of(-20.0) | {"metric": asdict(Metric("perplexity", higher_is_better=False))}
    for name, score in (("original", -20.0), ("compressed", -25.0)):
        del summary[name]["accuracy"]
        summary[name]["score"] = score
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert rows(read_summary(tmp_path))[0] == ("test perplexity", "20", "25", "+5 worse")
    del summary["original"]["score"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunFolderError, match=r"expected the key original\.score"):
        read_summary(tmp_path)

"""The command line: whole runs, and help that teaches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.runs.command_line import QUICK, WEIGHTS
from support.selection import quick

from amc_compress.cli import run
from amc_compress.data import load_data
from amc_compress.runs.networks import load_compressed
from amc_env import CompressionPlan

VERBS = ("train", "search", "finetune", "evaluate", "export", "report", "compress")


# ---- a finished run


def test_run_folder_holds_what_others_rely_on(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names >= {
        "config.json", "plan.json", "trials.jsonl", "model.safetensors", "model.onnx",
        "report.html", "summary.json",
    }  # fmt: skip
    assert not any(name.endswith(".tmp") for name in names)


def test_summary_has_exactly_the_promised_form(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == {
        "original", "compressed", "cost_ratio", "budget", "agent", "episodes", "seed", "seconds",
        "cpu_seconds_per_episode", "cautions", "validation",
    }  # fmt: skip
    for name in ("original", "compressed"):
        network = summary[name]
        assert set(network) == {
            "accuracy", "score", "macs", "params", "bytes", "latency_ms", "onnx_bytes",
        }  # fmt: skip
        assert set(network["latency_ms"]) == {"1", "64"}
        assert 0.5 < network["accuracy"] <= 1.0
        assert isinstance(network["macs"], int)
    assert set(summary["seconds"]) == {"search", "finetune", "export"}
    assert summary["episodes"] == 6
    assert summary["seed"] == 0
    assert summary["agent"] == "random"
    assert summary["budget"] == {"macs": [0.0, 0.5]}
    assert summary["cpu_seconds_per_episode"] > 0


def test_summary_agrees_with_the_files(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    model = load_compressed(finished)
    assert summary["compressed"]["params"] == sum(p.numel() for p in model.parameters())
    assert summary["compressed"]["bytes"] == (finished / "model.safetensors").stat().st_size
    ratio = summary["compressed"]["macs"] / summary["original"]["macs"]
    assert ratio == pytest.approx(summary["cost_ratio"]["macs"])
    assert ratio <= 0.5


def test_accuracy_in_the_summary_is_that_of_the_loaded_network(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    test = load_data("digits").test
    with torch.no_grad():
        guess = load_compressed(finished)(test.images.float()).argmax(1)
    assert summary["compressed"]["accuracy"] == pytest.approx(
        (guess == test.labels).float().mean().item()
    )


def test_onnx_file_equals_the_loaded_network(finished: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    images = load_data("digits").test.images[:100].float()
    with torch.no_grad():
        expected = load_compressed(finished)(images).numpy()
    session = onnxruntime.InferenceSession(str(finished / "model.onnx"))
    got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_trials_hold_one_line_per_episode(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "trials.jsonl").read_text().splitlines()]
    assert [row["episode"] for row in rows] == list(range(6))
    plan = CompressionPlan.from_json((finished / "plan.json").read_text())
    assert any(CompressionPlan(row["plan"]) == plan for row in rows)
    for row in rows:
        assert row["cost_ratio"]["macs"] <= 0.5
        assert {"cost", "score", "reward", "seconds", "cpu_seconds", "source"} <= set(row)


def test_report_is_one_file_that_names_its_command(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "src=" not in page
    assert "$" not in page.split("</style>")[1].replace("$ ", "")


def test_evaluate_prints_one_line_of_json(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for options, name in (([], "compressed"), (["--original"], "original")):
        capsys.readouterr()
        assert run(["evaluate", str(finished), *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        measured = json.loads(lines[0])
        for key in ("accuracy", "macs", "params", "bytes"):
            assert measured[key] == summary[name][key]


def test_evaluate_measures_any_weights_file(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert run(["evaluate", "--model", "digitsnet", "--weights", WEIGHTS]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["accuracy"] == summary["original"]["accuracy"]
    assert measured["macs"] == summary["original"]["macs"]


@pytest.mark.parametrize("exported", quick([True, False], False))
def test_verbs_one_by_one_give_what_compress_gives(
    exported: bool, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "steps"
    search = [o for o in QUICK if o not in ("--epochs", "2")]
    assert run(["search", *search, "--out", str(out), "--quiet"]) == 0
    assert not (out / "model.safetensors").exists()
    assert (out / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()
    assert run(["finetune", str(out), "--epochs", "2", "--quiet"]) == 0
    expected = safetensors.torch.load_file(finished / "model.safetensors")
    got = safetensors.torch.load_file(out / "model.safetensors")
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    if not exported:
        return
    assert run(["export", str(out), "--quiet"]) == 0
    assert run(["report", str(out)]) == 0
    summary, before = (
        json.loads((folder / "summary.json").read_text()) for folder in (out, finished)
    )
    assert summary["compressed"]["accuracy"] == before["compressed"]["accuracy"]
    assert (out / "report.html").exists()


def test_finished_run_resumed_does_nothing_again(copy: Path) -> None:
    before = (copy / "model.safetensors").stat().st_mtime_ns
    assert run(["compress", *QUICK, "--out", str(copy), "--quiet", "--resume"]) == 0
    assert (copy / "model.safetensors").stat().st_mtime_ns == before


def test_train_writes_weights_that_compress_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    assert run(["train", "--epochs", "1", "--out", str(full), "--quiet"]) == 0
    summary = json.loads((full / "summary.json").read_text())
    assert {"accuracy", "macs", "params", "bytes", "validation_accuracy"} <= set(summary)
    capsys.readouterr()
    assert run(["evaluate", "--weights", str(full / "model.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == summary["accuracy"]


@pytest.mark.slow
def test_run_without_export_has_no_latency_and_says_that_training_was_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = [*QUICK, "--no-export", "--epochs", "0"]
    assert run(["compress", *options, "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert "finetune: no training (0 epochs)" in told
    assert "skipped, 0 epochs: validation accuracy" in told
    summary = json.loads((out / "summary.json").read_text())
    assert summary["compressed"]["latency_ms"] is None
    assert summary["seconds"]["export"] is None
    assert (out / "report.html").exists()


# ---- help


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_by_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples" in text
    assert f"amc {verb} " in text


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)

"""Runs that quantize, from the command line to the files that others load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.runs.command_line import WEIGHTS
from support.selection import quick

from amc_compress.cli import run
from amc_compress.config.run_config import RunConfig
from amc_compress.config.values import BIT_FORMATS, LLAMA_CPP
from amc_compress.data import load_data
from amc_compress.learners.packing.packed_file import load_packed
from amc_compress.learners.quantization import quantized_layers
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import load_weights
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.networks import build_original, example_input, load_compressed, load_original
from amc_compress.runs.problem import make_problem
from amc_compress.runs.task import facts_of, load_splits
from amc_env import CompressionPlan
from amc_env.costs.costs import COSTS

SMALL = ["--weights", WEIGHTS, "--agent", "random", "--evaluations", "3", "--epochs", "1",
         "--n-validation", "100", "--precision", "fp32", "--quiet"]  # fmt: skip
BITS = ["--weight-bits", "2,4,8"]
LEARNERS = {
    "uniform": ["--learner", "uniform", *BITS, "--activation-bits", "4,8"],
    "codebook": ["--learner", "codebook", *BITS, "--granularity", "tensor", "--no-export"],
    "joint": ["--learner", "joint", *BITS, "--round-to", "8", "--no-export"],
}
QUICK = quick(LEARNERS, "uniform")


@pytest.fixture
def run_of(run_made: Callable[..., Path]) -> Callable[[str], Path]:
    """Returns the finished run of a learner, made once."""
    return lambda learner: run_made(
        f"quantized-{learner.replace(':', '-')}", *SMALL, *LEARNERS[learner]
    )


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


@pytest.mark.parametrize("learner", QUICK)
def test_accuracy_in_the_summary_is_that_of_the_loaded_network(
    learner: str, run_of: Callable[[str], Path]
) -> None:
    out = run_of(learner)
    test = load_data("digits").test
    with torch.no_grad():
        logits = load_compressed(out)(test.images.float())
    accuracy = (logits.argmax(1) == test.labels).float().mean().item()
    assert summary_of(out)["compressed"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.8


@pytest.mark.parametrize("learner", QUICK)
def test_packed_file_holds_the_same_network(learner: str, run_of: Callable[[str], Path]) -> None:
    out = run_of(learner)
    images = load_data("digits").test.images[:50].float()
    folder = RunFolder.open(out)
    with torch.no_grad():
        packed = load_packed(out / "model.packed", load_original(folder))(images)
        assert torch.equal(packed, load_compressed(out)(images))
    assert summary_of(out)["compressed"]["bytes"] == (out / "model.packed").stat().st_size


@pytest.mark.parametrize("learner", QUICK)
def test_every_evaluated_plan_meets_the_budget_and_the_network_has_its_bits(
    learner: str, run_of: Callable[[str], Path]
) -> None:
    out = run_of(learner)
    summary = summary_of(out)
    for line in (out / "trials.jsonl").read_text().splitlines():
        ratio = json.loads(line)["cost_ratio"]
        assert all(low <= ratio[n] <= high for n, (low, high) in summary["budget"].items())
    plan = CompressionPlan.from_json((out / "plan.json").read_text())
    layers = quantized_layers(load_compressed(out))
    decided = [key for key in plan if key.endswith(":weight_bits")]
    assert decided
    for key in decided:
        quantizer = layers[key.rsplit(":", 1)[0]].weight_quantizer
        assert quantizer is not None
        assert quantizer.bits == plan[key]
    first, *_, last = layers.values()
    for layer in (first, last):
        assert layer.weight_quantizer is not None
        assert layer.weight_quantizer.bits == 8
    weights = sum(layer.weight.numel() for layer in layers.values())
    bits = sum(
        layer.weight.numel() * layer.weight_quantizer.bits
        for layer in layers.values()
        if layer.weight_quantizer is not None
    )
    if learner != "joint":  # there the mean is over the weights before channels were cut
        assert summary["compressed"]["mean_bits"] == pytest.approx(bits / weights, abs=1e-4)


def test_integers_are_exported_and_agree(run_of: Callable[[str], Path]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = run_of("uniform")
    summary = summary_of(out)
    rejected = any(b["activations"] != 8 for b in summary["bits"].values())
    assert (summary["export_refused"] is not None) is rejected
    if rejected:
        return
    images = load_data("digits").test.images.float()
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        expected = load_compressed(out)(images).numpy()
    assert np.mean(got.argmax(1) == expected.argmax(1)) > 0.98


@pytest.mark.parametrize("learner", QUICK)
def test_half_of_a_quantized_run_costs_nothing_that_is_there(
    learner: str, run_of: Callable[[str], Path], fails: Callable[..., str]
) -> None:
    out = run_of(learner)

    def files() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}

    before = files()
    assert "leave --half out" in fails("export", str(out), "--half", "-q")
    assert files() == before


@pytest.mark.slow
def test_report_shows_the_bits_of_every_layer(run_of: Callable[[str], Path]) -> None:
    out = run_of("joint")
    page = (out / "report.html").read_text()
    assert "bits per activation" in page
    assert "channels kept per group" in page
    assert "$" not in page.split("</style>")[1].replace("$ ", "")


def test_evaluate_prints_what_the_summary_says(
    run_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_of("uniform")
    summary = summary_of(out)
    for options, name in (([], "compressed"), (["--original"], "original")):
        capsys.readouterr()
        assert run(["evaluate", str(out), *options]) == 0
        measured = json.loads(capsys.readouterr().out)
        for key in ("accuracy", "macs", "params", "bytes"):
            assert measured[key] == summary[name][key]


def test_bits_that_are_fixed_need_no_search(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--learner", "uniform", "--weight-bits", "4", "--activation-bits", "16"]
    assert run(["compress", *SMALL, *options, "--no-export", "--out", str(out)]) == 0
    assert len((out / "trials.jsonl").read_text().splitlines()) == 1
    assert dict(CompressionPlan.from_json((out / "plan.json").read_text())) == {}
    first, *middle, last = summary_of(out)["bits"].values()
    assert first == last == {"weights": 8, "activations": None}
    assert all(bits == {"weights": 4, "activations": None} for bits in middle)
    # Resumed, it does nothing again; searched anew, it may not differ.
    before = (out / "model.safetensors").stat().st_mtime_ns
    again = ["compress", *SMALL, *options, "--no-export", "--out", str(out), "--resume"]
    assert run(again) == 0
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_budget_that_only_the_learner_knows_to_be_broken_ends_the_search(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc_compress.runs.problem.header_bytes", lambda *_: 0.0)
    out = tmp_path / "run"
    options = ["--learner", "uniform", "--weight-bits", "4", "--budget", "bytes=0.132"]
    assert "bytes 0.1329" in fails("compress", *SMALL, *options, "--no-export", "--out", str(out))
    assert not (out / "plan.json").exists()


@pytest.mark.slow
def test_bits_that_nothing_executes_end_with_the_packed_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "run"
    options = ["--learner", "uniform", "--weight-bits", "8", "--activation-bits", "3"]
    assert run(["compress", *SMALL, *options, "--epochs", "0", "--out", str(out)]) == 0
    summary = summary_of(out)
    assert not (out / "model.onnx").exists()
    assert (out / "model.packed").exists()
    assert summary["compressed"]["latency_ms"] is None
    assert "packed" in summary["export_refused"]
    assert "There is no ONNX file" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    "options",
    quick(
        [
            {"learner": "channels"},
            {"learner": "uniform", "weight_bits": "2-4", "activation_bits": "4,8"},
            {"learner": "uniform", "affine_weights": True, "ignore": ("stage1",)},
            {
                "learner": "codebook",
                "granularity": "split",
                "bucket_size": 64,
                "first_last_bits": None,
            },
            {"learner": "joint", "weight_bits": "3,6", "granularity": "tensor"},
        ],
        {"learner": "channels"},
    ),
)
def test_what_is_checked_before_the_work_is_what_the_learner_decides(
    options: dict[str, Any],
) -> None:
    config = RunConfig(n_validation=50, precision="fp32", **options)
    data = load_splits(config)
    facts = facts_of(data)
    model = build_original("digitsnet", facts)
    load_weights(model, WEIGHTS)
    problem = make_problem(config, trace(model, example_input(facts), ignore=config.ignore))
    learner: Any = config.spec.prepare(data, model)
    assert problem.decisions == learner.decisions
    models = getattr(learner, "cost_models", {})
    generator = np.random.default_rng(0)
    headers = set()
    for _ in range(5):
        values = [generator.choice(d.choices) for d in learner.decisions]
        for name in set(COSTS) & models.keys():
            assert problem.original()[name] == models[name].original(learner.decisions)
            if name == "bytes":  # the learner has measured the header, too
                headers.add(round(models[name](values) - problem.costs[name](values), 6))
            else:
                assert problem.costs[name](values) == pytest.approx(models[name](values))
    assert len(headers) == bool(models)
    assert all(0 <= header < 0.02 * problem.original()["bytes"] for header in headers)
    if models:  # on an untrained network it is nearly as long
        fresh = trace(build_original("digitsnet", facts), example_input(facts))
        measured = make_problem(config, fresh, example=example_input(facts)).costs["bytes"]
        assert measured(values) == pytest.approx(models["bytes"](values), abs=16)


@pytest.mark.slow
def test_codebook_whose_entries_alone_are_trained_is_saved_whole(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--learner", "codebook", "--weight-bits", "3", "--codebook-mode", "clusters"]
    assert run(["compress", *SMALL, *options, "--no-export", "--out", str(out)]) == 0
    network = load_compressed(out)
    images = load_data("digits").test.images[:50].float()
    with torch.no_grad():
        packed = load_packed(out / "model.packed", load_original(RunFolder.open(out)))
        assert torch.equal(packed(images), network(images))
    start = safetensors.torch.load_file(out / "pruned.safetensors")
    end = safetensors.torch.load_file(out / "model.safetensors")
    assert start.keys() == end.keys()
    moved = {key.rsplit(".", 1)[1] for key in end if not torch.equal(start[key], end[key])}
    assert moved <= {"codebook", "weight"}  # weights are written as the entries they belong to
    assert "codebook" in moved


@pytest.mark.slow
def test_interrupted_quantized_run_ends_as_if_nothing_had_happened(
    run_of: Callable[[str], Path],
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from amc_compress.runs.storage.trials import TrialRecorder

    whole, out = run_of("codebook"), tmp_path / "run"
    command = ["compress", *SMALL, *LEARNERS["codebook"], "--out", str(out)]
    append, calls = TrialRecorder._append, []

    def stop_at_the_second(recorder: TrialRecorder, trial: Any) -> None:
        calls.append(trial)
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(recorder, trial)

    with monkeypatch.context() as patch:
        patch.setattr(TrialRecorder, "_append", stop_at_the_second)
        assert "--resume" in fails(*command, code=130)
    assert run([*command, "--resume"]) == 0
    assert (out / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    assert (out / "model.packed").read_bytes() == (whole / "model.packed").read_bytes()
    expected = safetensors.torch.load_file(whole / "model.safetensors")
    got = safetensors.torch.load_file(out / "model.safetensors")
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_folder_from_before_quantization_opens(copy: Path) -> None:
    path = copy / "config.json"
    document = json.loads(path.read_text())
    for name in ("learner", "cost_table", "weight_bits", "activation_bits", "first_last_bits",
                 "granularity", "bucket_size", "weight_range", "activation_range",
                 "affine_weights", "learned_steps", "codebook_mode", "codebook_init",
                 "quantizer"):  # fmt: skip
        del document["options"][name]
    path.write_text(json.dumps(document))
    state = json.loads((copy / "state.json").read_text())
    del state["stages"]["evaluate"]["bits"]
    (copy / "state.json").write_text(json.dumps(state))
    assert RunFolder.open(copy).config.learner == "channels"
    assert run(["evaluate", str(copy)]) == 0
    assert run(["report", str(copy)]) == 0


def test_damaged_structure_is_named(
    run_of: Callable[[str], Path], tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = Path(shutil.copytree(run_of("uniform"), tmp_path / "run"))
    path = out / "model.safetensors"
    content = path.read_bytes()
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    facts = json.loads(metadata["amc-network"])
    facts["structure"]["colour"] = facts["structure"].pop("version")
    metadata["amc-network"] = json.dumps(facts)
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(content), metadata=metadata))
    assert "version" in fails("evaluate", str(out))


@pytest.mark.slow
def test_budget_on_a_table_of_ones_own(tmp_path: Path, fails: Callable[..., str]) -> None:
    table, out = tmp_path / "board.json", tmp_path / "run"
    kinds = ["--precision", "fp32", "--precision", "w4a8", "--precision", "w8a8"]
    assert run(["latency-table", "--model", "digitsnet", "--input", "1x8x8", "--points", "3",
                "--template", *kinds, "--out", str(table), "-q"]) == 0  # fmt: skip
    document = json.loads(table.read_text())
    speed = {"fp32": 32, "w4a8": 4, "w8a8": 8}
    for layer in document["layers"]:
        size = float(np.prod(layer["kernel"]) * np.prod(layer["input_size"]))
        widths = np.multiply.outer(layer["in_widths"], layer["out_widths"])
        for name in layer["values"]:
            shape = np.shape(layer["values"][name])
            layer["values"][name] = (size * speed[name] * widths).reshape(shape).tolist()
    table.write_text(json.dumps(document))
    options = ["--learner", "uniform", "--weight-bits", "4,8", "--cost-table", str(table)]
    small = [o for o in SMALL if o not in ("--epochs", "1")]
    search = ["search", *small, *options, "--out", str(out)]
    assert "reachable" in fails(*search, "--budget", "latency=0.1")
    assert run([*search, "--budget", "latency=0.18"]) == 0
    for line in (out / "trials.jsonl").read_text().splitlines():
        trial = json.loads(line)
        assert trial["cost_ratio"]["latency"] <= 0.18
        assert trial["cost_ratio"]["latency"] >= 0.125  # 4 of 32 everywhere


def test_bits_are_written_for_other_libraries(
    run_of: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[..., str],
) -> None:
    out = Path(shutil.copytree(run_of("uniform"), tmp_path / "run"))
    bits = {k: v for k, v in RunFolder.open(out).read_plan().items() if k.endswith("weight_bits")}
    capsys.readouterr()
    for name in BIT_FORMATS[:-1]:
        command = ["export", str(out), "--format", name, "--group-size", "16", "--quiet"]
        assert run(command) == 0
        written = Path(capsys.readouterr().out.strip())
        assert written == out / f"{name}.json"
        found = json.loads(written.read_text())
        if name == "auto-round":
            assert bits.items() <= {f"{k}:weight_bits": v["bits"] for k, v in found.items()}.items()
            assert {layer["group_size"] for layer in found.values()} == {
                -1,
                16,
            }  # 9 and 16 n inputs
    assert "a network of transformers" in fails("export", str(out), "--format", LLAMA_CPP)

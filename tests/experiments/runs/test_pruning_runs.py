"""Runs of every pruning learner, from the command line to the files that others load."""

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
from support.runs.killed import Killed, dies_after
from torch import nn

from amc_compress.cli import run
from amc_compress.config.run_config import RunConfig
from amc_compress.data import load_data
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.packing.packed_file import load_packed
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import load_weights
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.networks import build_original, example_input, load_compressed, load_original
from amc_compress.runs.problem import make_problem
from amc_compress.runs.task import facts_of, load_splits
from amc_env import Budget, CompressionPlan

SMALL = ["--weights", WEIGHTS, "--agent", "random", "--evaluations", "2", "--epochs", "2",
         "--n-validation", "100", "--precision", "fp32", "--quiet", "--no-export"]  # fmt: skip
LEARNERS = {
    "group-lasso": ["--learner", "group-lasso", "--round-to", "4"],
    "remastered": ["--learner", "remastered", "--round-to", "4"],
    "discrimination": ["--learner", "discrimination", "--block-steps", "3",
                       "--discrimination-stages", "1", "--round-to", "4"],
    "sparse": ["--learner", "sparse"],
    "2:4": ["--learner", "sparse", "--pattern", "2:4", "--schedule", "one-shot",
            "--protocol", "uniform"],
    "deep": ["--learner", "deep", "--weight-bits", "3,5", "--retraining-epochs", "2",
             "--budget", "bytes=0.15"],
    "joint": ["--learner", "joint", "--density", "--weight-bits", "4,8", "--round-to", "8",
              "--budget", "macs=0.6,bytes=0.15"],
    "fading": ["--sparse-training", "group-lasso", "--sparse-epochs", "2", "--round-to", "4"],
    "groups": ["--finetune-groups", "2", "--group-epochs", "1", "--round-to", "4"],
}  # fmt: skip
# Two epochs are too few for channels to fade, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:Expected the channels that are to be cut")

QUICK = ("sparse",)


def of_all(names: Any) -> list[Any]:
    """The learners as parameters; those that are not quick are for the long tests."""
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture
def run_of(run_made: Callable[..., Path]) -> Callable[[str], Path]:
    """Returns the finished run of a learner, made once."""
    return lambda learner: run_made(
        f"pruning-{learner.replace(':', '-')}", *SMALL, *LEARNERS[learner]
    )


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


def effective_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    masked = masked_layers(network)
    return {
        name: masked[name].masked_weight() if name in masked else module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("learner", of_all(LEARNERS))
def test_run_ends_with_a_network_within_its_budget_that_loads(
    learner: str, run_of: Callable[[str], Path]
) -> None:
    out = run_of(learner)
    summary = summary_of(out)
    test = load_data("digits").test
    network = load_compressed(out)
    with torch.no_grad():
        accuracy = (network(test.images.float()).argmax(1) == test.labels).float().mean().item()
    assert summary["compressed"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.4
    for line in (out / "trials.jsonl").read_text().splitlines():
        ratio = json.loads(line)["cost_ratio"]
        assert all(low <= ratio[n] <= high for n, (low, high) in summary["budget"].items())
    page = (out / "report.html").read_text()
    assert "$" not in page.split("</style>")[1].replace("$ ", "")


@pytest.mark.parametrize("learner", of_all(["sparse", "2:4", "deep", "joint"]))
def test_zeros_are_counted_and_survive_every_file(
    learner: str, run_of: Callable[[str], Path]
) -> None:
    out = run_of(learner)
    folder, summary = RunFolder.open(out), summary_of(out)
    original, network = load_original(folder), load_compressed(out)
    images = load_data("digits").test.images[:50].float()
    weights = effective_weights(network)
    places = sum(w.numel() for w in effective_weights(original).values())
    density = sum(int(w.count_nonzero()) for w in weights.values()) / places
    # Training may add a zero that no mask has asked for.
    assert density == pytest.approx(summary["compressed"]["density"], abs=2e-3)
    assert summary["original"]["density"] == 1.0
    assert density < 0.9
    packed = load_packed(out / "model.packed", original)
    with torch.no_grad():
        assert torch.equal(packed(images), network(images))
    assert summary["compressed"]["bytes"] == (out / "model.packed").stat().st_size
    plan = CompressionPlan.from_json((out / "plan.json").read_text())
    if learner != "joint":  # there the density is of what the channels have left
        for name, (left, size) in summary["densities"].items():
            assert left <= round(plan[f"{name}:density"] * size)


@pytest.mark.slow
def test_rule_meets_its_density_without_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--learner", "sparse", "--protocol", "global", "--budget", "density=0.3"]
    small = ["--weights", WEIGHTS, "--n-validation", "100", "--precision", "fp32"]
    assert run(["search", *small, *options, "--out", str(out)]) == 0
    assert "density by rule: global" in capsys.readouterr().err
    (line,) = (out / "trials.jsonl").read_text().splitlines()
    trial = json.loads(line)
    assert 0.29 < trial["cost_ratio"]["density"] <= 0.3
    assert trial["plan"] == dict(CompressionPlan.from_json((out / "plan.json").read_text()))
    # Of all layers the smallest go, so that large layers, of small weights, lose more.
    folder = RunFolder.open(out)
    weights = effective_weights(load_original(folder))
    limit = torch.cat([w.detach().abs().flatten() for w in weights.values()]).quantile(0.7)
    for name, weight in weights.items():
        requested = float((weight.abs() > limit).float().mean())
        assert trial["plan"][f"{name}:density"] == pytest.approx(max(requested, 0.02), abs=0.06)


@pytest.mark.slow
def test_zeros_are_in_the_onnx_file(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    out = Path(shutil.copytree(run_of("sparse"), tmp_path / "run"))
    assert run(["export", str(out), "--quiet"]) == 0
    model = onnx.load(str(out / "model.onnx"))
    stored = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
    weights = [w for w in stored if w.ndim in (2, 4) and w.size > 100]
    left = sum(int(np.count_nonzero(w)) for w in weights) / sum(w.size for w in weights)
    assert left == pytest.approx(summary_of(out)["compressed"]["density"], abs=0.01)
    assert not any("mask" in t.name for t in model.graph.initializer)


@pytest.mark.slow
def test_fine_tuning_anew_without_the_teacher_of_before(
    run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(run_of("group-lasso"), tmp_path / "run"))
    other = ["--teacher", "digitsnet", "--teacher-weights", WEIGHTS, "--feature-matching", "10"]
    assert run(["finetune", str(out), *other, "--quiet"]) == 0
    with_teacher = (out / "model.safetensors").read_bytes()
    none = ["--teacher", "none", "--feature-matching", "0"]
    assert run(["finetune", str(out), *none, "--quiet"]) == 0
    assert RunFolder.open(out).config.teacher_weights is None
    assert (out / "model.safetensors").read_bytes() != with_teacher
    assert run(["finetune", str(out), "--teacher", "original", "--quiet"]) == 0
    assert run(["compress", *SMALL, *LEARNERS["group-lasso"], "--out", str(out), "--resume"]) == 0


@pytest.mark.slow
def test_hooks_without_the_learner_are_those_of_the_learner() -> None:
    config = RunConfig(learner="sparse", n_validation=20, precision="fp32", epochs=40)
    data = load_splits(config)
    model = build_original("digitsnet", facts_of(data))
    learner: Any = config.spec.prepare(data, model)
    network = learner.compress(learner.plan_for("uniform", 0.5))
    steps = 40 * len(data.train)
    (own,), (ours,) = (
        learner.training_hooks(network),
        config.spec.hooks(model, network, steps),
    )
    for hook in (own, ours):
        hook.start(network, None, steps)
    assert own.identity() == ours.identity()
    assert ours.schedule.frequency == steps // 2 // 20
    for name in ("learning_rate", "weight_decay", "gradient_clip"):
        wanted = {"learning_rate": 0.02, "weight_decay": 5e-4, "gradient_clip": None}[name]
        assert getattr(config.spec.training_config(), name) == wanted


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"learner": "sparse", "pattern": "block2", "ignore": ("stage1",)},
            marks=pytest.mark.slow,
        ),
        {"learner": "sparse", "pattern": "2:4"},
        pytest.param({"learner": "deep", "weight_bits": "2,4"}, marks=pytest.mark.slow),
        pytest.param(
            {"learner": "joint", "density": True, "weight_bits": "3,6"}, marks=pytest.mark.slow
        ),
    ],
)
def test_what_is_checked_before_the_work_is_what_the_learner_decides(
    options: dict[str, Any],
) -> None:
    config = RunConfig(n_validation=20, precision="fp32", **options)
    data = load_splits(config)
    facts = facts_of(data)
    model = build_original("digitsnet", facts)
    load_weights(model, Path(WEIGHTS))
    problem = make_problem(config, trace(model, example_input(facts), ignore=config.ignore))
    learner: Any = config.spec.prepare(data, model)
    assert problem.decisions == learner.decisions
    rng = np.random.default_rng(0)
    values = [rng.choice(d.choices) for d in learner.decisions]
    for name in ("macs", "params", "density", "mean_bits"):
        assert problem.costs[name](values) == pytest.approx(learner.cost_models[name](values))
    # The bytes of a learner are measured ones; before the work they are a guess at the same.
    assert problem.costs["bytes"](values) == pytest.approx(
        learner.cost_models["bytes"](values), rel=0.25
    )
    assert Budget.parse(str(config.budget)) == config.budget


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["sparse", "deep", "fading", "groups"])
def test_killed_run_ends_with_the_same_plan_and_metrics(
    learner: str, run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import amc_compress.learners.training.loop as training
    from amc_compress.runs.storage.trials import TrialRecorder

    whole, killed = run_of(learner), tmp_path / "run"
    command = ["compress", *SMALL, *LEARNERS[learner], "--out", str(killed)]

    # In the search, after the first epoch, and after the first one of the training that follows
    # where there are two; else the second moment is in the same training.
    moments = [
        (TrialRecorder, "_append", 1),
        (training, "save_last", 1),
        (training, "save_last", 1),
    ]
    if learner == "deep":  # whose preparation takes long
        moments = moments[1:2]
    for number, (owner, name, calls) in enumerate(moments):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies_after(calls, getattr(owner, name)))
            with pytest.raises(Killed):
                run([*command, *(["--resume"] if number else [])])
        (killed / ".lock").unlink()  # a killed process holds none
    assert run([*command, "--resume"]) == 0
    assert (killed / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    expected = safetensors.torch.load_file(whole / "model.safetensors")
    got = safetensors.torch.load_file(killed / "model.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    summaries = [summary_of(out) for out in (killed, whole)]
    for summary in summaries:
        del summary["seconds"], summary["cpu_seconds_per_episode"]
        for network in ("original", "compressed"):  # there where a test has exported the whole run
            for key in ("latency_ms", "onnx_bytes"):
                summary[network].pop(key, None)
    assert summaries[0] == summaries[1]

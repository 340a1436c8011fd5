"""Options of pruning: what they mean, and what is rejected before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.runs.command_line import WEIGHTS

from amc_compress.commands.values import config_from
from amc_compress.config.run_config import RunConfig
from amc_compress.config.values import CHANNEL_LEARNERS, of_how_many
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import make_model
from amc_compress.runs.problem import check_feasible, make_problem
from amc_env import CompressionPlan, InfeasibleBudgetError


def test_patterns_are_read() -> None:
    assert of_how_many("2:4") == (2, 4)
    assert of_how_many("4:8") == (4, 8)
    assert of_how_many("unstructured") is of_how_many("block4") is None


@pytest.mark.parametrize("pattern", ["", "4:2", "0:4", "2:2", "block", "block0", "2x4", "dense"])
def test_other_patterns_are_rejected(pattern: str) -> None:
    with pytest.raises(ValueError, match="--pattern as unstructured, block4"):
        RunConfig(learner="sparse", pattern=pattern)


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({"learner": "group-lasso"}, "macs=0.5"),
        ({"learner": "sparse"}, "density=0.25"),
        ({"learner": "sparse", "pattern": "2:4"}, "density=0.55"),
        ({"learner": "sparse", "pattern": "1:8"}, "density=0.25"),
        ({"learner": "sparse", "min_density": 0.4}, "density=0.4"),
    ],
)
def test_budget_is_one_that_the_learner_can_meet(options: dict[str, object], budget: str) -> None:
    assert str(RunConfig(**options).budget) == budget  # type: ignore[arg-type]


@pytest.mark.parametrize("learner", [*CHANNEL_LEARNERS, "sparse"])
def test_what_a_learner_does_follows_from_its_name(learner: str) -> None:
    config = RunConfig(learner=learner)
    assert config.spec.prunes is (learner != "sparse")
    assert config.spec.sparsifies is config.spec.packs is (learner == "sparse")
    assert not config.spec.quantizes
    assert config.spec.decides
    assert (config.learning_rate, config.weight_decay) == (0.02, 5e-4)
    assert RunConfig(learner="sparse", protocol="uniform").spec.decides is False


def test_deep_compression_has_the_defaults_of_its_paper() -> None:
    deep = RunConfig(learner="deep")
    assert (deep.activation_bits, deep.first_last_bits) == ("16", None)
    assert (deep.codebook_mode, deep.granularity) == ("clusters", "tensor")
    assert (str(deep.budget), deep.learning_rate, deep.weight_decay) == ("bytes=0.1", 0.001, 0.0)
    assert deep == RunConfig.from_dict(deep.to_dict())  # none is a value, not what is not given
    given = config_from({"learner": "deep", "activation_bits": "8", "first_last_bits": "8"})
    assert (given.activation_bits, given.first_last_bits) == ("8", 8)
    assert RunConfig(learner="joint", density=True).spec.sparsifies
    assert deep.spec.sparsifies
    assert deep.spec.quantizes
    assert deep.spec.decides
    assert not deep.spec.prunes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learner", "group-lasso", "--criterion", "l2"], "--criterion has no effect"),
        (["--learner", "remastered", "--criterion", "l2"], "of --learner channels and joint"),
        (["--learner", "remastered", "--block-steps", "9"], "option of --learner discrimination"),
        (["--discrimination-stages", "1"], "--discrimination-stages has no effect"),
        (["--learner", "discrimination", "--block-steps", "0"], "--block-steps >= 1"),
        (["--learner", "discrimination", "--discrimination-stages", "0"], "stages >= 1"),
        (["--learner", "group-lasso", "--weight-bits", "4"], "uniform, codebook and joint"),
        (["--learner", "group-lasso", "--budget", "macs=0.001"], "reachable"),
        (["--learner", "sparse", "--round-to", "4"], "--round-to has no effect"),
        (["--min-ratio", "1"], "below 1 with --learner channels, got 1"),
        (["--depth-scores", "influence"], "--depth-scores has no effect without --depth"),
        (["--learner", "uniform", "--depth"], "option of --learner channels and joint"),
        (["--learner", "sparse", "--criterion", "l2"], "--criterion has no effect"),
        (["--pattern", "2:4"], "option of --learner sparse"),
        (["--protocol", "global"], "option of --learner sparse"),
        (["--min-density", "0.1"], "option of --learner sparse"),
        (["--schedule", "one-shot"], "option of --learner sparse"),
        (["--schedule-begin", "0.1"], "option of --learner sparse"),
        (["--learner", "sparse", "--protocol", "magic"], "--protocol"),
        (["--learner", "sparse", "--pattern", "4:4"], "--pattern"),
        (["--learner", "sparse", "--min-density", "0"], "--min-density in (0, 1]"),
        (["--learner", "sparse", "--schedule", "steep"], "--schedule"),
        (["--learner", "sparse", "--schedule-begin", "0.6"], "no later than --schedule-end"),
        (["--learner", "sparse", "--schedule-end", "1.5"], "--schedule-end in [0, 1]"),
        (["--learner", "sparse", "--schedule-exponent", "0"], "--schedule-exponent > 0"),
        (["--learner", "sparse", "--schedule-frequency", "0"], "--schedule-frequency >= 1"),
        (["--learner", "sparse", "--schedule", "one-shot", "--schedule-end", "0.7"],
         "option of --schedule gradual"),
        (["--learner", "sparse", "--pattern", "2:4", "--min-density", "0.6"],
         "--min-density has no effect with --pattern 2:4"),
        (["--learner", "sparse", "--budget", "density=0.01"], "reachable"),
        (["--learner", "sparse", "--repair", "sparsegpt", "--pattern", "block4"],
         "no effect with --pattern block4"),
        (["--learner", "sparse", "--repair", "sparsegpt", "--proxy", "recalibration"],
         "no effect with --proxy recalibration"),
        (["--learner", "sparse", "--pattern", "128:256"], "all layers stay dense"),
        (["--learner", "sparse", "--ignore", "no_such_layer"], "no_such_layer"),
        (["--learner", "sparse", "--protocol", "uniform", "--budget", "bytes=0.3"],
         "--protocol uniform distributes one density"),
        # Fine-tuning: who teaches, and how channels are cut.
        (["--teacher", "resnet21"], "FILE to know anything; got 'resnet21'"),
        (["--teacher", "resnet21", "--teacher-weights", WEIGHTS], "Unknown model 'resnet21'"),
        (["--teacher", "lenet", "--teacher-weights", WEIGHTS], "do not fit this network"),
        (["--teacher", "digitsnet", "--teacher-weights", "missing.pt"], "missing.pt"),
        (["--teacher-weights", WEIGHTS], "--teacher-weights has no effect with --teacher original"),
        (["--teacher", "none", "--feature-matching", "9"], "has no effect with --teacher none"),
        (["--feature-matching", "-1"], "--feature-matching >= 0"),
        (["--sparse-training", "shrinking"], "--sparse-training"),
        (["--sparse-training", "growing", "--sparse-epochs", "0"], "--sparse-epochs >= 1"),
        (["--sparse-epochs", "5"], "--sparse-epochs has no effect without --sparse-training"),
        (["--sparse-strength", "2"], "--sparse-strength has no effect without --sparse-training"),
        (["--sparse-training", "growing", "--sparse-strength", "0"], "--sparse-strength > 0"),
        (["--finetune-groups", "0"], "--finetune-groups >= 1"),
        (["--group-epochs", "5"], "--group-epochs has no effect without --finetune-groups"),
        (["--sparse-training", "growing", "--finetune-groups", "2"], "exclude each other"),
        (["--finetune-groups", "2", "--progressive", "2"], "exclude each other"),
        (["--learner", "sparse", "--sparse-training", "growing"], "option of --learner channels"),
        (["--learner", "joint", "--finetune-groups", "2"], "option of --learner channels"),
        (["--learner", "uniform", "--progressive", "2"], "--progressive has no effect"),
        (["--learner", "sparse", "--stages", "0.5"], "--stages has no effect"),
        (["--progressive", "0"], "--progressive >= 1"),
        (["--stage-epochs", "5"], "--stage-epochs has no effect without --progressive"),
        (["--progressive", "2", "--stages", "0.75"], "exclude each other"),
        (["--stages", "0.5,0.75"], "falling shares"),
        (["--stages", "half"], "as numbers with commas"),
        # Densities together with bits.
        (["--learner", "deep", "--epochs", "0"], "--epochs >= 1 with --learner deep"),
        (["--learner", "deep", "--retraining-epochs", "0"], "--retraining-epochs >= 1"),
        (["--learner", "deep", "--feature-matching", "9"], "has no effect on --learner deep"),
        (["--learner", "deep", "--protocol", "global"], "--protocol has no effect"),
        (["--learner", "deep", "--budget", "bytes=0.001"], "reachable"),
        (["--learner", "sparse", "--retraining-epochs", "3"], "option of --learner deep"),
        (["--learner", "deep", "--density"], "option of --learner joint"),
        (["--density"], "--density has no effect on --learner channels"),
        (["--learner", "joint", "--pattern", "2:4"], "without --density"),
        (["--learner", "joint", "--min-density", "0.1"], "without --density"),
        (["--learner", "joint", "--density", "--schedule", "one-shot"], "--schedule has no effect"),
        (["--progressive", "2", "--cost-table", "table.json"], "--cost-table counts by the layers"),
    ],
)  # fmt: skip
def test_mistake_gives_one_sentence_and_leaves_no_folder(
    tmp_path: Path, fails: Callable[..., str], options: list[str], message: str
) -> None:
    out = tmp_path / "run"
    sentence = fails("compress", "--weights", WEIGHTS, *options, "--out", str(out), "-q")
    assert message in sentence
    assert not out.exists()


def test_estimated_bytes_of_sparse_networks_reject_only_what_is_far_off() -> None:
    network = make_model("digitsnet", n_classes=10, in_channels=1, image_size=8).eval()
    traced = trace(network, torch.zeros(1, 1, 8, 8))
    problem = make_problem(RunConfig(learner="sparse"), traced)
    smallest = CompressionPlan({d.key: d.choices[0] for d in problem.decisions})
    least = problem.cost(smallest)["bytes"] / problem.original()["bytes"]
    check_feasible(RunConfig(learner="sparse", budget=f"bytes={0.9 * least:.5f}"), problem)
    with pytest.raises(InfeasibleBudgetError, match="bytes"):
        check_feasible(RunConfig(learner="sparse", budget=f"bytes={0.5 * least:.5f}"), problem)

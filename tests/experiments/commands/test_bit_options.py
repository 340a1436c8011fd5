"""Options of quantization: what they mean, and what is rejected before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs.command_line import WEIGHTS
from support.selection import quick

from amc_compress.commands.values import config_from
from amc_compress.config.bit_widths import as_choice, bits_text, parse_bits
from amc_compress.config.run_config import RunConfig
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.networks import build_original, example_input
from amc_compress.runs.problem import check_feasible, make_problem
from amc_compress.runs.task import facts_of, load_splits
from amc_env import Budget, CompressionPlan


@pytest.mark.parametrize(
    ("text", "bits", "canonical"),
    [
        ("4", (4,), "4"),
        ("2-8", (2, 3, 4, 5, 6, 7, 8), "2-8"),
        ("8,2,4", (2, 4, 8), "2,4,8"),
        ("2-4,8,16", (2, 3, 4, 8, 16), "2-4,8,16"),
        ("7-16", (7, 8, 16), "7,8,16"),
    ],
)
def test_bits_are_read_and_written(text: str, bits: tuple[int, ...], canonical: str) -> None:
    assert parse_bits("--weight-bits", text) == bits
    assert bits_text(bits) == canonical
    assert parse_bits("--weight-bits", canonical) == bits
    assert as_choice(bits) == (bits[0] if len(bits) == 1 else bits)


@pytest.mark.parametrize("text", ["", "1", "9", "0-4", "8-2", "four", "2-8-16", "-4", "32", "4,"])
def test_other_bits_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="--weight-bits between 2 and 8"):
        parse_bits("--weight-bits", text)


def test_budget_and_learning_rate_are_the_learners_own_if_not_given() -> None:
    assert (str(RunConfig().budget), RunConfig().learning_rate) == ("macs=0.5", 0.02)
    codebook = RunConfig(learner="codebook")
    assert (str(codebook.budget), codebook.learning_rate) == ("mean_bits=0.125", 0.001)
    assert RunConfig(learner="codebook", codebook_mode="weights").learning_rate == 0.003
    assert RunConfig(learner="uniform").learning_rate == 0.01
    assert [RunConfig(learner=x).weight_decay for x in ("channels", "uniform")] == [5e-4, 0.0]
    given = RunConfig(learner="uniform", learning_rate=0.3, weight_decay=0.1)
    assert (given.learning_rate, given.weight_decay) == (0.3, 0.1)
    assert (RunConfig(learner="uniform").granularity, codebook.granularity) == ("channel", "tensor")
    assert str(RunConfig(learner="joint").budget) == "bytes=0.15,macs=0.5"
    assert RunConfig(learner="joint", quantizer="codebook").learning_rate == 0.001
    adamw = RunConfig(optimizer="adamw")
    assert (adamw.learning_rate, adamw.weight_decay) == (5e-4, 0.01)
    assert adamw.spec.training_config().optimizer == "adamw"
    assert RunConfig(learner="uniform", optimizer="adamw").learning_rate == pytest.approx(2.5e-4)
    assert not RunConfig(learner="uniform", weight_bits="4").spec.decides
    assert RunConfig(learner="uniform", weight_bits="4", activation_bits="4,8").spec.decides
    assert RunConfig(learner="joint", weight_bits="4").spec.decides


@pytest.mark.parametrize("learner", quick(["uniform", "codebook", "joint"], "uniform"))
def test_default_training_is_that_of_the_learner_itself(learner: str) -> None:
    config = RunConfig(learner=learner, n_validation=20, precision="fp32", weight_bits="8")
    data = load_splits(config)
    made: Any = config.spec.prepare(data, build_original("digitsnet", facts_of(data)))
    own, ours = made.training_defaults(), config.spec.training_config()
    for name in ("learning_rate", "weight_decay", "gradient_clip"):
        assert getattr(ours, name) == getattr(own, name)


@pytest.mark.parametrize(
    ("weights", "inputs", "ends", "budget"),
    [
        ("2-8", "8", 8, "mean_bits=0.125"),
        ("2-8", "2-8", None, "mean_bits=0.125"),
        ("5-8", "8", 8, "mean_bits=0.1976"),  # sqrt(5 * 8) / 32
        ("2,3", "8", 8, "mean_bits=0.08125"),  # (0.9 * 2 + 0.1 * 8) / 32
        ("2,3", "8", None, "mean_bits=0.07655"),
        ("8", "4,8", 8, "bops=0.04419"),  # 8 * sqrt(4 * 8) / 1024
        ("16", "2-8", 8, "bops=0.125"),  # 32 * 4 / 1024
        ("4", "2-4", 8, "bops=0.01328"),  # (0.9 * 4 * 2 + 0.1 * 8 * 8) / 1024
        ("4", "8", 8, "mean_bits=1.0"),
    ],
)
@pytest.mark.parametrize("learner", ["uniform", "codebook"])
def test_default_budget_is_in_the_middle_of_the_bits_and_can_be_met(
    learner: str, weights: str, inputs: str, ends: int | None, budget: str, digitsnet: TracedModel
) -> None:
    config = RunConfig(
        learner=learner, weight_bits=weights, activation_bits=inputs, first_last_bits=ends
    )
    assert str(config.budget) == budget
    problem = make_problem(config, digitsnet)
    check_feasible(config, problem)
    if config.spec.decides:
        most = problem.cost(CompressionPlan.full(problem.decisions))
        ratio = {name: most[name] / cost for name, cost in problem.original().items()}
        assert not Budget.parse(budget).is_met(ratio)  # else it would not decide anything


@pytest.mark.parametrize("bits", ["2-8", "2", "5-8", "8", "16", "4,16"])
def test_default_budget_of_cutting_and_quantizing_can_be_met(
    bits: str, digitsnet: TracedModel
) -> None:
    config = RunConfig(learner="joint", weight_bits=bits)
    check_feasible(config, make_problem(config, digitsnet))


@pytest.fixture(scope="module")
def digitsnet() -> TracedModel:
    facts = DataFacts("digits", 10, (1, 8, 8), ())
    return trace(build_original("digitsnet", facts), example_input(facts))


def test_equal_options_written_differently_are_the_same_run() -> None:
    one = RunConfig(learner="uniform", weight_bits="2,3,4,5,6,7,8", budget="mean_bits=4/32")
    assert one == RunConfig(learner="uniform", weight_bits="2-8", budget="mean_bits=.125")
    assert one == RunConfig.from_dict(one.to_dict())


def test_command_line_becomes_options(tmp_path: Path) -> None:
    config = config_from({
        "learner": "uniform", "first_last_bits": "none",
        "cost_table": [f"{tmp_path}/a.json,{tmp_path}/b.json", f"{tmp_path}/c.json"],
    })  # fmt: skip
    assert config.first_last_bits is None
    assert [Path(p).name for p in config.cost_table] == ["a.json", "b.json", "c.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learner", "magic"], "--learner"),
        (["--learner", "uniform", "--weight-bits", "1-4"], "--weight-bits between 2 and 8"),
        (["--learner", "uniform", "--activation-bits", "12"], "--activation-bits between 2 and 8"),
        (["--learner", "uniform", "--first-last-bits", "9"], "--first-last-bits between 2 and 8"),
        (["--learner", "uniform", "--first-last-bits", "4,8"], "one number or none"),
        (["--learner", "uniform", "--granularity", "row"], "--granularity"),
        (["--learner", "uniform", "--bucket-size", "1"], "--bucket-size >= 2"),
        (["--learner", "uniform", "--weight-range", "wide"], "--weight-range"),
        (["--learner", "uniform", "--activation-range", "wide"], "--activation-range"),
        (["--learner", "codebook", "--codebook-mode", "some"], "--codebook-mode"),
        (["--learner", "codebook", "--codebook-init", "zero"], "--codebook-init"),
        (["--learner", "joint", "--quantizer", "linear"], "--quantizer"),
        (["--weight-bits", "4"], "--weight-bits has no effect on --learner channels"),
        (["--learner", "uniform", "--round-to", "4"], "--round-to has no effect"),
        (["--learner", "uniform", "--codebook-init", "quantile"], "deep, codebook and joint"),
        (["--learner", "codebook", "--learned-steps"], "--learned-steps has no effect"),
        (["--learner", "joint", "--codebook-mode", "weights"],
         "joint with --quantizer uniform"),
        (["--learner", "uniform", "--proxy", "reconstruction"], "repairs cut layers"),
        (["--learner", "uniform", "--budget", "macs=0.5"], "macs 1.0000"),
        (["--learner", "uniform", "--budget", "mean_bits=1/32"], "reachable"),
        (["--learner", "uniform", "--weight-bits", "8", "--budget", "mean_bits=4/32"],
         "All bits are fixed"),
        (["--learner", "uniform", "--budget", "latency=0.5"], "--cost-table"),
        (["--learner", "uniform", "--reward", "accuracy_latency"], "latency"),
        (["--learner", "uniform", "--cost-table", "missing.json"], "missing.json"),
        (["--learner", "uniform", "--ignore", "no_such_layer"], "no_such_layer"),
        (["--learner", "uniform", "--ignore", "stem.1"], "Give --ignore one of these"),
        (["--learner", "uniform", "--weight-bits", "16", "--activation-bits", "16"],
         "quantize nothing"),
        (["--learner", "joint", "--weight-bits", "16", "--activation-bits", "16"],
         "quantize nothing"),
        (["--learner", "uniform", "--bucket-size", "64"], "--granularity split"),
        (["--learner", "uniform", "--group-size", "64"], "--granularity group"),
        (["--learner", "uniform", "--act-order"], "--rounding gptq"),
        (["--learner", "codebook", "--granularity", "group"], "no effect on codebooks"),
        (["--learner", "codebook", "--weight-range", "lsq"], "--weight-range has no effect"),
        # What the file's header takes makes the difference.
        (["--learner", "uniform", "--budget", "bytes=0.071"], "grid: bytes 0.071"),
        (["--learner", "uniform", "--weight-bits", "4", "--budget", "bytes=0.132"],
         "All bits are fixed"),
    ],
)  # fmt: skip
def test_mistake_gives_one_sentence_and_leaves_no_folder(
    tmp_path: Path, fails: Callable[..., str], options: list[str], message: str
) -> None:
    out = tmp_path / "run"
    sentence = fails("compress", "--weights", WEIGHTS, *options, "--out", str(out), "-q")
    assert message in sentence
    assert not out.exists()

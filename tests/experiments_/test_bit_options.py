"""Options of quantization: what they mean, and what is refused before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import WEIGHTS

from experiments.bit_widths import as_choice, bits_text, parse_bits
from experiments.commands.values import config_from
from experiments.configs import RunConfig


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
def test_other_bits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--weight-bits between 2 and 8"):
        parse_bits("--weight-bits", text)


def test_budget_and_learning_rate_are_the_learners_own_if_not_given() -> None:
    assert (RunConfig().budget, RunConfig().learning_rate) == ("macs=0.5", 0.02)
    codebook = RunConfig(learner="codebook")
    assert (codebook.budget, codebook.learning_rate) == ("mean_bits=0.125", 0.01)
    assert (RunConfig(learner="uniform").granularity, codebook.granularity) == ("channel", "tensor")
    assert RunConfig(learner="joint").budget == "bytes=0.15,macs=0.5"
    assert RunConfig(learner="joint", quantizer="codebook").learning_rate == 0.01
    assert not RunConfig(learner="uniform", weight_bits="4").decides
    assert RunConfig(learner="uniform", weight_bits="4", activation_bits="4,8").decides
    assert RunConfig(learner="joint", weight_bits="4").decides


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
        (["--learner", "uniform", "--codebook-init", "quantile"], "--learner codebook and joint"),
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
        (["--learner", "uniform", "--weight-bits", "16", "--activation-bits", "16",
          "--first-last-bits", "16"], "quantize nothing"),
    ],
)  # fmt: skip
def test_mistake_gives_one_sentence_and_leaves_no_folder(
    tmp_path: Path, fails: Callable[..., str], options: list[str], message: str
) -> None:
    out = tmp_path / "run"
    sentence = fails("compress", "--weights", WEIGHTS, *options, "--out", str(out), "-q")
    assert message in sentence
    assert not out.exists()

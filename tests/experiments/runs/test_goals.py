"""``--max-drop``, ``--time-limit`` and ``--preset`` of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.runs.command_line import WEIGHTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amc_compress.cli import run
from amc_compress.config.goals import drop, floor_of
from amc_compress.config.presets import PRESETS
from amc_compress.config.run_config import RunConfig
from amc_compress.config.texts import duration
from amc_compress.runs.storage.trials import read_trials

DIGITS = ["--weights", WEIGHTS, "--round-to", "4", "--precision", "fp32", "--quiet"]


def results(out: Path, stage: str) -> dict:
    return json.loads((out / "state.json").read_text())["stages"][stage]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("45", 45), ("2 min", 120)],
)
def test_times(text, seconds):
    assert duration("--time-limit", text) == seconds


@pytest.mark.parametrize("bad", ["", "soon", "-3m", "0s", "10m5h", "1d"])
def test_other_times_are_rejected(bad):
    with pytest.raises(ValueError, match="--time-limit as a time"):
        duration("--time-limit", bad)


@pytest.mark.parametrize(
    ("text", "original", "least"),
    [("0.5", 0.915, 0.91), ("1%", 0.5, 0.495), (" 2.0 ", 0.9, 0.88), ("5%", -4.0, -4.2)],
)
def test_drops(text, original, least):
    assert floor_of(drop("--max-drop", text), original) == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("bad", ["", "little", "-1", "5%%", "1,2"])
def test_other_drops_are_rejected(bad):
    with pytest.raises(ValueError, match="--max-drop in points"):
        drop("--max-drop", bad)


def test_presets_are_defaults_that_options_override():
    for name, values in PRESETS.items():
        config = RunConfig(preset=name)
        assert {key: getattr(config, key) for key in values} == values
    mixed = RunConfig(preset="quick", evaluations=100, epochs=0)
    assert (mixed.evaluations, mixed.epochs, mixed.n_validation) == (100, 0, 1000)
    assert (RunConfig().epochs, RunConfig(data="digit-scenes").epochs) == (30, 10)
    assert RunConfig.from_dict(mixed.to_dict()) == mixed
    with pytest.raises(ValueError, match="--preset to be one of quick, standard, thorough"):
        RunConfig(preset="slow")
    with pytest.raises(ValueError, match="--evaluations >= 1"):
        RunConfig(evaluations=0)


def test_the_goal_fills_in_cost_agent_and_budget():
    config = RunConfig(max_drop="0.50")
    assert (config.max_drop, config.minimize, config.agent) == ("0.5", "macs", "ddpg-one-shot")
    assert str(config.budget) == "macs=1.0"
    assert RunConfig().agent == "ddpg-one-shot"
    assert RunConfig(max_drop=0.5) == config  # type: ignore[arg-type]
    bits = RunConfig(learner="uniform", max_drop="1%", budget="bytes<=20kB", agent="tpe")
    assert (bits.minimize, bits.agent, str(bits.budget)) == ("bytes", "tpe", "bytes<=20kB")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimize": "macs"}, "--minimize has no effect without --max-drop"),
        (
            {"learner": "uniform", "budget": "onnx_bytes<=20kB"},
            "--learner uniform quantizes, so that only the quantizer of the export settles",
        ),
        ({"max_drop_after": "finetune"}, "--max-drop-after has no effect"),
        ({"max_drop": "1", "minimize": "watts"}, "Unknown cost 'watts' in --minimize"),
        ({"max_drop": "1", "reward": "haq"}, "--max-drop is about the score"),
        ({"max_drop": "1", "progressive": 2}, "no effect on --progressive"),
        ({"time_limit": 3.0, "progressive": 2}, "--time-limit .* no effect on --progressive"),
        ({"max_drop": "1", "max_drop_after": "finetune", "epochs": 0}, "needs a fine-tuning"),
        ({"max_drop": "1", "max_drop_after": "finetune", "finetune_groups": 2}, "in one go"),
    ],
)
def test_goals_that_nothing_reads_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**options).validate(("search",))


def test_the_cheapest_plan_within_a_drop_is_the_run(tmp_path: Path):
    out = tmp_path / "drop"
    goal = ["--max-drop", "3", "--evaluations", "24", "--epochs", "0", "--no-export"]
    command = ["compress", *DIGITS, *goal, "--agent", "local", "--out", str(out)]
    assert run(command) == 0
    search, trials = results(out, "search"), read_trials(out / "trials.jsonl")
    floor = search["goal"]["floor"]
    assert search["goal"]["original"] - floor == pytest.approx(0.03)
    assert search["best"]["score"] >= floor
    kept = [t.cost_ratio["macs"] for t in trials if t.score >= floor]
    assert search["best"]["cost_ratio"]["macs"] == min(kept) < 0.9
    assert len(trials) == search["n_trials"] <= 24
    (events,) = (out / "tensorboard" / "search").iterdir()
    logged = EventAccumulator(str(events)).Reload().Scalars("info/accuracy")
    assert [event.value for event in logged] == pytest.approx([t.score for t in trials])
    # Killed in the middle and resumed: the same.
    again = tmp_path / "again"
    shutil.copytree(out, again)
    state = json.loads((again / "state.json").read_text())
    state["stages"] = {"train": state["stages"]["train"], "search": {"done": False}}
    (again / "state.json").write_text(json.dumps(state))
    lines = (again / "trials.jsonl").read_text().splitlines(keepends=True)
    (again / "trials.jsonl").write_text("".join(lines[:9]))
    assert run([*command[:-1], str(again), "--resume"]) == 0
    assert (again / "plan.json").read_text() == (out / "plan.json").read_text()
    assert len(read_trials(again / "trials.jsonl")) == len(trials)


@pytest.mark.slow
def test_a_drop_begins_where_another_run_has_come_to(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    goal = ["--max-drop", "3", "--epochs", "0", "--no-export"]
    command = ["compress", *DIGITS, *goal]
    assert run([*command, "--evaluations", "24", "--out", str(first)]) == 0
    more = ["--evaluations", "5", "--warm-start", str(first), "--seed", "0"]
    assert run([*command, *more, "--out", str(second)]) == 0
    costs = [results(out, "search")["best"]["cost_ratio"]["macs"] for out in (first, second)]
    assert costs[1] <= costs[0] < 0.9
    known = {str(trial.plan) for trial in read_trials(first / "trials.jsonl")}
    own = read_trials(second / "trials.jsonl")
    assert len(own) <= 5
    assert [t for t in own if t.source == "descent" and str(t.plan) in known] == []


@pytest.mark.slow
def test_a_drop_after_finetuning_lets_more_be_cut(tmp_path: Path):
    costs = {}
    for after in ("search", "finetune"):
        out = tmp_path / after
        goal = ["--max-drop", "2", "--max-drop-after", after, "--epochs", "3"]
        options = [*goal, "--evaluations", "40", "--agent", "local", "--no-export"]
        assert run(["compress", *DIGITS, *options, "--out", str(out)]) == 0
        costs[after] = results(out, "search")["best"]["cost_ratio"]["macs"]
        goal_facts = results(out, "search")["goal"]
    assert costs["finetune"] < costs["search"]
    kept = [level for level in goal_facts["levels"] if level["kept"]]
    assert kept[-1]["final_score"] >= goal_facts["floor"]
    tuned = results(out, "finetune")["validation_score"]
    assert tuned == pytest.approx(kept[-1]["final_score"], abs=1e-6)


def test_a_search_ends_at_the_time_limit_and_the_run_goes_on(tmp_path: Path):
    out = tmp_path / "limited"
    options = ["--agent", "random", "--evaluations", "500", "--epochs", "0", "--no-export"]
    command = ["compress", *DIGITS, *options, "--out", str(out)]
    assert run([*command, "--time-limit", "0.3s"]) == 0
    trials = read_trials(out / "trials.jsonl")
    assert 1 <= len(trials) == results(out, "search")["n_trials"] < 500
    assert sum(t.seconds for t in trials[:-1]) < 0.3 <= sum(t.seconds for t in trials)
    assert (out / "report.html").exists()

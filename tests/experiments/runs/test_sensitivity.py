"""``amc sensitivity``: each decision alone, measured before any search."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from support.runs.command_line import WEIGHTS

from amc_compress.cli import run
from amc_compress.data import load_data
from amc_compress.learners import ChannelPruning
from amc_compress.models import load_weights, make_model
from amc_env import CompressionPlan

DIGITS = ["--weights", WEIGHTS, "--round-to", "8", "--precision", "fp32"]


def test_every_decision_is_measured_alone_and_a_resume_repeats_nothing(tmp_path: Path, capsys):
    out = tmp_path / "s"
    command = ["sensitivity", *DIGITS, "--points", "2", "--out", str(out), "--quiet"]
    assert run(command) == 0
    table = capsys.readouterr().out
    rows = json.loads((out / "sensitivity.json").read_text())["rows"]

    data = load_data("digits", seed=0)
    model = make_model("digitsnet", in_channels=1)
    load_weights(model, Path(WEIGHTS))
    learner = ChannelPruning(
        model.eval(), data.calibration.images[:1], data.calibration, data.validation,
        round_to=8, precision="fp32", train=data.train,
    )  # fmt: skip
    measured = {(row["decision"], row["value"]) for row in rows}
    grids = {d.target: d.choices for d in learner.decisions}
    assert measured == {
        (target, choices[k])
        for target, choices in grids.items()
        for k in {0, (len(choices) - 1) // 2}
        if k < len(choices) - 1
    }
    for row in rows[:2]:  # by the learner itself
        values = [row["value"] if d.target == row["decision"] else 1.0 for d in learner.decisions]
        plan = CompressionPlan.from_values(learner.decisions, values)
        assert row["score"] == pytest.approx(learner.evaluate(plan), abs=1e-6)
        assert row["drop"] == pytest.approx(learner.original_score - row["score"], abs=1e-6)
    worst = max(rows, key=lambda row: row["drop"])
    assert worst["decision"] in table.splitlines()[1]
    with (out / "sensitivity.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(r["drop"]) for r in read] == pytest.approx([r["drop"] for r in rows], abs=1e-5)
    assert (out / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "sensitivity.svg").read_text()

    lines = (out / "sensitivity.jsonl").read_text().splitlines(keepends=True)
    (out / "sensitivity.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # killed
    assert run([*command, "--resume"]) == 0
    again = json.loads((out / "sensitivity.json").read_text())["rows"]
    assert [r | {"seconds": 0} for r in again] == [r | {"seconds": 0} for r in rows]
    assert [r["seconds"] for r in again[:2]] == [r["seconds"] for r in rows[:2]]  # not repeated
    capsys.readouterr()
    assert run([*command, "--resume", "--proxy", "none"]) == 2
    assert "--proxy reconstruction+recalibration there, none now" in capsys.readouterr().err

"""Rows of the pruning benchmark are found again in the file that they were written to."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from amc_compress.benchmarks.bench import read_rows
from amc_compress.benchmarks.learners import pruning_learners
from amc_compress.benchmarks.learners.pruning_learners import LEARNERS, Row, budgeted, find, main


def test_rows_that_are_there_are_not_made_again(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.jsonl"
    wanted = {"out": out, "way": ["uniform"], "teacher": ["none"], "epochs": 1, "round_to": 8}
    main(**wanted)
    (row,) = read_rows(out)
    made = Row("digitsnet", "digits", "", 8, "channels l1", 0.5, "uniform", "none", 0, 1, 0.02)
    assert find(asdict(made), [row]) == row
    assert 0.3 < row["macs"] <= 0.5
    assert 0.0 < row["left_weights"] < 1.0
    monkeypatch.setattr(pruning_learners, "measure", lambda *_: pytest.fail("made again"))
    main(**wanted)
    assert read_rows(out) == [row]
    assert "| channels l1 | 0.5 | uniform | none |" in capsys.readouterr().out


def test_what_may_be_left_is_a_share_of_what_the_learner_takes_away():
    costs = {name: budgeted(name) for name in LEARNERS}
    assert {costs[name] for name in costs if name.startswith("sparse")} == {"density"}
    assert costs["deep"] == "bytes"
    assert costs["group-lasso"] == costs["channels l1"] == costs["discrimination"] == "macs"

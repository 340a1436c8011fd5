"""The learner's estimates of single choices are computed once per run, whatever interrupts it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs.command_line import WEIGHTS

from amc_compress.cli import run
from amc_compress.learners.candidates.kept_curves import curves_of, keep_in
from amc_compress.learners.channel_pruning import learner
from amc_compress.learners.channel_pruning.curves import gradient_scores
from amc_compress.runs.storage.curves import CURVES, StoredCurves
from amc_env.plan import keep_ratio_decision

DECISIONS = (keep_ratio_decision("conv", 32, 8), keep_ratio_decision("fc", 16, 8))
SCORES = {d.key: np.linspace(1.0, 0.0, len(d.choices)) / 3.0 for d in DECISIONS}


def forget_search(out: Path) -> None:
    """Leaves one trial of the search."""
    state = json.loads((out / "state.json").read_text())
    state["stages"]["search"] = {"done": False}
    (out / "state.json").write_text(json.dumps(state))
    lines = (out / "trials.jsonl").read_text().splitlines(keepends=True)
    (out / "trials.jsonl").write_text("".join(lines[:2]))


@pytest.mark.slow
def test_a_resumed_search_reads_the_curves_or_computes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def counted(*given: Any, **more: Any) -> Any:
        computed.append(given)
        return gradient_scores(*given, **more)

    monkeypatch.setattr(learner, "gradient_scores", counted)
    out = tmp_path / "run"
    few = ("--agent", "gradient", "--evaluations", "4", "--n-validation", "50")
    arguments = ["search", "--weights", WEIGHTS, *few, "--out", str(out), "--quiet"]
    assert run(arguments) == 0
    assert len(computed) == 1
    plan, kept = (out / "plan.json").read_text(), (out / CURVES).read_text()
    for damage, times in ((None, 1), ("{", 2)):
        forget_search(out)
        if damage is not None:
            (out / CURVES).write_text(damage)
        assert run([*arguments, "--resume"]) == 0
        assert len(computed) == times
        assert (out / "plan.json").read_text() == plan
        assert (out / CURVES).read_text() == kept


def test_curves_in_a_file_are_those_that_were_kept(tmp_path: Path) -> None:
    path = tmp_path / CURVES
    stored = StoredCurves(path, "key", DECISIONS)
    assert not stored
    assert not path.exists()
    stored["gradient_scores"] = SCORES
    again = StoredCurves(path, "key", DECISIONS)
    assert list(again) == ["gradient_scores"]
    assert all(np.array_equal(again["gradient_scores"][k], v) for k, v in SCORES.items())
    assert not StoredCurves(path, "another", DECISIONS)
    assert not StoredCurves(path, "key", DECISIONS[:1])
    assert type(pickle.loads(pickle.dumps(again))) is dict
    stored["layer_errors"] = {k: v * np.nan for k, v in SCORES.items()}
    assert list(StoredCurves(path, "key", DECISIONS)) == ["gradient_scores"]


def test_a_learner_takes_what_is_there_and_gives_what_it_has(tmp_path: Path) -> None:
    class Bare:
        pass

    stored = StoredCurves(tmp_path / CURVES, "key", DECISIONS)
    bare = Bare()
    curves_of(bare)["layer_errors"] = SCORES
    keep_in(bare, stored)
    curves_of(bare)["gradient_scores"] = SCORES
    assert set(StoredCurves(tmp_path / CURVES, "key", DECISIONS)) == set(curves_of(bare))

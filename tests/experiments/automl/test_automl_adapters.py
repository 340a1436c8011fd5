"""Adapters of the AutoML comparison whose logic is ours: auto_ml's rounds, with a fake auto_ml."""

from __future__ import annotations

import multiprocessing
import runpy
import sys
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from amc_compress.automl.frameworks import FRAMEWORKS

pytest.importorskip("pandas")


class Predictor:
    """Takes as long as it is told for each round, and predicts which round it was."""

    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __init__(self, **_: Any) -> None:
        self.round = 0

    def train(self, table: Any, **options: Any) -> None:
        self.round = int(options.get("compare_all_models", False))
        self.round += int(options.get("optimize_final_model", False))
        if self.seconds[self.round] < 0:
            raise RuntimeError("no model fits")
        time.sleep(self.seconds[self.round])

    def predict(self, table: Any) -> Any:
        return np.full(len(table), self.round)


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter's function, with a fake package."""
    package, version = ModuleType("auto_ml"), ModuleType("auto_ml._version")
    package.Predictor = Predictor  # type: ignore[attr-defined]
    version.__version__ = "fake"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "auto_ml", package)
    monkeypatch.setitem(sys.modules, "auto_ml._version", version)
    monkeypatch.setattr(multiprocessing, "cpu_count", multiprocessing.cpu_count)
    # Only a fork sees the fake; older Pythons fork anyway.
    for name in ("Process", "Pipe"):
        monkeypatch.setattr(
            multiprocessing, name, getattr(multiprocessing.get_context("fork"), name)
        )
    return runpy.run_path(str(FRAMEWORKS["auto_ml"].adapter))["fit"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    ("seconds", "used", "rounds"),
    [
        ((0.0, 0.0, 0.0), 2, ["done", "done", "done"]),
        ((0.0, 0.0, 600.0), 1, ["done", "done", "out of time"]),
        ((0.0, 600.0, 0.0), 0, ["done", "out of time"]),
        ((0.0, -1.0, 0.0), 2, ["done", "crashed", "done"]),
        ((0.0, 0.0, -1.0), 1, ["done", "done", "crashed"]),
    ],
)
def test_the_last_round_of_auto_ml_that_was_complete_counts(
    fit: Any,
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, ...],
    used: int,
    rounds: list[str],
) -> None:
    monkeypatch.setattr(Predictor, "seconds", seconds)
    limit = 4.0 if "out of time" in rounds else 60.0
    job = {"seconds": limit, "seed": 0, "n_jobs": 1, "task": "regression"}
    predict, tried, versions = fit(np.zeros((4, 2)), np.zeros(4), job)
    assert predict(np.zeros((3, 2))).tolist() == [used] * 3
    assert list(tried["rounds"].values()) == rounds
    assert versions["auto_ml"] == "fake"
    # What was killed, or has answered, ends; nothing waits for features for ever.
    for child in multiprocessing.active_children():
        child.join(10)
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_the_first_round_of_auto_ml_is_waited_for(
    fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "seconds", (0.5, 60.0, 60.0))
    job = {"seconds": 0.1, "seed": 0, "n_jobs": 1, "task": "regression"}
    predict, tried, _ = fit(np.zeros((4, 2)), np.zeros(4), job)
    assert predict(np.zeros((1, 2))).tolist() == [0]
    assert tried["rounds"] == {"default": "done", "families compared": "out of time"}

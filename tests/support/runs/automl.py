"""What the tests of the AutoML comparison have in common: frameworks that are scripts of a test."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np

from amc_compress.automl.datasets import DataSet
from amc_compress.automl.environments import Installed
from amc_compress.automl.frameworks import Framework
from amc_compress.automl.records import Protocol

LIMITS = Protocol(seconds=0.5, hard_seconds=60.0, evaluation_seconds=0.1)

NEAREST = """
def fit(x_train, y_train, job):
    import numpy as np

    def predict(x):
        far = ((x[:, None] - x_train[None]) ** 2).sum(axis=2)
        return y_train[np.argmin(far, axis=1)]

    return predict, {"neighbours": 1}, {"nearest": "1.0"}
"""


def fake_framework(folder: Path, code: str, name: str = "fake", **facts: object) -> Framework:
    """A framework whose adapter is the given code."""
    adapter = folder / f"{name}.py"
    adapter.write_text(textwrap.dedent(code))
    known = {"requirements": ("nothing",), "pythons": ("3.11",), "modules": ("json",)}
    return Framework(name=name, adapter=adapter, **{**known, **facts})  # type: ignore[arg-type]


def installed(framework: Framework) -> Installed:
    """What the setup of a fake framework came to: it lives in the Python of the tests."""
    return Installed(
        framework.name, sys.executable, "3.11", sys.executable, framework.requirements, {}, 0.0
    )


def steps(name: str = "steps") -> DataSet:
    """A table of two classes that one threshold tells apart."""
    x = np.arange(20.0)[:, None]
    return DataSet(name, "classification", lambda: (x, (x[:, 0] >= 12).astype(np.int64)))


def line(name: str = "line") -> DataSet:
    """A table of numbers on a straight line."""
    x = np.arange(20.0)[:, None]
    return DataSet(name, "regression", lambda: (x, 3.0 * x[:, 0]))

"""The protocol: each framework on each split for the same wall time, failures kept as rows.

A training happens in a process of its own, in the framework's environment. The framework is told
the soft limit; at the hard limit everything it started is killed. What comes back is scored here,
with scikit-learn, on targets that the framework never had.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import f1_score, mean_squared_error

from amc_compress.automl.datasets import DataSet, Split, TaskKind, split
from amc_compress.automl.environments import (
    Failed,
    Installed,
    folder_of,
    isolated,
    read_status,
    reason_from,
)
from amc_compress.automl.frameworks import ADAPTERS, Framework
from amc_compress.automl.interpreters import check_java
from amc_compress.automl.processes import Ended, run_limited
from amc_compress.automl.records import Protocol, Training, TrainingsFile
from amc_compress.temporary import TemporaryFolder
from amc_env import MissingDependencyError
from amc_env.validation.json_text import parse_json

CONSTANT = "constant"
"""Name of the prediction that ignores the features: the commonest class, or the mean."""

_GRACE_SHARE = 1 / 6  # the paper's hard limit of 3.5 h over its soft limit of 3 h
_GRACE_FLOOR = 60.0  # seconds: a Java server or a slow import takes that long, whatever the limit
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def make_protocol(seconds: float) -> Protocol:
    """Returns the limits that go with a soft limit.

    Args:
        seconds: Wall time that each framework is told to take.

    Raises:
        ValueError: If it is not a positive number.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(
            f"Expected --seconds above 0, got {seconds:g}; 60 is little, 3600 is usual."
        )
    return Protocol(
        seconds=seconds,
        hard_seconds=seconds + max(seconds * _GRACE_SHARE, _GRACE_FLOOR),
        # A tenth is auto-sklearn's own rule. Of a minute that would leave no candidate any time.
        evaluation_seconds=max(seconds / 10, min(seconds / 2, 30.0)),
    )


def check_ready(frameworks: Sequence[Framework], root: Path) -> None:
    """Does nothing if every framework was set up, or could not be, which is a result too.

    Raises:
        MissingDependencyError: If one was never set up, or lacks Java by now.
        RunFolderError: If the file about its setup is damaged.
    """
    for framework in frameworks:
        status = read_status(framework, root)
        if status is None:
            raise MissingDependencyError(
                f"{framework.name} is not set up in {root}; do it with: "
                f"amc automl setup {framework.name} --root {root}"
            )
        if isinstance(status, Installed):
            check_java(framework)


def run_all(
    frameworks: Sequence[Framework],
    data_sets: Sequence[DataSet],
    seeds: Sequence[int],
    results: TrainingsFile,
    protocol: Protocol,
    root: Path,
    progress: Callable[[Training], None] = lambda row: None,
) -> None:
    """Trains every framework on every split that the results do not hold yet, one at a time.

    The frameworks take turns on each split, so that a machine that gets busier slows all of them.
    A framework that could not be installed is trained once it is.

    Args:
        frameworks: Which ones; see :func:`check_ready`.
        data_sets: Which data sets; the constant prediction is added to each split.
        seeds: Seeds of the splits, which the frameworks are given as well.
        results: Where the rows go.
        protocol: The limits.
        root: Folder of the environments.
        progress: Told every new row.
    """
    for data in data_sets:
        for seed in seeds:
            parts = split(data, seed)
            if results.find((CONSTANT, data.name, seed)) is None:
                results.add(constant_row(data, seed, parts))
            for framework in frameworks:
                status = read_status(framework, root)
                known = results.find((framework.name, data.name, seed))
                if known is not None and not (
                    known.failure == "install" and isinstance(status, Installed)
                ):
                    continue
                row = train(framework, status, data, seed, parts, protocol, root)
                results.add(row)
                progress(row)


def train(
    framework: Framework,
    status: Installed | Failed | None,
    data: DataSet,
    seed: int,
    parts: Split,
    protocol: Protocol,
    root: Path,
) -> Training:
    """Trains a framework once, in a process of its own, and scores its predictions.

    Args:
        framework: What to train.
        status: What its setup came to.
        data: The data set.
        seed: Seed of the framework.
        parts: The split.
        protocol: The limits.
        root: Folder of the environments; what the framework prints goes to ``logs`` there.

    Returns:
        A row; of a failure, if the framework was not installed, did not end in time, crashed, or
        gave an answer that cannot be used.
    """
    row = Training(framework.name, data.name, seed)
    if not isinstance(status, Installed):
        reason = status.reason if status else "it was not set up"
        return replace(row, failure="install", reason=reason)
    log = folder_of(framework, root) / "logs" / f"{data.name}-{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFolder("automl") as made:
        folder = made.path
        answer = folder / "answer.json"
        job = _write_job(folder, answer, data, seed, parts, protocol)
        harness = str(ADAPTERS / "harness.py")
        ended = run_limited(
            [status.interpreter, harness, str(framework.adapter), str(job)],
            seconds=protocol.hard_seconds,
            answer=answer,
            folder=folder,
            log=log,
            environment=_environment(folder),
        )
        row = replace(
            row,
            wall_seconds=round(ended.wall_seconds, 1),
            processor_seconds=ended.processor_seconds and round(ended.processor_seconds, 1),
        )
        if not ended.answered:
            return _failure(row, ended, protocol, log)
        return _scored(row, answer, parts, data.task)


def constant_row(data: DataSet, seed: int, parts: Split) -> Training:
    """Returns the row of the prediction that ignores the features."""
    if data.task == "classification":
        model = DummyClassifier(strategy="most_frequent")
    else:
        model = DummyRegressor(strategy="mean")
    predicted = model.fit(parts.x_train, parts.y_train).predict(parts.x_test)
    return Training(CONSTANT, data.name, seed, score=score(parts.y_test, predicted, data.task))


def score(truth: NDArray[Any], predicted: NDArray[Any], task: TaskKind) -> float:
    """Returns weighted F1 (higher is better) of classes, mean squared error of numbers.

    Args:
        truth: Targets, shape (rows,).
        predicted: Predictions, shape (rows,).
        task: What they are.
    """
    if task == "classification":
        return float(f1_score(truth, predicted, average="weighted", zero_division=0))
    return float(mean_squared_error(truth, predicted))


# ---- steps of a training


def _write_job(
    folder: Path, answer: Path, data: DataSet, seed: int, parts: Split, protocol: Protocol
) -> Path:
    arrays = folder / "data.npz"
    np.savez(arrays, x_train=parts.x_train, y_train=parts.y_train, x_test=parts.x_test)
    job = {
        "data": str(arrays),
        "answer": str(answer),
        "task": data.task,
        "seconds": protocol.seconds,
        "evaluation_seconds": protocol.evaluation_seconds,
        "seed": seed,
        "n_jobs": protocol.n_jobs,
        "memory_mb": protocol.memory_mb,
        "warm_start": not data.in_meta_learning,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def _environment(folder: Path) -> Mapping[str, str]:
    variables = isolated(os.environ)
    variables.update(dict.fromkeys(_ONE_THREAD, "1"))
    # What a framework leaves behind, killed or not, goes with the folder.
    return {**variables, "TMPDIR": str(folder), "PYTHONHASHSEED": "0"}


def _failure(row: Training, ended: Ended, protocol: Protocol, log: Path) -> Training:
    if ended.code is None:
        limit = f"{protocol.hard_seconds:g} s"
        return replace(
            row, failure="timeout", reason=f"It was killed at the hard limit of {limit}."
        )
    last = reason_from(log.read_text(errors="replace"))
    if ended.code < 0:
        last = f"killed by signal {-ended.code}; it said last: {last}"
    elif ended.code == 0:
        last = f"it ended without an answer; it said last: {last}"
    return replace(row, failure="crash", reason=last)


def _scored(row: Training, answer: Path, parts: Split, task: TaskKind) -> Training:
    try:
        document = parse_json(answer.read_bytes())
        predicted = _predictions(document["predictions"], len(parts.y_test), task)
        return replace(
            row,
            score=score(parts.y_test, predicted, task),
            fit_seconds=round(float(document["fit_seconds"]), 1),
            predict_seconds=round(float(document["predict_seconds"]), 3),
            tried=dict(document["tried"]),
            versions=dict(document["versions"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        return replace(row, failure="answer", reason=f"Its answer cannot be used: {error}")


def _predictions(given: object, n_rows: int, task: TaskKind) -> NDArray[Any]:
    values = np.asarray(given, dtype=np.float64)
    if values.shape != (n_rows,):
        raise ValueError(f"expected {n_rows} predictions, got the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} predictions are not finite")
    if task == "regression":
        return values
    if not (values == np.round(values)).all():
        raise ValueError("expected class numbers, got fractions")
    return values.astype(np.int64)

"""Runs one adapter on one job, in the framework's own interpreter, which may be an old one.

``python harness.py ADAPTER.py JOB.json`` reads the job, trains, predicts and writes the answer.

The job: ``data`` (an .npz file with x_train, y_train, x_test), ``answer`` (the file to write),
``task`` (classification or regression), ``seconds``, ``evaluation_seconds`` (for one candidate),
``seed``, ``n_jobs``, ``memory_mb`` and ``warm_start``. The answer: ``predictions`` (one per test
row), ``tried`` (what the framework says it did, any JSON object), ``versions``, ``fit_seconds`` and
``predict_seconds``. The targets of the test rows never come here.

An adapter is a script with a function ``fit(x_train, y_train, job)`` that returns a function from
test features to predictions, what was tried, and versions. It sees no test features either.

Everything in this folder must run on Python 3.7 and imports nothing of the project: neither is
installed alongside the other.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from typing import Any


def main() -> None:
    """Does the job named on the command line."""
    adapter, job_file = sys.argv[1:]
    with open(job_file) as file:
        job = json.load(file)
    _use_one_core()
    import numpy as np

    fit = runpy.run_path(adapter, run_name="adapter")["fit"]
    with np.load(job["data"]) as arrays:
        x_train, y_train, x_test = arrays["x_train"], arrays["y_train"], arrays["x_test"]
    began = time.time()
    predict, tried, versions = fit(x_train, y_train, job)
    fitted = time.time()
    predictions = np.asarray(predict(x_test))
    answer = {
        "predictions": predictions.tolist(),
        "tried": tried,
        "versions": {"python": sys.version.split()[0], **versions},
        "fit_seconds": fitted - began,
        "predict_seconds": time.time() - fitted,
    }
    _write(job["answer"], answer)


def _use_one_core() -> None:
    """Binds this process and all it will start: some frameworks cannot be told to use one core."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})


def _write(path: str, answer: dict[str, Any]) -> None:
    """The answer appears whole: the other side takes it as soon as it is there."""
    with open(path + ".tmp", "w") as file:
        json.dump(answer, file)
    os.replace(path + ".tmp", path)


if __name__ == "__main__":  # frameworks that start workers import this file again
    main()

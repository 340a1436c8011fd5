"""H2O AutoML: random search over model families on a Java server, then stacked ensembles."""

from __future__ import annotations

import atexit
import importlib
import os
import socket
from typing import Any


def fit(x_train: Any, y_train: Any, job: dict[str, Any]) -> tuple[Any, Any, dict[str, str]]:
    """Trains until the time limit; the contract is in harness.py.

    Raises:
        RuntimeError: If no model was finished in time.
    """
    # By name: type checkers of the project cannot see packages of this interpreter.
    h2o = importlib.import_module("h2o")
    automl = importlib.import_module("h2o.automl")
    h2o.init(
        port=_free_port(),  # never another user's server
        nthreads=job["n_jobs"],
        max_mem_size=f"{job['memory_mb']}M",
        ice_root=os.getcwd(),
        log_dir=os.getcwd(),
    )
    atexit.register(lambda: h2o.cluster().shutdown())
    h2o.no_progress()
    features = [f"x{column}" for column in range(x_train.shape[1])]
    frame = h2o.H2OFrame(x_train, column_names=features)
    target = h2o.H2OFrame(y_train.reshape(-1, 1), column_names=["y"])
    is_classification = job["task"] == "classification"
    frame["y"] = target.asfactor() if is_classification else target
    model = automl.H2OAutoML(
        max_runtime_secs=max(int(job["seconds"]), 1),  # 0 would be no limit
        seed=job["seed"],
        # It cannot choose by weighted F1.
        sort_metric="mean_per_class_error" if is_classification else "mse",
        verbosity=None,
    )
    model.train(x=features, y="y", training_frame=frame)
    if model.leader is None:
        raise RuntimeError(f"H2O finished no model within {job['seconds']} s")
    models = [row[0] for row in model.leaderboard.as_data_frame(use_pandas=False)[1:]]

    def predict(x: Any) -> list[float]:
        rows = model.leader.predict(h2o.H2OFrame(x, column_names=features))["predict"]
        return [float(row[0]) for row in rows.as_data_frame(use_pandas=False)[1:]]

    return predict, {"models": len(models), "leader": models[0]}, {"h2o": h2o.__version__}


def _free_port() -> int:
    """H2O takes two neighbouring ports."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise RuntimeError("found no two free neighbouring ports for H2O")

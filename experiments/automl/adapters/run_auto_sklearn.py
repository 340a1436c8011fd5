"""auto-sklearn 0.15: Bayesian optimisation with a warm start, then ensemble selection."""

from __future__ import annotations

import importlib
from typing import Any


def fit(x_train: Any, y_train: Any, job: dict[str, Any]) -> tuple[Any, Any, dict[str, str]]:
    """Searches for the whole time limit; the contract is in harness.py."""
    # By name: type checkers of the project cannot see packages of this interpreter.
    autosklearn = importlib.import_module("autosklearn")
    metrics = importlib.import_module("autosklearn.metrics")
    options = {
        "time_left_for_this_task": int(job["seconds"]),  # it takes no less than 30
        "per_run_time_limit": max(int(job["evaluation_seconds"]), 1),
        "seed": job["seed"],
        "n_jobs": job["n_jobs"],
        "memory_limit": job["memory_mb"],
    }
    if not job["warm_start"]:
        options["initial_configurations_via_metalearning"] = 0
    if job["task"] == "classification":
        kind = importlib.import_module("autosklearn.classification").AutoSklearnClassifier
        model = kind(metric=metrics.f1_weighted, **options)
    else:
        kind = importlib.import_module("autosklearn.regression").AutoSklearnRegressor
        model = kind(metric=metrics.mean_squared_error, **options)
    model.fit(x_train, y_train)
    runs = [str(run.status).rsplit(".", 1)[-1] for run in model.automl_.runhistory_.data.values()]
    tried = {
        "pipelines": len(runs),
        "status": {status: runs.count(status) for status in sorted(set(runs))},
        "ensemble": len(model.get_models_with_weights()),
    }
    return model.predict, tried, {"auto-sklearn": autosklearn.__version__}

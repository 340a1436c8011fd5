"""TPOT 1.1: genetic programming on scikit-learn pipelines."""

from __future__ import annotations

import importlib
from typing import Any


def fit(x_train: Any, y_train: Any, job: dict[str, Any]) -> tuple[Any, Any, dict[str, str]]:
    """Evolves pipelines until the time limit; the contract is in harness.py."""
    # By name: type checkers of the project cannot see packages of this interpreter.
    tpot = importlib.import_module("tpot")
    sklearn = importlib.import_module("sklearn")
    if job["task"] == "classification":
        kind, scorer = tpot.TPOTClassifier, "f1_weighted"
    else:
        kind, scorer = tpot.TPOTRegressor, "neg_mean_squared_error"
    model = kind(
        scorers=[scorer],
        max_time_mins=job["seconds"] / 60,
        max_eval_time_mins=job["evaluation_seconds"] / 60,
        n_jobs=job["n_jobs"],
        random_state=job["seed"],
        verbose=1,
    )
    model.fit(x_train, y_train)
    evaluated = model.evaluated_individuals[model.objective_names[0]].notna()
    tried = {
        "pipelines": len(evaluated),
        "not evaluated": int((~evaluated).sum()),
        "winner": [step for step, _ in model.fitted_pipeline_.steps],
    }
    versions = {"tpot": tpot.__version__, "scikit-learn": sklearn.__version__}
    return model.predict, tried, versions

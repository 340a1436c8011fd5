"""auto_ml 2.9.10: grid search, or an evolutionary one, over a few families of models.

It takes no time limit. So it is trained three times, each time looking at more: its default, a
comparison of its families, and the search for their hyper-parameters. The time limit interrupts,
and the last training that was complete counts. The first one is never interrupted.
"""

from __future__ import annotations

import importlib
import multiprocessing
import random
import signal
import time
from typing import Any

_ROUNDS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("default", {}),
    ("families compared", {"compare_all_models": True}),
    ("families searched", {"compare_all_models": True, "optimize_final_model": True}),
)


class OutOfTime(BaseException):
    """The time limit was reached; no Exception, because auto_ml swallows those."""


def fit(x_train: Any, y_train: Any, job: dict[str, Any]) -> tuple[Any, Any, dict[str, str]]:
    """Trains as often as the time limit allows; the contract is in harness.py."""
    multiprocessing.cpu_count = lambda: job["n_jobs"]  # auto_ml takes as many as there are
    # By name: type checkers of the project cannot see packages of this interpreter.
    np = importlib.import_module("numpy")
    pandas = importlib.import_module("pandas")
    random.seed(job["seed"])
    np.random.seed(job["seed"])  # the only generator that auto_ml knows

    def table(x: Any) -> Any:
        return pandas.DataFrame(x, columns=[f"x{column}" for column in range(x.shape[1])])

    deadline = time.time() + job["seconds"]
    model: Any = None
    done = []
    for name, options in _ROUNDS:
        try:
            if model is not None:
                _interrupt_at(deadline)
            candidate = _train(table(x_train), y_train, job["task"], options)
        except OutOfTime:
            break
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        model = candidate
        done.append(name)
    tried = {"rounds": done, "of": len(_ROUNDS)}
    return lambda x: model.predict(table(x)), tried, _versions()


def _train(table: Any, y_train: Any, task: str, options: dict[str, bool]) -> Any:
    auto_ml = importlib.import_module("auto_ml")
    metrics = importlib.import_module("sklearn.metrics")

    def missing_f1(targets: Any, probabilities: Any) -> float:
        """Weighted F1 short of 1, as auto_ml minimises; labels are 0, 1, ... so columns too."""
        best = [max(range(len(row)), key=lambda label: row[label]) for row in probabilities]
        return 1 - float(metrics.f1_score(targets, best, average="weighted"))

    is_classification = task == "classification"
    model = auto_ml.Predictor(
        type_of_estimator="classifier" if is_classification else "regressor",
        column_descriptions={"y": "output"},
    )
    model.train(
        table.assign(y=y_train),
        scoring=missing_f1 if is_classification else metrics.mean_squared_error,
        verbose=False,
        ml_for_analytics=False,
        write_gs_param_results_to_file=False,
        **options,
    )
    return model


def _interrupt_at(deadline: float) -> None:
    def stop(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    # Again and again: auto_ml has bare excepts that would swallow a single one.
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.time(), 0.01), 1.0)


def _versions() -> dict[str, str]:
    sklearn = importlib.import_module("sklearn")
    version = importlib.import_module("auto_ml._version").__version__
    return {"auto_ml": version, "scikit-learn": sklearn.__version__}

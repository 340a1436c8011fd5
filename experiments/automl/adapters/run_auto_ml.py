"""auto_ml 2.9.10: grid search, or an evolutionary one, over a few families of models.

It takes no time limit. So it is trained three times, each time looking at more: its default, a
comparison of its families, and the search for their hyperparameters. The last training that ends
within the time limit counts; the first one is waited for.

The second and third happen in a process of their own, which can be killed. (An exception from a
timer does not work: auto_ml, scikit-learn and C code swallow it.)
"""

from __future__ import annotations

import importlib
import multiprocessing
import random
import time
from typing import Any, Callable  # noqa: UP035 - Python 3.7 cannot subscript that of collections.abc

Predict = Callable[[Any], Any]

_MORE = (
    ("families compared", {"compare_all_models": True}),
    ("families searched", {"compare_all_models": True, "optimize_final_model": True}),
)


def fit(x_train: Any, y_train: Any, job: dict[str, Any]) -> tuple[Predict, Any, dict[str, str]]:
    """Trains as often as the time limit allows; the contract is in harness.py."""
    deadline = time.time() + job["seconds"]
    multiprocessing.cpu_count = lambda: job["n_jobs"]  # auto_ml takes as many as there are
    random.seed(job["seed"])
    numpy = importlib.import_module("numpy")
    numpy.random.seed(job["seed"])  # the only generator that auto_ml knows
    predict = _train(x_train, y_train, job["task"], {})
    rounds = {"default": "done"}
    latest: _Training | None = None
    for name, options in _MORE:
        training = _Training(x_train, y_train, job["task"], options)
        rounds[name] = training.wait_until(deadline)
        superseded: _Training | None = training
        if rounds[name] == "done":
            superseded, latest = latest, training
        if superseded is not None:
            superseded.stop()
        if rounds[name] == "out of time":
            break
    return (latest.predict if latest else predict), {"rounds": rounds}, _versions()


def _train(x_train: Any, y_train: Any, task: str, options: dict[str, bool]) -> Predict:
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
        _table(x_train).assign(y=y_train),
        scoring=missing_f1 if is_classification else metrics.mean_squared_error,
        verbose=False,
        ml_for_analytics=False,
        write_gs_param_results_to_file=False,
        **options,
    )
    return lambda x: model.predict(_table(x))


class _Training:
    """Trains in a process that then waits for features, to predict from them once."""

    def __init__(self, *arguments: Any) -> None:
        self._pipe, there = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(there, *arguments))
        self._process.start()
        there.close()  # so that the end of the process can be heard

    def wait_until(self, deadline: float) -> str:
        if not self._pipe.poll(max(deadline - time.time(), 0)):
            return "out of time"
        try:
            self._pipe.recv()
        except EOFError:  # its traceback stands in the log
            return "crashed"
        return "done"

    def predict(self, x: Any) -> Any:
        self._pipe.send(x)
        return self._pipe.recv()

    def stop(self) -> None:
        self._process.kill()


def _serve(connection: Any, *arguments: Any) -> None:
    predict = _train(*arguments)
    connection.send("ready")
    connection.send(predict(connection.recv()))


def _table(x: Any) -> Any:
    # By name: type checkers of the project cannot see packages of this interpreter.
    pandas = importlib.import_module("pandas")
    return pandas.DataFrame(x, columns=[f"x{column}" for column in range(x.shape[1])])


def _versions() -> dict[str, str]:
    sklearn = importlib.import_module("sklearn")
    version = importlib.import_module("auto_ml._version").__version__
    return {"auto_ml": version, "scikit-learn": sklearn.__version__}

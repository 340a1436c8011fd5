"""The data sets: tables that scikit-learn brings along, and their fixed splits.

``linnerud``, the remaining table, has 20 rows: a test part of six would measure luck. For a second
regression the wine table is used again, with one measurement to be told from the other twelve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sklearn.datasets
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from amc_env.validation.checks import check_known

TaskKind = Literal["classification", "regression"]

TEST_SHARE = 0.3
"""Share of the rows that is held out (Balaji & Allen 2018)."""


@dataclass(frozen=True)
class DataSet:
    """A table to be learned.

    Args:
        name: Its name on the command line.
        task: What is to be predicted: a class or a number.
        load: Returns features of shape (rows, columns) and targets of shape (rows,).
        in_meta_learning: Whether auto-sklearn's warm start was trained on it; the paper kept
            such data sets out, here they are run without the warm start.
    """

    name: str
    task: TaskKind
    load: Callable[[], tuple[NDArray[np.float64], NDArray[Any]]]
    in_meta_learning: bool = False


@dataclass(frozen=True)
class Split:
    """One of the paper's splits: 70% of the rows to learn from, 30% to be scored on.

    Args:
        x_train: Features, shape (training rows, columns), float64.
        y_train: Targets, shape (training rows,): class numbers from 0 (int64), or float64.
        x_test: Features of the test rows.
        y_test: Targets of the test rows; no framework ever sees them.
    """

    x_train: NDArray[np.float64]
    y_train: NDArray[Any]
    x_test: NDArray[np.float64]
    y_test: NDArray[Any]


def split(data: DataSet, seed: int) -> Split:
    """Splits a data set; the same seed gives the same rows.

    Classes keep their shares in both parts, so that every class can be learned.
    """
    x, y = data.load()
    classes = y if data.task == "classification" else None
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=TEST_SHARE, random_state=seed, stratify=classes
    )
    return Split(x_train, y_train, x_test, y_test)


def find_data_set(name: str) -> DataSet:
    """Returns a data set by its name.

    Raises:
        ValueError: If there is none of that name.
    """
    return DATA_SETS[check_known("data set", name, tuple(DATA_SETS))]


def _embedded(
    load: Callable[..., tuple[Any, Any]], target: type[np.generic]
) -> Callable[[], tuple[NDArray[np.float64], NDArray[Any]]]:
    def table() -> tuple[NDArray[np.float64], NDArray[Any]]:
        x, y = load(return_X_y=True)
        return np.asarray(x, np.float64), np.asarray(y, target)

    return table


def _wine_alcohol() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    table = np.asarray(sklearn.datasets.load_wine(return_X_y=True)[0], np.float64)
    return table[:, 1:], table[:, 0]


DATA_SETS: Mapping[str, DataSet] = {
    data.name: data
    for data in (
        # scikit-learn's digits are the test part of OpenML's optdigits, and its breast_cancer is
        # wdbc: auto-sklearn 0.15.0 has both in autosklearn/metalearning/files.
        DataSet(
            "digits", "classification", _embedded(sklearn.datasets.load_digits, np.int64), True
        ),
        DataSet(
            "breast_cancer",
            "classification",
            _embedded(sklearn.datasets.load_breast_cancer, np.int64),
            True,
        ),
        DataSet("wine", "classification", _embedded(sklearn.datasets.load_wine, np.int64)),
        DataSet("iris", "classification", _embedded(sklearn.datasets.load_iris, np.int64)),
        DataSet("diabetes", "regression", _embedded(sklearn.datasets.load_diabetes, np.float64)),
        DataSet("wine_alcohol", "regression", _wine_alcohol),
    )
}
"""Name -> data set, classification first."""

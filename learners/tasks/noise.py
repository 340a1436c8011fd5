"""How much of a difference between two networks other samples would change.

Both networks are evaluated on the same groups of the samples. The mean of their differences in
``n`` groups has a standard error of the differences' standard deviation over the root of ``n``:
that of a paired bootstrap over samples, without drawing any. It takes no formula of the metric, so
that it holds for mean IoU, mean average precision or a correlation as well as for accuracy.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

from amc_compress.learners.tasks.inputs import count, rows
from amc_compress.learners.tasks.task import Meter, Task
from amc_env.errors import CompressionError

GROUPS = 20
"""The standard error has a relative error of about 1 / sqrt(2 * GROUPS), a sixth."""

_LEAST = 8


class GroupedMeter:
    """Measures a metric over all samples, and its score over groups of them.

    Sample ``i`` belongs to group ``i mod GROUPS``, so that equal loaders make equal groups.

    Args:
        task: Whose metric it is.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._whole = task.meter()
        self._groups = [task.meter() for _ in range(GROUPS)]
        self._seen = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Takes in what a network says of a batch, and what is right."""
        self._whole.update(outputs, targets)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of few samples
                self._share_out(outputs, targets)
        except Exception:  # as many structures as there are tasks
            self._groups = []  # one that cannot be taken apart has none

    def _share_out(self, outputs: Any, targets: Any) -> None:
        size = count(outputs)
        for place in range(min(len(self._groups), size)):
            own = slice(place, None, GROUPS)
            group = self._groups[(self._seen + place) % GROUPS]
            group.update(rows(outputs, own), rows(targets, own))
        self._seen += size

    def compute(self) -> dict[str, float]:
        """Returns metric name -> value over all samples, the metric of the score first."""
        return self._whole.compute()

    def scores(self) -> tuple[float | None, ...]:
        """Returns the score of every group; None where it has no value."""
        return tuple(score_or_none(self._task, group) for group in self._groups[: self._seen])


def score_or_none(task: Task, meter: Meter) -> float | None:
    """Returns the score of what a meter has seen; None where that is too little for the metric."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return task.score(meter.compute())
    except (CompressionError, ValueError, RuntimeError, ZeroDivisionError):
        return None


def standard_error(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Returns the standard error of the difference of two networks' scores.

    Args:
        first: Scores of the groups, as :meth:`GroupedMeter.scores` returns them.
        second: Those of the other network, on the same samples.

    Returns:
        ``None`` if there are too few groups to tell.
    """
    pairs = zip(first, second, strict=True) if len(first) == len(second) else ()
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if len(differences) < _LEAST:
        return None
    return statistics.stdev(differences) / math.sqrt(len(differences))

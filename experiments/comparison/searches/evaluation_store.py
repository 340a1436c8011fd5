"""Evaluated plans of one task in a file that several processes append to at the same time.

The first line is ``{"format": "amc-judgements", "version": 1, "task": {...}}`` with a fingerprint
of the task; every further line is ``{"plan": [indices], "score": a, "seconds": s}``. A line is
written by one ``write`` to a locked file, so lines of different processes do not mix.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc_env import CompressionEnv, RunFolderError
from amc_env.files import JsonLines
from amc_env.scores.metric import ACCURACY
from amc_env.validation.checks import check_whole
from amc_env.validation.json_text import parse_json
from amc_env.validation.shapes import renamed_keys

FORMAT = "amc-judgements"
VERSION = 1
_OLD_NAMES = {"accuracy": "score", "original_accuracy": "original_score"}


@dataclass(frozen=True)
class TaskFingerprint:
    """Fingerprint of a task: what must be equal for evaluations to be shared; not the budget.

    Args:
        decisions: Keys of the decisions, in order.
        choices: The legal values of each, ascending.
        original_score: Score of the uncompressed network.
        origin: Model, data, checksum of the weights and options of the learner, as a text.
        metric: Name of the metric that scores are made from.
    """

    decisions: tuple[str, ...]
    choices: tuple[tuple[float, ...], ...]
    original_score: float
    origin: str = ""
    metric: str = ACCURACY.name

    @classmethod
    def of(cls, env: CompressionEnv, origin: str = "") -> TaskFingerprint:
        """Returns the fingerprint of an environment's task."""
        return cls(
            tuple(d.key for d in env.decisions),
            tuple(d.choices for d in env.decisions),
            env.original_score,
            origin,
            env.metric.name,
        )


@dataclass(frozen=True)
class Evaluation:
    """Stored score of a plan.

    Args:
        score: What is searched for, higher is better: the proxy accuracy, for a classifier.
        seconds: Processor seconds that evaluating it took.
    """

    score: float
    seconds: float


class EvaluationStore:
    """Evaluations of one task; the file is made if it is missing.

    Of two lines about the same plan the first one counts, for every process that reads the file.
    A line that was cut short, because its process was killed or the disk was full, is left out:
    its plan is evaluated again.

    Args:
        path: The file; its folder is made too.
        task: What the evaluations are of.

    Raises:
        RunFolderError: If the file is something else, of another version, or of another task.
    """

    def __init__(self, path: Path, task: TaskFingerprint) -> None:
        self.path = path
        self.task = task
        self._evaluated: dict[tuple[int, ...], Evaluation] = {}
        self._lines = JsonLines(
            path, FORMAT, VERSION, content="evaluations of plans", elsewhere="file"
        )
        if not path.exists():
            self._lines.write([], overwrite=False, task=asdict(task))
        self._lines.head(self._check_task)
        with path.open("rb") as file:
            file.readline()
            self._position = file.tell()
        self.refresh()

    def __len__(self) -> int:
        return len(self._evaluated)

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], Evaluation]]:
        """Iterates over ``(plan, evaluation)`` in the order of the file."""
        return iter(self._evaluated.items())

    def get(self, plan: Sequence[int]) -> Evaluation | None:
        """Returns what is known of a plan (the index of each decision's choice), or None."""
        return self._evaluated.get(tuple(plan))

    def add(self, plan: Sequence[int], score: float, seconds: float) -> Evaluation:
        """Appends an evaluation and reads what others have appended meanwhile.

        Args:
            plan: Index of each decision's choice.
            score: Its score.
            seconds: Processor seconds that evaluating it took.

        Returns:
            The evaluation that counts: that of another process, if its line came first.

        Raises:
            ValueError: If the plan does not fit the task or a number is out of range.
            OSError: If the line cannot be written, for example because the disk is full.
        """
        row = {
            "plan": [int(i) for i in plan],
            "score": float(score),
            "seconds": float(seconds),
        }
        known = self._checked(row)
        self._lines.append(row)
        self.refresh()
        return self._evaluated[known[0]]

    def refresh(self) -> int:
        """Reads what was appended since, by this or another process.

        Returns:
            How many plans are new.

        Raises:
            RunFolderError: If a line holds what is no evaluation of this task.
        """
        before = len(self._evaluated)
        with self.path.open("rb") as file:
            file.seek(self._position)
            content = file.read()
        # What follows the last newline was cut short, or is about to be completed.
        complete = content.rpartition(b"\n")[0]
        if not complete:
            return 0
        self._position += len(complete) + 1
        for line in complete.split(b"\n"):
            self._take(line)
        return len(self._evaluated) - before

    def _take(self, line: bytes) -> None:
        try:
            row = parse_json(line)
        except ValueError:  # cut short
            return
        try:
            plan, evaluation = self._checked(row)
        except (ValueError, TypeError, KeyError) as error:
            raise RunFolderError(
                f"A line of {self.path} is no evaluation of this task ({error}); remove it: "
                f"{line.decode(errors='replace')[:200]}"
            ) from error
        self._evaluated.setdefault(plan, evaluation)

    def _checked(self, row: dict[str, Any]) -> tuple[tuple[int, ...], Evaluation]:
        plan = tuple(check_whole("the index of a choice", i, 0) for i in row["plan"])
        if len(plan) != len(self.task.choices) or not all(
            0 <= i < len(grid) for i, grid in zip(plan, self.task.choices, strict=True)
        ):
            raise ValueError(
                f"Expected the index of a choice for each of {len(self.task.choices)} decisions, "
                f"got {list(plan)}."
            )
        row = renamed_keys(row, _OLD_NAMES)
        score, seconds = float(row["score"]), float(row["seconds"])
        is_accuracy = self.task.metric == ACCURACY.name
        low, high = (0.0, 1.0) if is_accuracy else (-sys.float_info.max, sys.float_info.max)
        if not (low <= score <= high and math.isfinite(seconds) and seconds >= 0.0):
            what = "an accuracy in [0, 1]" if is_accuracy else "a finite score"
            raise ValueError(
                f"Expected {what} and seconds of at least 0, got {score} and {seconds}."
            )
        return plan, Evaluation(score, seconds)

    def _check_task(self, head: dict[str, Any]) -> None:
        task = {"metric": ACCURACY.name, **renamed_keys(head["task"], _OLD_NAMES)}
        ours = json.loads(json.dumps(asdict(self.task)))
        if changed := [key for key, value in ours.items() if task.get(key) != value]:
            raise RunFolderError(
                f"The evaluations in {self.path} are of another task: other "
                f"{', '.join(changed)}. Evaluate with the same data, weights and options, or "
                f"into a new file."
            )

"""The results file: one JSON line per trained framework, below a line that says what it is.

The first line is ``{"format": "amc-automl", "version": 1, "protocol": {...}}``; every further line
is a :class:`Training`. Rows are appended as they come, so that a comparison that was interrupted
keeps what it has; a last line that was cut short is left out and made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amc_env import RunFolderError
from amc_env.files import JsonLines

FORMAT = "amc-automl"
VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """What is equal for all.

    Args:
        seconds: Wall time that each framework is told to take, per training.
        hard_seconds: Wall time after which it is killed, start and prediction included.
        evaluation_seconds: Wall time for one candidate, told to those that want to know.
        n_jobs: Processor cores.
        memory_mb: Memory, told to those that want to know.
    """

    seconds: float
    hard_seconds: float
    evaluation_seconds: float
    n_jobs: int = 1
    memory_mb: int = 3072


@dataclass(frozen=True)
class Training:
    """One framework trained once on one split, or the constant prediction there.

    Args:
        framework: Its name, or ``"constant"``.
        data: Name of the data set.
        seed: Seed of the split and of the framework.
        score: Weighted F1 in [0, 1], or mean squared error; None if it failed.
        failure: What kind of failure: ``install``, ``timeout``, ``crash`` or ``answer``; None if
            it did not fail.
        reason: Why it failed, one sentence.
        wall_seconds: From its start to its answer or end.
        processor_seconds: Of all its processes; less than the wall time on a busy machine.
        fit_seconds: Wall time of the training alone.
        predict_seconds: Wall time of predicting the test rows.
        tried: What the framework says it did.
        versions: Package -> version.
    """

    framework: str
    data: str
    seed: int
    score: float | None = None
    failure: str | None = None
    reason: str | None = None
    wall_seconds: float | None = None
    processor_seconds: float | None = None
    fit_seconds: float | None = None
    predict_seconds: float | None = None
    tried: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes it the same training."""
        return (self.framework, self.data, self.seed)


@dataclass(frozen=True)
class Trainings:
    """A results file in memory.

    Args:
        protocol: What was equal for all.
        rows: Every row by its key, in the order of the file.
        cut_short: Whether a last line was left out because it was cut short.
    """

    protocol: Protocol
    rows: Mapping[tuple[str, str, int], Training]
    cut_short: bool = False


def read_trainings(path: Path) -> Trainings:
    """Reads a results file.

    Raises:
        RunFolderError: If it is missing, something else, of another version, or damaged before
            its end.
    """
    if not path.exists():
        raise RunFolderError(f"There is no {path}; make it with: amc automl run --out {path}")
    lines = _lines(path)
    protocol = lines.head(lambda head: Protocol(**head["protocol"]))
    rows: dict[tuple[str, str, int], Training] = {}
    for row in lines.rows(lambda row: Training(**row)):
        rows.pop(row.key, None)  # a later line about the same training takes its place
        rows[row.key] = row
    return Trainings(protocol, rows, cut_short=lines.is_cut_short)


def _lines(path: Path) -> JsonLines:
    return JsonLines(
        path,
        FORMAT,
        VERSION,
        content="results of amc automl",
        remedy="remove the line, and its training is done again",
    )


class TrainingsFile:
    """Appends rows to a results file, each as soon as it is there.

    Args:
        path: The file; what it holds already is kept.
        protocol: What is equal for all; the file's, if it exists.

    Raises:
        RunFolderError: As :func:`read_trainings`, or if the file was begun under another protocol.
    """

    def __init__(self, path: Path, protocol: Protocol) -> None:
        self.path = path
        self._lines = _lines(path)
        self._rows: dict[tuple[str, str, int], Training] = {}
        if path.exists():
            found = read_trainings(path)
            if found.protocol != protocol:
                raise RunFolderError(
                    f"{path} was started with {_told(found.protocol, protocol)}, now it is "
                    f"{_told(protocol, found.protocol)}; give the same --seconds, or choose "
                    f"another --out."
                )
            self._rows.update(found.rows)
        self._lines.write(map(asdict, self._rows.values()), protocol=asdict(protocol))

    def add(self, row: Training) -> None:
        """Appends a row; one with the same key takes the place of an earlier one."""
        self._lines.append(asdict(row))
        self._rows[row.key] = row

    def find(self, key: tuple[str, str, int]) -> Training | None:
        """Returns the row of that key, or None."""
        return self._rows.get(key)


def _told(protocol: Protocol, other: Protocol) -> str:
    theirs = asdict(other)
    return ", ".join(f"{k} {v:g}" for k, v in asdict(protocol).items() if v != theirs[k])

"""The file of a recorded task: one ``.npz`` without pickle, facts as JSON and a few arrays."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amc_env.costs.storage import StorageFormat
from amc_env.errors import CompressionError
from amc_env.graph import LayerGraph
from amc_env.plan import Decision
from amc_env.recorded_tasks.facts_json import task_from_json, task_to_json
from amc_env.recorded_tasks.surrogate import Surrogate, SurrogateSettings
from amc_env.scores.metric import ACCURACY, Metric
from amc_env.validation.json_text import parse_json
from amc_env.validation.shapes import renamed_keys

FORMAT = "amc-recorded-task"
VERSION = 1

_ARRAYS = ("plans", "scores", "sources", "weights")
_OLD_NAMES = {"original_accuracy": "original_score", "accuracies": "scores"}
_UNREADABLE = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError, OSError)
_EARLIEST_TIME = (1980, 1, 1, 0, 0, 0)  # of a zip entry: equal tasks make equal files


@dataclass(frozen=True)
class RecordedTask:
    """A task whose plans were evaluated before.

    Args:
        name: Of the task, e.g. ``"digits-channels"``.
        origin: Where the evaluations come from: model, data, options.
        budget: The budget under which they were recorded, in its text form.
        original_score: Score of the uncompressed network.
        graph: The network.
        decisions: All decisions in order.
        storage: How its layers are stored; None where costs are the default ones.
        surrogate: Answers for all plans; holds the recorded ones.
        scores: Recorded scores, float32, shape ``(n_plans,)``.
        sources: Index into ``source_names`` for every recorded plan, uint8, same shape.
        source_names: Who proposed plans.
        cost_range: Cost name -> smallest and largest cost ratio among the recorded plans.
        curves: Name in ``amc_env.plan.CURVES`` -> decision key -> one number per choice.
        quality: How well the surrogate predicts, see ``docs/recorded_tasks.md``.
        metric: What the scores are made from.
    """

    name: str
    origin: str
    budget: str
    original_score: float
    graph: LayerGraph
    decisions: tuple[Decision, ...]
    storage: StorageFormat | None
    surrogate: Surrogate
    scores: npt.NDArray[np.float32]
    sources: npt.NDArray[np.uint8]
    source_names: tuple[str, ...]
    cost_range: Mapping[str, tuple[float, float]]
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        n = len(self.surrogate.plans)
        if self.scores.shape != (n,) or self.sources.shape != (n,):
            raise ValueError(f"Expected a score and a source for each of {n} plans.")
        if not np.isfinite(self.scores).all():
            raise ValueError("Expected finite scores.")
        self.metric.checked(self.original_score, "the uncompressed network")
        if n == 0 or int(self.sources.max()) >= len(self.source_names):
            raise ValueError("Expected at least one plan, each of a source that has a name.")
        rows = self.surrogate.settings.coordinates
        if [len(row) for row in rows] != [len(d.choices) for d in self.decisions]:
            raise ValueError("The surrogate has other choices than the decisions.")

    @property
    def plans(self) -> npt.NDArray[np.integer]:
        """Recorded plans, index of each decision's choice, ``(n_plans, n_decisions)``."""
        return self.surrogate.plans

    def counts(self) -> dict[str, int]:
        """Returns source -> number of recorded plans."""
        return {name: int((self.sources == i).sum()) for i, name in enumerate(self.source_names)}


def write_recorded(task: RecordedTask) -> bytes:
    """Returns the content of the file; equal tasks have equal files.

    Plans take one byte per decision (two where a grid has more than 256 choices), compressed.
    """
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "name": task.name,
        "origin": task.origin,
        "budget": task.budget,
        "original_score": task.original_score,
        "metric": asdict(task.metric),
        "task": task_to_json(task.graph, task.decisions, task.storage),
        "plans": task.counts(),
        "cost_range": {name: list(ends) for name, ends in task.cost_range.items()},
        "surrogate": asdict(task.surrogate.settings),
        "quality": task.quality,
        "curves": {
            name: {key: [float(x) for x in curve] for key, curve in curves.items()}
            for name, curves in task.curves.items()
        },
    }
    text = json.dumps(facts, allow_nan=False).encode()
    largest = max(len(d.choices) for d in task.decisions) - 1
    arrays = {
        "facts": np.frombuffer(text, dtype=np.uint8),
        "plans": task.plans.astype(np.min_scalar_type(largest)),
        "scores": task.scores.astype(np.float32),
        "sources": task.sources.astype(np.uint8),
        "weights": task.surrogate.weights.astype(np.float64),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            # Column by column: the choices of one decision are more alike than those of one plan.
            np.lib.format.write_array(part, np.asfortranarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EARLIEST_TIME), part.getvalue(),
                             compress_type=zipfile.ZIP_DEFLATED, compresslevel=9)  # fmt: skip
    return content.getvalue()


def read_recorded(path: Path | Traversable) -> RecordedTask:
    """Reads the file of a recorded task.

    Raises:
        CompressionError: If it is missing, damaged, something else, or of another version.
    """
    facts, arrays = _parts(path)
    if facts.get("version") != VERSION:
        raise CompressionError(
            f"Expected a recorded task of version {VERSION} in {path}, got version "
            f"{facts.get('version')}; read it with the release that wrote it, or record the task "
            f"again."
        )
    try:
        metric = Metric.from_dict(facts.get("metric"))
        _check_numbers(facts, arrays, metric)
        graph, decisions, storage = task_from_json(facts["task"])
        row = facts["surrogate"]
        coordinates = tuple(tuple(float(x) for x in c) for c in row["coordinates"])
        settings = SurrogateSettings(**{**row, "coordinates": coordinates})
        return RecordedTask(
            name=facts["name"],
            origin=facts["origin"],
            budget=facts["budget"],
            original_score=float(facts["original_score"]),
            graph=graph,
            decisions=decisions,
            storage=storage,
            surrogate=Surrogate(settings, arrays["plans"], arrays["weights"]),
            scores=arrays["scores"],
            sources=arrays["sources"],
            source_names=tuple(facts["plans"]),
            cost_range={name: (low, high) for name, (low, high) in facts["cost_range"].items()},
            curves={name: _checked_curves(c, decisions) for name, c in facts["curves"].items()},
            quality=facts["quality"],
            metric=metric,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CompressionError(
            f"The recorded task in {path} is damaged ({type(error).__name__}: {error}); restore "
            f"the file, or record the task again."
        ) from error


def _parts(path: Path | Traversable) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The facts and the arrays of a file of this format."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CompressionError(
            f"There is no recorded task at {path} ({error.strerror}); record it first, or give "
            f"the path of a file that was."
        ) from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            facts = renamed_keys(parse_json(archive["facts"].tobytes()), _OLD_NAMES)
            names = renamed_keys({name: name for name in archive.files}, _OLD_NAMES)
            arrays = {name: archive[names[name]] for name in _ARRAYS}
        is_ours = facts["format"] == FORMAT
    except _UNREADABLE as error:
        raise CompressionError(
            f"Expected a recorded task in {path}, got something else or a file cut short "
            f"({type(error).__name__}); restore the file, or record the task again."
        ) from error
    if not is_ours:
        raise CompressionError(
            f"Expected a recorded task in {path} (format {FORMAT!r}), got {facts['format']!r}; "
            f"give the path of a recorded task."
        )
    return facts, arrays


def _check_numbers(
    facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], metric: Metric
) -> None:
    """Checks what nothing else looks at before it is believed."""
    metric.checked(facts["original_score"], "the uncompressed network")
    scores, sources = arrays["scores"], arrays["sources"]
    if metric.is_accuracy and not bool(((scores >= 0.0) & (scores <= 1.0)).all()):
        raise ValueError("expected recorded accuracies in [0, 1]")
    n_plans = len(arrays["plans"])
    if scores.shape != (n_plans,) or sources.shape != (n_plans,):
        raise ValueError(f"expected one score and one source for each of {n_plans} plans")
    if n_plans and not 0 <= int(sources.min()) <= int(sources.max()) < len(facts["plans"]):
        raise ValueError("expected sources that are named")
    for name, (low, high) in facts["cost_range"].items():
        if not 0.0 <= low <= high < math.inf:
            raise ValueError(f"expected a range of costs for {name}, got {low} to {high}")


def _checked_curves(
    curves: Mapping[str, Sequence[float]], decisions: Sequence[Decision]
) -> dict[str, Sequence[float]]:
    lengths = {key: len(curve) for key, curve in curves.items()}
    if lengths != {d.key: len(d.choices) for d in decisions}:
        raise ValueError("Expected one number per choice of every decision in every curve.")
    if not all(math.isfinite(number) for curve in curves.values() for number in curve):
        raise ValueError("Expected finite numbers in every curve.")
    return dict(curves)

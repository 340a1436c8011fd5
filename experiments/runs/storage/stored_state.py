"""Schemas of ``state.json`` and ``summary.json``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amc_env import CompressionError, RunFolderError
from amc_env.files import read_json
from amc_env.validation.checks import shown
from amc_env.validation.shapes import check_shape, renamed_keys

_FORMAT = "amc-run-state"
_START_AGAIN = "restore it, or start the run again in a new folder"
_OLD_NAMES = {
    "accuracy": "score", "original_accuracy": "original_score",
    "validation_accuracy": "validation_score", "finetuned_accuracy": "finetuned_score",
    "validation_accuracy_before": "validation_score_before",
}  # fmt: skip
_PARTS = ("best", "uniform", "stages", "steps")
"""What results of stages consist of that has scores of its own: a document, or a list of them."""

_METRIC = {"name": str, "higher_is_better": bool, "best_score": float | None}
_OUTCOME = {"score": float, "reward": float, "cost_ratio": dict[str, float]}
_TIMED = {"latency_ms": dict[str, dict[str, float]] | None, "onnx_bytes": dict[str, int] | None}
_RESULTS: Mapping[str, Mapping[str, Any]] = {
    "train": {"seconds": float, "epochs": int, "taken": str, "validation_score": float},
    "search": {
        "seconds": float, "cpu_seconds_per_episode": float, "n_trials": int, "reward": float,
        "best": _OUTCOME, "uniform": _OUTCOME, "bounds": dict[str, list[float]], "stages": list,
        "n_images": int | None, "notes": list,
        "goal": {"floor": float, "original": float, "levels": list},
    },
    "finetune": {
        "seconds": float, "epochs": int, "validation_score_before": float | None,
        "validation_score": float, "validation_score_original": float, "trained_on": str,
    },
    "export": {
        "seconds": float, **_TIMED, "refused": str, "max_difference": float,
        "agreement": float, "n_images": int, "part": str, "note": str,
    },
    "evaluate": {
        "seconds": float,
        "score": {"original": float, "compressed": float}, "standard_error": float | None,
        "costs": {"original": dict[str, float], "compressed": dict[str, float]},
        "group_sizes": dict[str, int], "group_roles": dict[str, str],
        "bits": dict[str, dict[str, int | None]],
        "densities": dict[str, list[Any]],
    },
    "report": {},
}  # fmt: skip
"""Stage -> what it has noted when it is done; see what is handed to ``RunFolder.finish``."""

_NETWORK = {
    "score": float, "macs": float, "params": float, "bytes": float,
    "latency_ms": dict[str, float] | None, "onnx_bytes?": float | None, "bops?": float,
    "mean_bits?": float, "density?": float, "predicted?": dict[str, float],
}  # fmt: skip
SUMMARY = {
    "original": _NETWORK, "compressed": _NETWORK, "cpu_seconds_per_episode": float,
    "metric?": _METRIC, "tested_on?": str, "export_note?": str,
}  # fmt: skip


def with_scores(summary: Any) -> Any:
    """Returns a summary of before there were scores as it would be written now.

    Raises:
        ValueError: Never; other faults are those of its shape.
    """
    for name in ("original", "compressed"):
        network = summary.get(name) if isinstance(summary, dict) else None
        if isinstance(network, dict) and "accuracy" in network:
            network.setdefault("score", network["accuracy"])
    return summary


def read_state(path: Path, version: int) -> dict[str, Any]:
    """Reads ``state.json``, which a run that has begun nothing may not have.

    Args:
        path: The file.
        version: Of run folders.

    Raises:
        RunFolderError: If it is damaged, or of another version.
    """
    if not path.exists():
        return {"format": _FORMAT, "version": version, "stages": {}}
    return checked_state(read_json(path, _FORMAT, version), path)


def checked_state(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the state of a run, if what it holds is of the kind that its stages write.

    Keys that an older release wrote have their present names. A key that is missing is told where
    it is needed, see :func:`blamed_on`.

    Args:
        state: The content of the file.
        path: The file.

    Raises:
        RunFolderError: If a stage is unknown, or a value is of another type.
    """
    try:
        check_shape(state, {"stages": dict[str, dict[str, Any]], "metric?": _METRIC})
        stages = {stage: _renamed(results) for stage, results in state["stages"].items()}
        for stage, results in stages.items():
            if stage not in _RESULTS:
                raise ValueError(f"it names the stage {shown(stage)}, which no run has")
            shape = {f"{key}?": each for key, each in _RESULTS[stage].items()}
            check_shape(results, {"done": bool, **shape}, f"stages.{stage}")
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}); {_START_AGAIN}.") from error
    return {**state, "stages": stages}


def _renamed(results: Any) -> Any:
    """Results of a stage, or a part of them, with the present names of their keys."""
    if isinstance(results, list):
        return [_renamed(each) for each in results]
    if not isinstance(results, dict):
        return results
    parts = {name: _renamed(results[name]) for name in _PARTS if name in results}
    return renamed_keys({**results, **parts}, _OLD_NAMES)


@contextlib.contextmanager
def blamed_on(path: Path, remedy: str = _START_AGAIN) -> Iterator[None]:
    """Attributes failures of the block to the files that it reads.

    Raises:
        RunFolderError: In place of what a key that is missing, or a value that does not fit, gives
            rise to.
    """
    try:
        yield
    except CompressionError:  # it is said already
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise RunFolderError(
            f"{path} does not hold what a run writes ({type(error).__name__}: {error}); {remedy}."
        ) from error

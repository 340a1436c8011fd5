"""Training checkpoints: atomic files without pickled code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from amc_compress.learners.training.config import TrainingConfig
from amc_env.errors import InputDataError, RunFolderError
from amc_env.files import save_bytes
from amc_env.support.deprecation import deprecated
from amc_env.validation.sentences import first_line

CHECKPOINT_VERSION = 2  # 1 had neither hooks nor extra state
_VERSION_INSIDE = 3  # earlier releases would repeat what such a checkpoint has behind it
INSIDE = "inside an epoch"
"""Key of the position in a checkpoint that was taken inside an epoch."""
LAST = "last.pt"
BEST = "best.safetensors"
START = "start.safetensors"
NO_EPOCH = -1
"""In the place of the best epoch: all were worse than the start, or none is over."""

_UNSAID = {"devices": 1, **{field.name: field.default for field in fields(TrainingConfig)}}
"""What a training of an earlier release had, whose checkpoint does not say so."""


@dataclass(frozen=True)
class EpochRecord:
    """Results of one epoch; ``learning_rate`` is that of its last step, ``epoch`` counts from 0.

    Scores are accuracies for classification; that of training is ``None`` where it cannot be
    measured, and of several processes the mean of theirs.
    ``is_ready`` tells whether the network was what was asked for, not only on the way there.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_score: float | None
    validation_score: float
    seconds: float
    is_ready: bool = True


@dataclass(frozen=True)
class Start:
    """A network before any step: its score, if it is one to go back to, and its state."""

    score: float | None
    state: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingResult:
    """What a training has come to; scores are those of the validation data.

    Attributes:
        best_score: Of the best epoch, in the type that was trained in; of the start if all epochs
            were worse.
        best_epoch: Number of the best epoch, from 0; -1 if all were worse than the start.
        history: All epochs.
        seconds: Theirs.
        start_score: Of the network before any step, in float32; ``None`` if it had none, or was
            not what a hook had asked for.
        final_score: Of the network that is handed back, in float32, never below ``start_score``.
    """

    best_score: float
    best_epoch: int
    history: list[EpochRecord]
    seconds: float
    start_score: float | None
    final_score: float

    @property
    @deprecated("best_score", removed_in="0.2")
    def best_accuracy(self) -> float:
        """The validation score of the best epoch."""
        return self.best_score


def epoch_record(stored: dict[str, Any]) -> EpochRecord:
    """Returns an epoch of a checkpoint, also of one from before scores had their name."""
    names = {"train_accuracy": "train_score", "validation_accuracy": "validation_score"}
    return EpochRecord(**{names.get(key, key): value for key, value in stored.items()})


def check_folder(folder: Path | None, resume: bool) -> None:
    """Checks that a run can start or resume in a folder.

    Raises:
        RunFolderError: If it is to be resumed without a folder, or begun where another one is.
    """
    if resume and folder is None:
        raise RunFolderError("Resuming needs the checkpoint_dir of the first run, got None.")
    if not resume and folder is not None and (folder / LAST).exists():
        raise RunFolderError(
            f"The folder {folder} already holds a checkpoint: resume it, or choose another folder."
        )


def extra_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what modules keep besides tensors (``nn.Module.get_extra_state``)."""
    return {key: value for key, value in state.items() if not isinstance(value, Tensor)}


def check_extra_state(state: Mapping[str, Any]) -> None:
    """Reject extra state that a checkpoint would hold but not give back.

    Raises:
        InputDataError: It is no tensor, number or string, nor made of them.
    """
    for key, value in extra_state(state).items():
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception as error:
            raise InputDataError(
                f"Expected extra state of tensors, numbers and strings in {key!r}, got "
                f"{type(value).__name__}, which a checkpoint cannot hold: train without a "
                "checkpoint_dir, or keep it elsewhere."
            ) from error


def save_best(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the best weights so far; extra state that is no tensor belongs in the other file."""
    _save_tensors(folder / BEST, state)


def save_start(folder: Path, start: Start) -> None:
    """Write the weights before any step; the rest belongs in the other file, as of the best."""
    _save_tensors(folder / START, start.state)


def _save_tensors(path: Path, state: Mapping[str, Any]) -> None:
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    save_bytes(path, safetensors.torch.save(_untied(tensors)))


def load_best(folder: Path) -> dict[str, Tensor]:
    """Read the best weights.

    Raises:
        RunFolderError: The file is missing or damaged.
    """
    return _load_tensors(folder / BEST)


def load_start(folder: Path, last: Mapping[str, Any]) -> Start | None:
    """Read the start of a training, or None where an earlier release began it.

    Args:
        folder: Where it was saved.
        last: The last checkpoint.

    Raises:
        RunFolderError: The file is missing or damaged.
    """
    if "start score" not in last:
        return None
    state = {**_load_tensors(folder / START), **last["start extra state"]}
    return Start(last["start score"], state)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return tensors


def save_last(folder: Path, state: Mapping[str, Any]) -> None:
    """Write what a resumed run needs: tensors, numbers and strings only."""
    # torch.save on a full disk fails with a RuntimeError of its own and leaves a partial file;
    # through memory, the disk sees one plain write.
    buffer = io.BytesIO()
    version = _VERSION_INSIDE if INSIDE in state else CHECKPOINT_VERSION
    torch.save({"version": version, **state}, buffer)
    save_bytes(folder / LAST, buffer.getvalue())


def load_last(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the last checkpoint, or None where there is none.

    Args:
        folder: Where it was saved.
        identity: What must be equal for the run to be the same run; compared with the
            checkpoint's own "identity", entry by entry.

    Raises:
        RunFolderError: The file is damaged, or of another version or another run.
    """
    path = folder / LAST
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version, stored = state["version"], state["identity"]
    except (
        RuntimeError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise _damaged(path, error) from error
    if version not in (CHECKPOINT_VERSION, _VERSION_INSIDE):
        raise RunFolderError(
            f"The checkpoint {path} has version {version}, expected {CHECKPOINT_VERSION}: finish "
            f"the training with the release that began it, or start again in another folder; "
            f"its best weights so far are in {BEST}, which every version can load."
        )
    for key, expected in identity.items():
        if (found := stored.get(key, _UNSAID.get(key))) != expected:
            raise RunFolderError(
                f"The checkpoint {path} belongs to another run ({key} was {found!r}, "
                f"now it is {expected!r}): resume with the same settings or use another folder."
            )
    return state


def _damaged(path: Path, error: Exception) -> RunFolderError:
    reason = first_line(error, 120)
    return RunFolderError(
        f"The checkpoint {path} is missing, truncated or not ours ({reason}): delete its folder "
        "and start again."
    )


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory (tied weights), which safetensors rejects."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        result[key] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return result

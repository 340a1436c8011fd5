"""Weights from a file into a network: checked completely before the first tensor is touched."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from amc_env.errors import InputDataError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 3


def pretrained_weights(name: str) -> Path | None:
    """Path of the weights that come with the package for the model ``name``, or None."""
    path = Path(__file__).resolve().parent.parent / "weights" / f"{name}.safetensors"
    return path if path.is_file() else None


def load_weights(model: nn.Module, path: str | Path, *, allow_pickle: bool = False) -> None:
    """Copy the weights of a file into ``model``, in place.

    Args:
        model: The network; unchanged when an error is raised.
        path: A safetensors file, or a ``state_dict`` saved by ``torch.save`` (also inside
            ``{"state_dict": ...}``, also with the ``module.`` prefix of DataParallel).
        allow_pickle: Also run the code that a pickled file may hold. Only for files you trust.

    Raises:
        InputDataError: The file is missing or damaged, holds code, or its names, shapes or values
            do not fit the network.
    """
    path = Path(path)
    tensors = _unwrap(_read(path, allow_pickle), path)
    expected = model.state_dict()
    problems = _mismatches(expected, tensors)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InputDataError(
            f"The weights in {path} do not fit this network: {'; '.join(problems[:_SHOWN])}{more}; "
            "choose the model that the file was made for."
        )
    damaged = [key for key in expected if key in tensors and not _finite(tensors[key])]
    if damaged:
        raise InputDataError(
            f"The weights in {path} hold NaN or infinite values, first in {damaged[0]!r}: expected "
            "finite numbers; take an earlier checkpoint."
        )
    # Files older than PyTorch 0.4.1 lack the batch counters of batch norm; nothing reads them here.
    model.load_state_dict({**expected, **tensors})


def _read(path: Path, allow_pickle: bool) -> object:
    if not path.is_file():
        raise InputDataError(
            f"There is no weights file {path}: expected a safetensors file or a saved state_dict."
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        # With weights_only=True, torch says so when something other than tensors is in the file.
        if "weights_only" in str(error) and not allow_pickle and _is_torch_file(path):
            raise InputDataError(
                f"The file {path} holds Python objects other than tensors, which could run code: "
                "save its state_dict instead, or allow pickle if you trust where it comes from."
            ) from error
        raise _damaged(path, error) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _is_torch_file(path: Path) -> bool:
    """Whether the file starts as ``torch.save`` writes it: a zip archive, or a pickle (old)."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def _damaged(path: Path, error: Exception) -> InputDataError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120].rstrip(".")
    return InputDataError(
        f"The weights file {path} is truncated or not a weights file ({reason}): expected a "
        "safetensors file or a saved state_dict; copy or download it again."
    )


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not _all_tensors(loaded):
        raise InputDataError(
            f"The file {path} holds no state_dict: expected names with tensors, got "
            f"{type(loaded).__name__}; save model.state_dict()."
        )
    tensors: dict[str, Tensor] = dict(loaded)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    return tensors


def _all_tensors(loaded: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items())


def _mismatches(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    problems = []
    for key, want in expected.items():
        got = tensors.get(key)
        if got is None:
            if not key.endswith("num_batches_tracked"):
                problems.append(f"{key!r} is missing (expected shape {list(want.shape)})")
        elif got.shape != want.shape:
            problems.append(f"{key!r} has shape {list(got.shape)}, expected {list(want.shape)}")
        elif got.is_floating_point() != want.is_floating_point():
            problems.append(f"{key!r} has type {got.dtype}, expected {want.dtype}")
    problems += [f"{key!r} is unknown to the network" for key in tensors if key not in expected]
    return problems


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())

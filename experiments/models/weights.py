"""Weights from a file into a network: checked completely before the first tensor is touched."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from amc_compress.config.texts import split_key
from amc_compress.models.state_dicts import Fit, contents, find_fits
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

_SHOWN = 3
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
_PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "u1", "bool")),
    # Under the names of NumPy 2 and of NumPy 1, whichever wrote the file.
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
]
"""Classes that hold the settings and results of training scripts, besides the tensors; unpickling
them runs no code."""


def pretrained_weights(name: str) -> Path | None:
    """Path of the weights that come with the package for the model ``name``, or None."""
    path = Path(__file__).resolve().parent.parent / "weights" / f"{name}.safetensors"
    return path if path.is_file() else None


def load_weights(model: nn.Module, path: str | Path, *, allow_pickle: bool = False) -> str:
    """Copy the weights of a file into ``model``, in place.

    Args:
        model: The network; unchanged when an error is raised.
        path: A safetensors file, or anything saved by ``torch.save`` that holds all tensors of the
            network somewhere: inside other dictionaries, under prefixes, among others. Where
            several fit, raw weights are preferred to averaged ones; ``FILE::key`` chooses.
        allow_pickle: Also run the code that a pickled file may hold. Only for files you trust.

    Returns:
        What was taken and what was left out, in one line; empty where there was no choice.

    Raises:
        InputDataError: The file is missing or damaged, holds code, or its names, shapes or values
            do not fit the network.
    """
    file, key = split_key(path)
    loaded = _read(file, allow_pickle)
    fits = find_fits(loaded, model)
    if key is not None:
        chosen = [fit for fit in fits if fit.name == ("" if key == "." else key)]
        if not chosen:
            raise _unknown_key(file, key, fits, loaded)
        fits = chosen
    if not fits or fits[0].problems:
        raise _unfitting(file, fits, loaded)
    fit, others = fits[0], [other for other in fits[1:] if not other.problems]
    expected = model.state_dict()
    if damaged := [name for name, tensor in fit.tensors.items() if not _finite(tensor)]:
        raise InputDataError(
            f"The weights in {file} hold NaN or infinite values, first in {damaged[0]!r}: expected "
            "finite numbers; take an earlier checkpoint."
        )
    # Files older than PyTorch 0.4.1 lack the batch counters of batch norm; nothing reads them here.
    model.load_state_dict({**expected, **fit.tensors})
    return fit.note([] if key is not None else others)


def _unknown_key(file: Path, key: str, fits: Sequence[Fit], loaded: object) -> InputDataError:
    names = ", ".join(repr(fit.name or ".") for fit in fits) or "none with this network's names"
    return InputDataError(
        f"There are no tensors under {key!r} in {file}: expected one of {names}; the file holds "
        f"{contents(loaded)}."
    )


def _unfitting(file: Path, fits: Sequence[Fit], loaded: object) -> InputDataError:
    nearest = max(fits, key=lambda fit: fit.compared, default=None)
    if nearest is None:
        return InputDataError(
            f"The file {file} holds no state_dict of this network: expected names with tensors, "
            f"got {contents(loaded)}; save model.state_dict() of the network that is named by "
            f"--model."
        )
    problems = nearest.problems
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    where = f" (nearest: {nearest.name!r})" if nearest.name else ""
    return InputDataError(
        f"The weights in {file} do not fit this network{where}: {'; '.join(problems[:_SHOWN])}"
        f"{more}; the file holds {contents(loaded)}; choose the model that the file was made for."
    )


def _read(path: Path, allow_pickle: bool) -> object:
    if not path.is_file():
        raise InputDataError(
            f"There is no weights file {path}: expected a safetensors file or a saved state_dict."
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_PLAIN_DATA):
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        # With weights_only=True, torch says so when something other than tensors is in the file.
        if "weights_only" in str(error) and not allow_pickle and _is_torch_file(path):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise InputDataError(
                f"The file {path} holds Python objects other than tensors"
                f"{f' ({found[1]})' if found else ''}, which could run code: save its state_dict "
                "instead, or allow pickle if you trust where it comes from."
            ) from error
        raise _damaged(path, error) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _is_torch_file(path: Path) -> bool:
    """Whether the file starts as ``torch.save`` writes it: a zip archive, or a pickle (old)."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def _damaged(path: Path, error: Exception) -> InputDataError:
    reason = first_line(error, 120)
    return InputDataError(
        f"The weights file {path} is truncated or not a weights file ({reason}): expected a "
        "safetensors file or a saved state_dict; copy or download it again."
    )


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())

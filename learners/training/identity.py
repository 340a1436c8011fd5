"""Identity of a training run: settings as plain numbers, digests of networks."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def plain(value: Any, where: str) -> Any:
    """Returns settings with Python's own numbers for NumPy's, which checkpoints cannot hold.

    Args:
        value: Numbers, strings, ``None``, or lists, tuples and mappings of them.
        where: What to call them in the message.

    Raises:
        ValueError: If anything else is among them.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {plain(k, where): plain(v, where) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v, where) for v in value)
    raise ValueError(
        f"Expected numbers, strings and lists or mappings of them in {where}, got "
        f"{type(value).__name__}: a checkpoint could not be compared with it."
    )


def fingerprint(model: nn.Module) -> str:
    """Describes names and shapes; equal for networks whose checkpoints fit each other."""
    shapes = [
        (key, list(value.shape) if isinstance(value, Tensor) else type(value).__name__)
        for key, value in model.state_dict().items()
    ]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:8]
    return f"{sum(p.numel() for p in model.parameters())} parameters ({digest})"


def digest_of(model: nn.Module) -> str:
    """Describes the values; equal for networks that give the same answers."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        if isinstance(value, Tensor):  # a module may keep anything as its extra state
            numbers = value.detach().cpu().contiguous().view(-1)
            digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def copy_of(model: nn.Module) -> dict[str, Any]:
    """Returns a ``state_dict`` in main memory that further training does not change."""
    return {
        key: value.detach().cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in model.state_dict().items()
    }

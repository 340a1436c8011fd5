"""Data sets with named columns: those that a network takes, and the targets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from amc_compress.data.batches import Samples, has_samples
from amc_compress.learners.tasks.task import TARGETS
from amc_env.errors import InputDataError


def for_network(data: Any, name: str, network: nn.Module) -> Any:
    """Returns data whose rows, if they are mappings, hold what a network and its loss take.

    As the trainer of ``transformers`` does, columns that the forward does not know are left out.
    If it knows none of them and there is one, that is the input. All other data stay as they are.

    Args:
        data: A data set, or anything else.
        name: What errors call it.
        network: Whose forward is asked.
    """
    if not has_samples(data) or len(data) == 0 or not isinstance(data[0], Mapping):
        return data
    return _Columns(data, name, _parameters(network))


def _parameters(network: nn.Module) -> frozenset[str] | None:
    """The names that a network's forward takes; None if it takes any."""
    parameters = inspect.signature(network.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return frozenset(parameters)


class _Columns(Dataset[Any]):
    """Rows of a data set with the columns that are wanted.

    Args:
        data: Its rows are mappings.
        name: What errors call it.
        wanted: Names that the network takes; None for any.
    """

    def __init__(self, data: Samples, name: str, wanted: frozenset[str] | None) -> None:
        self.data = data
        self.name = name
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        row = self.data[index]
        targets = {key: _tensor(row[key]) for key in TARGETS if key in row}
        inputs = {key: _tensor(value) for key, value in row.items() if key not in targets}
        known = {k: v for k, v in inputs.items() if self.wanted is None or k in self.wanted}
        if known:
            return known | targets
        if len(inputs) == 1:  # whatever it is called
            return (*inputs.values(), *targets.values())
        raise InputDataError(
            f"Expected columns of {self.name} named like the parameters of the network's forward, "
            f"{', '.join(sorted(self.wanted or ()))}, got {', '.join(sorted(inputs))}; rename or "
            f"remove some."
        )


def _tensor(value: Any) -> Any:
    """Arrays and lists of numbers, nested ones too, as tensors; anything else as it is."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    inner = value
    while isinstance(inner, list) and inner:
        inner = inner[0]
    if isinstance(value, list) and isinstance(inner, bool | int | float):
        with suppress(ValueError, TypeError):  # rows of different lengths
            return torch.tensor(value)
    return value

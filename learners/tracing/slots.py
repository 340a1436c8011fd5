"""Slots: the axes of parameters that hold channels."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class UnitSlot:
    """Where the units of one group live in one tensor.

    Args:
        module: Qualified name of the module that owns the tensor.
        tensor: Its name there, for example ``"weight"``.
        axis: The axis of the tensor.
        coordinates: Coordinates of every unit, shape ``(size, multiplicity)``.
        role: ``"producer"`` (the unit's outputs are made here), ``"consumer"`` (they are read
            here) or ``"per_channel"`` (norms and other parameters of the channel itself).
    """

    module: str
    tensor: str
    axis: int
    coordinates: Tensor
    role: str


@dataclass
class Slot:
    """One axis of one parameter or buffer.

    ``units`` holds, per coordinate, the index of the unit that it belongs to (0: none); it holds
    classes of labels until the groups are known.
    """

    name: str
    axis: int
    role: str
    units: Tensor

    @property
    def module(self) -> str:
        """Qualified name of the owning module."""
        return self.name.rpartition(".")[0]

    @property
    def tensor(self) -> str:
        """Name of the tensor in its module."""
        return self.name.rpartition(".")[2]


def layer_name(parameter: str) -> str:
    """Returns what a layer is called: its module, or its parameter if that is not ``weight``."""
    module, _, tensor = parameter.rpartition(".")
    return module if tensor == "weight" and module else parameter


def weight_name(layer: str, parameters: Container[str]) -> str | None:
    """Returns the name of a layer's weight, the inverse of :func:`layer_name`."""
    for name in (f"{layer}.weight".lstrip("."), layer):
        if name in parameters:
            return name
    return None

"""Regularisers that shrink whole channels during training, before they are cut.

Both work on a network of the original's shapes and are a term of the loss, so that momentum and
the clipping of gradients see them like everything else. A unit's weights are all trained numbers
that go when it is cut: the filters that make it, their biases, the scale and shift of its batch
norm, and the weights that read it (Fang et al. 2023, section 3.3).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.tracing.traced_model import TracedModel, UnitSlot
from amc_compress.learners.training.hooks import TrainingHook
from amc_env.errors import InputDataError
from amc_env.validation.checks import checked

Units = Mapping[str, Tensor]
"""Channel group -> units of it, int64, shape (n,)."""

DEFAULT_WEIGHT = 2e-3
"""Of the group lasso."""
DEFAULT_CEILING = 1.0
"""Of the growing factor, as in the code of Wang et al."""

# Below this norm a unit has gone; the gradient of its norm would be a division by nothing.
_SMALLEST_NORM = 1e-12
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FROZEN = "Expected channels with weights that are trained, but all of theirs are frozen."


class UnitNorms:
    """The norm of all weights of every unit of some channel groups.

    Args:
        traced: The original network with its groups.
        network: The network of the same shapes whose weights count.
        groups: Names of channel groups.

    Attributes:
        sizes: Trained numbers of one unit, group -> count. A weight that belongs to a unit twice,
            because it both reads and makes it, counts twice.

    Raises:
        InputDataError: If the network has not the original's shapes.
        ValueError: If a group is unknown.
    """

    def __init__(self, traced: TracedModel, network: nn.Module, groups: list[str]) -> None:
        self._axes: dict[tuple[str, int], int] = {}  # -> first position in the joint vector
        self._parameters: list[tuple[Tensor, int]] = []
        self._ranges: dict[str, slice] = {}
        self.sizes: dict[str, int] = {}
        sources, targets = [], []
        length = units = 0
        for group in groups:
            size = next(g.size for g in traced.graph.groups if g.name == group)
            self.sizes[group] = 0
            for slot, parameter in unit_parameters(traced, network, group):
                key = (f"{slot.module}.{slot.tensor}", slot.axis)
                if key not in self._axes:
                    self._axes[key] = length
                    self._parameters.append((parameter, slot.axis))
                    length += parameter.shape[slot.axis]
                per_coordinate = parameter.numel() // parameter.shape[slot.axis]
                self.sizes[group] += slot.coordinates.shape[1] * per_coordinate
                sources.append((slot.coordinates + self._axes[key]).flatten())
                owners = torch.arange(units, units + size)
                targets.append(owners.repeat_interleave(slot.coordinates.shape[1]))
            self._ranges[group] = slice(units, units + size)
            units += size
        if not self._parameters:
            raise InputDataError(_FROZEN)
        device = self._parameters[0][0].device
        self._sources = torch.cat(sources).to(device)
        self._targets = torch.cat(targets).to(device)
        self._zeros = torch.zeros(units, device=device)

    def all(self) -> Tensor:
        """Returns the norms of the units of all groups one after the other, with gradient."""
        squares = torch.cat(
            [
                p.float().square().movedim(axis, 0).reshape(p.shape[axis], -1).sum(1)
                for p, axis in self._parameters
            ]
        )
        sums = self._zeros.index_add(0, self._targets, squares[self._sources])
        return sums.clamp_min(_SMALLEST_NORM**2).sqrt()

    def where(self, group: str) -> slice:
        """Returns where the units of a group are in :meth:`all`."""
        return self._ranges[group]


def unit_parameters(
    traced: TracedModel, network: nn.Module, group: str
) -> list[tuple[UnitSlot, Tensor]]:
    """Returns where the units of a group live among the trained parameters of a network.

    Raises:
        InputDataError: If the network has not the original's shapes.
        ValueError: If there is no such group.
    """
    originals, parameters = (dict(n.named_parameters()) for n in (traced.model, network))
    found: list[tuple[UnitSlot, Tensor]] = []
    for slot in traced.unit_slots(group):
        name = f"{slot.module}.{slot.tensor}".lstrip(".")
        if name not in originals:  # the running statistics of a norm are not trained
            continue
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != originals[name].shape:
            got = "none" if parameter is None else f"shape {list(parameter.shape)}"
            raise InputDataError(
                f"Expected a network of the original's shapes, with {name} of shape "
                f"{list(originals[name].shape)}, got {got}: penalise channels before they are cut."
            )
        if parameter.requires_grad:
            found.append((slot, parameter))
    return found


def unit_norms(traced: TracedModel, network: nn.Module, group: str) -> Tensor:
    """Returns the Euclidean norm of all weights of each unit of a group, shape (size,).

    Raises:
        InputDataError: If the network has not the original's shapes.
        ValueError: If there is no such group.
    """
    traced.unit_slots(group)
    with torch.no_grad():
        return UnitNorms(traced, network, [group]).all()


def _checked(traced: TracedModel, units: Units) -> dict[str, Tensor]:
    """Returns the units per group as sorted indices; groups without any are left out."""
    sizes = {group.name: group.size for group in traced.graph.groups}
    checked = {}
    for name, chosen in units.items():
        if name not in sizes:
            raise ValueError(f"No channel group named {name!r}; groups: {sorted(sizes)}.")
        given = torch.as_tensor(chosen)
        if given.dtype not in _INTEGERS and given.numel():  # a mask would be read as units 0 and 1
            raise ValueError(
                f"Expected units of the group {name!r} as integers, got {given.dtype}: give a mask "
                f"as mask.nonzero()[:, 0]."
            )
        index = given.to("cpu", torch.int64).sort().values
        inside = index.dim() == 1 and bool(((index >= 0) & (index < sizes[name])).all())
        if not inside or bool((index[1:] == index[:-1]).any()):
            raise ValueError(
                f"Expected distinct units below {sizes[name]} of the group {name!r}, got "
                f"{index.tolist()}."
            )
        if len(index):
            checked[name] = index
    if not checked:
        raise ValueError("Expected at least one unit that shall fade, got none.")
    return checked


def _digest(units: Units) -> str:
    """Describes units in a few letters; equal for equal units."""
    rows = sorted((name, index.tolist()) for name, index in units.items())
    count = sum(len(index) for _, index in rows)
    return f"{count} units ({hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]})"


@checked
class GroupLassoPenalty(TrainingHook):
    """Adds ``weight * sum over units of sqrt(size) * ||all weights of the unit||_2`` to the loss.

    Yuan & Lin 2006, eq. 2.1 (the factor ``sqrt(size)`` makes units of few and of many weights
    alike); on the channels of a network Wen et al. 2016, eq. 2; on units of dependent layers
    Fang et al. 2023, eq. 4. Every weight of a unit shrinks by the same share, whatever its scale,
    so batch norms' scales and shifts are included as they are; without them a smaller filter
    would change nothing.

    Args:
        traced: The original network with its channel groups.
        units: Channel group -> units that shall fade; all units of all groups if ``None``.
        weight: Of the term.

    Raises:
        ValueError: If the weight is not positive or a unit is unknown.
    """

    name = "group-lasso"

    def __init__(
        self, traced: TracedModel, units: Units | None = None, weight: float = DEFAULT_WEIGHT
    ) -> None:
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"Expected a weight above 0, got {weight}.")
        everything = {group.name: torch.arange(group.size) for group in traced.graph.groups}
        self.units = _checked(traced, everything if units is None else units)
        self.weight = weight
        self._traced = traced
        self._total_steps = 0
        self._norms: UnitNorms | None = None
        self._factors = torch.empty(0)

    def identity(self) -> Mapping[str, Any]:
        """Returns the weight and the units."""
        return {"weight": self.weight, "units": _digest(self.units)}

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        """Finds the weights of the units.

        Raises:
            InputDataError: If the network has not the original's shapes.
        """
        self._total_steps = total_steps
        self._norms = norms = UnitNorms(self._traced, model, list(self.units))
        factors = torch.zeros(max(norms.where(group).stop for group in self.units))
        for group, chosen in self.units.items():
            factors[norms.where(group)][chosen] = math.sqrt(norms.sizes[group])
        self._factors = factors.to(next(model.parameters()).device)

    def loss(self) -> Tensor | None:
        """Returns the penalty of the weights as they are."""
        assert self._norms is not None
        return self.weight * torch.dot(self._factors, self._norms.all())

    def is_ready(self, step: int) -> bool:
        """Whether the training is over: units fade to its end.

        The whole network is the more accurate the less they have faded, so an earlier epoch that
        wins by accuracy is one that lost the least.
        """
        return step >= self._total_steps

    def finish(self) -> None:
        """Lets the network go."""
        self._norms = None


@checked
class GrowingRegularisation(TrainingHook):
    """Adds ``factor(step) / 2 * ||weights of the units to remove||^2`` to the loss, growing.

    GReg-1 of Wang et al. 2021 (arXiv:2012.09243, algorithm 1): the L2 factor of what
    will be cut grows by ``delta`` every ``interval`` steps up to ``ceiling`` and stays there; all
    other weights keep the ordinary weight decay of the training. Beyond the paper, which penalises
    filters alone, the penalty includes the scale and shift of the batch norm and the weights that
    read the unit. A weight that belongs to several units to be removed is penalised once.

    Args:
        traced: The original network with its channel groups.
        units: Channel group -> units that will be cut.
        delta: What the factor grows by; if ``None``, so that it reaches the ceiling after
            ``rise`` of the training.
        interval: Steps between two raises.
        ceiling: Largest factor.
        rise: Share of the training, for ``delta=None``.

    Raises:
        ValueError: If an option is out of range or a unit is unknown.
    """

    name = "growing-regularisation"

    def __init__(
        self,
        traced: TracedModel,
        units: Units,
        *,
        delta: float | None = None,
        interval: int = 5,
        ceiling: float = DEFAULT_CEILING,
        rise: float = 0.75,
    ) -> None:
        for option, value in (("delta", delta), ("ceiling", ceiling)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"Expected {option} above 0, got {value}.")
        if interval < 1 or not 0 < rise <= 1:
            raise ValueError(
                f"Expected interval >= 1 and rise in (0, 1], got {interval} and {rise}."
            )
        self.units = _checked(traced, units)
        self.delta = delta
        self.interval = interval
        self.ceiling = ceiling
        self.rise = rise
        self._traced = traced
        self._step = 0
        self._growth = math.nan
        self._doomed: list[tuple[Tensor, Tensor]] = []

    def identity(self) -> Mapping[str, Any]:
        """Returns the schedule and the units."""
        return {
            "delta": self.delta,
            "interval": self.interval,
            "ceiling": self.ceiling,
            "rise": self.rise,
            "units": _digest(self.units),
        }

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        """Finds the weights of the units and fits the schedule to the training.

        Raises:
            InputDataError: If the network has not the original's shapes.
            ValueError: If the training ends before the factor is at its ceiling.
        """
        raises = (total_steps - 1) // self.interval
        if raises < 1:
            raise ValueError(
                f"Expected a training in which the penalty reaches its ceiling {self.ceiling:g}, "
                f"but {total_steps} steps end before it is raised the first time, after "
                f"{self.interval}: train longer, or with a smaller interval."
            )
        if self.delta is None:
            self._growth = self.ceiling / max(1, math.floor(self.rise * raises))
        elif self.delta * raises < self.ceiling * (1 - 1e-9):
            raise ValueError(
                f"Expected a training in which the penalty reaches its ceiling {self.ceiling:g}, "
                f"but {total_steps} steps with delta={self.delta:g} every {self.interval} end at "
                f"{self.delta * raises:g}: raise delta to {self.ceiling / raises:.3g}, or "
                f"train longer."
            )
        else:
            self._growth = self.delta
        masks: dict[int, tuple[Tensor, Tensor]] = {}
        for group, chosen in self.units.items():
            for slot, parameter in unit_parameters(self._traced, model, group):
                _, mask = masks.setdefault(
                    id(parameter), (parameter, torch.zeros_like(parameter, dtype=torch.bool))
                )
                where = slot.coordinates[chosen].flatten().to(mask.device)
                mask.index_fill_(slot.axis, where, True)
        if not masks:
            raise InputDataError(_FROZEN)
        self._doomed = list(masks.values())

    def factor(self, step: int) -> float:
        """Returns the L2 factor in ``step``, from 0."""
        return min(self.ceiling, self._growth * (step // self.interval))

    def before_step(self, step: int) -> None:
        """Takes the factor of the step."""
        self._step = step

    def loss(self) -> Tensor | None:
        """Returns the penalty of the weights as they are."""
        factor = self.factor(self._step)
        if factor == 0.0:
            return None
        squares = [(parameter.float() * mask).square().sum() for parameter, mask in self._doomed]
        return 0.5 * factor * torch.stack(squares).sum()

    def is_ready(self, step: int) -> bool:
        """Whether the full penalty has acted: before, the units have not faded."""
        return self.factor(step - 1) >= self.ceiling * (1 - 1e-9)

    def finish(self) -> None:
        """Lets the network go."""
        self._doomed = []

"""Importance criteria for units of a channel group: context -> score per unit.

Scores are compared within one group only, so every criterion is free to choose its scale. They do
not depend on the plan: the best ``k`` units are the same whatever happens to the other groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amc_compress.learners.channel_pruning.lasso import entry_order_scores
from amc_env.validation.checks import check_known


@dataclass(frozen=True)
class SlotView:
    """The numbers of one tensor that belong to each unit of a group.

    Args:
        role: ``"producer"`` (writes the unit), ``"consumer"`` (reads it) or ``"per_channel"``
            (scales or shifts it, batch norm for one).
        module: Qualified name of the module.
        tensor: Name of the parameter or buffer in it.
        kind: Class name of the module.
        values: Shape (size, numbers per unit).
    """

    role: str
    module: str
    tensor: str
    kind: str
    values: Tensor


@dataclass(frozen=True)
class ReaderView:
    """A layer that reads a group, and what it reads.

    Args:
        weight: Shape (conv groups, outputs per group, n), n columns of its unfolded inputs.
        moments: Means of products of two columns over positions, shape (conv groups, n, n).
        columns: Those of each unit, shape (size, columns per unit).
    """

    weight: Tensor
    moments: Tensor
    columns: Tensor


@dataclass(frozen=True)
class GroupContext:
    """All a criterion may look at.

    Args:
        name: Name of the group.
        size: Number of units.
        slots: Weights that belong to the units.
        seed: Seed of this group's random numbers.
        gate_gradients: Returns d loss / d gate per calibration batch and unit, (batches, size).
        contributions: Returns the quadratic form of He et al. 2017 (size, size), or ``None``
            where no input statistics exist.
        readers: Returns the layers that read the units, those that have input statistics.
    """

    name: str
    size: int
    slots: tuple[SlotView, ...]
    seed: int = 0
    gate_gradients: Callable[[], Tensor] | None = None
    contributions: Callable[[], Tensor | None] | None = None
    readers: Callable[[], Sequence[ReaderView]] | None = None

    def values(self, *roles: str) -> list[Tensor]:
        """Returns the weights of the slots in the first of ``roles`` that the group has."""
        for role in roles:
            found = [s.values.double() for s in self.slots if s.role == role]
            if found:
                return found
        return []


Criterion = Callable[[GroupContext], Tensor]


def l1(group: GroupContext) -> Tensor:
    """Sum of absolute weights that read the unit, over all consumers (AMC's own choice).

    He et al. 2018 (AMC), code: ``importance_j = sum |W[:, j, :, :]|``. Groups that no layer with
    weights reads are scored by the filters that write them (Li et al. 2017, section 3.1).
    """
    return _sum(group, [v.abs().sum(1) for v in group.values("consumer", "producer")])


def l2(group: GroupContext) -> Tensor:
    """Euclidean norm of the weights that read the unit; like :func:`l1` otherwise."""
    return _sum(group, [v.square().sum(1) for v in group.values("consumer", "producer")]).sqrt()


def bn_scale(group: GroupContext) -> Tensor:
    """Sum of |gamma| of the batch norms behind the unit (Liu et al. 2017, network slimming).

    Groups without a batch norm are scored by :func:`l2` of the filters that write them.
    """
    scales = [
        s.values.double().abs().sum(1)
        for s in group.slots
        if s.role == "per_channel" and s.tensor == "weight" and "BatchNorm" in s.kind
    ]
    if scales:
        return _sum(group, scales)
    return _sum(group, [v.square().sum(1) for v in group.values("producer", "consumer")]).sqrt()


def taylor(group: GroupContext) -> Tensor:
    """Squared first-order change of the loss if the unit is gated off, mean over batches.

    Molchanov et al. 2019, equation 8 with the gate form of section 3.2:
    ``I_m = E[(dL/dz_m)^2]``, ``z_m = 1`` a factor on unit m. A gate before a linear map scales the
    slice of weights that reads the unit, so ``dL/dz_m`` is the sum of gradient x weight there.
    """
    if group.gate_gradients is None:
        raise ValueError("The criterion 'taylor' needs gradients on calibration batches.")
    return group.gate_gradients().double().square().mean(0)


def geometric_median(group: GroupContext) -> Tensor:
    """Sum of distances to the other filters (He et al. 2019, FPGM, equation 4).

    Filters near the geometric median are the replaceable ones; a group with several producers
    concatenates them.
    """
    found = group.values("producer", "consumer")
    if not found:
        return torch.zeros(group.size, dtype=torch.float64)
    filters = torch.cat(found, 1)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def random(group: GroupContext) -> Tensor:
    """Independent uniform numbers: the baseline that any other criterion has to beat."""
    generator = torch.Generator().manual_seed(group.seed)
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def lasso(group: GroupContext) -> Tensor:
    """The order in which units enter the LASSO path of He et al. 2017 (see ``lasso.py``).

    Groups whose consumers have no input statistics are scored by :func:`l1`.
    """
    form = group.contributions() if group.contributions is not None else None
    if form is None:
        return l1(group)
    return entry_order_scores(form)


def wanda(group: GroupContext) -> Tensor:
    """Weights that read the unit, times the size of their inputs (Sun et al. 2023, section 3).

    Sum of ``|W_ij| ||X_j||`` over the unit's columns j and all outputs i, with the root of the mean
    square as the norm: what stands in a weight says little where inputs differ much in size.
    Groups whose consumers have no input statistics are scored by :func:`l1`.
    """
    readers = group.readers() if group.readers is not None else ()
    scores = []
    for reader in readers:
        norms = reader.moments.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt()
        columns = (reader.weight.abs().sum(1) * norms).sum(0)
        scores.append(columns[reader.columns].sum(1).cpu())
    return _sum(group, scores) if scores else l1(group)


def output_energy(group: GroupContext) -> Tensor:
    """Mean square of what the unit adds to the outputs of the layers that read it.

    ``trace(W_u E[x_u x_u^T] W_u^T)``, of each layer as a share of its outputs' mean square: for a
    head of attention what it writes through the output projection. Groups whose consumers have no
    input statistics are scored by :func:`l1`.
    """
    readers = group.readers() if group.readers is not None else ()
    scores = []
    for reader in readers:
        columns = reader.columns
        inside = reader.moments[:, columns[:, :, None], columns[:, None, :]]
        weight = reader.weight[:, :, columns]
        energy = torch.einsum("gosk,gskl,gosl->s", weight, inside, weight)
        total = torch.einsum("gok,gkl,gol->", reader.weight, reader.moments, reader.weight)
        scores.append((energy / total).cpu())
    return _sum(group, scores) if scores else l1(group)


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "geometric_median": geometric_median,
    "random": random,
    "lasso": lasso,
    "wanda": wanda,
    "output_energy": output_energy,
}


def make_criterion(criterion: str | Criterion) -> Criterion:
    """Returns the criterion of that name, or the given function itself.

    Raises:
        ValueError: If there is none of that name.
    """
    if callable(criterion):
        return criterion
    check_known("criterion", criterion, sorted(CRITERIA))
    return CRITERIA[criterion]


def rank_units(scores: Tensor) -> Tensor:
    """Returns unit indices, best first; of equal scores the lower index first."""
    return torch.sort(scores.detach().double().cpu(), descending=True, stable=True).indices


def _sum(group: GroupContext, terms: list[Tensor]) -> Tensor:
    """Adds per-unit scores of several tensors; zero where a group has none."""
    if not terms:
        return torch.zeros(group.size, dtype=torch.float64)
    return torch.stack([t.double() for t in terms]).sum(0)

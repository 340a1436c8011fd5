"""Greedy channel selection (Zhuang et al. 2018, algorithm 2) as a ranking of all units.

    A = {};  repeat:  G = dL/dW at W_A,   k = argmax_{j not in A} ||G_j||_F,   A = A + {k},
                      W_A = argmin L(W_A)
    L(W) = L_M(W) + lambda L_S^p(W),   L_M = ||O - O^b||^2 / ||O^b||^2

The leaf of the gradient is the weight with zeros for all channels that are not in ``A``; its
gradient is defined there too, and says how much a channel would help if it came back. Where a
group has several consumers all of them lack the same units; their losses add up, and so do the
squares of their gradients relative to their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from amc_compress.learners.channel_pruning.criteria import rank_units
from amc_compress.learners.channel_pruning.discrimination.heads import Discriminator
from amc_compress.learners.channel_pruning.ranking import per_unit
from amc_compress.learners.numerics.precision import autocast
from amc_compress.learners.tasks.inputs import Inputs, Split, ask, device_of, hooked
from amc_compress.learners.tasks.outputs import tensors_in
from amc_compress.learners.tracing.slots import UnitSlot
from amc_env.errors import TrainingDivergedError

RELATIVE_RATE = 0.02
"""Of Adam, in units of the root mean square of a layer's weights: layers differ in scale."""

_TARGET_BYTES = 512 * 2**20


@dataclass(frozen=True)
class GreedyOptions:
    """How units are added.

    Args:
        layer_steps: Optimiser steps on the present weights after each addition.
        per_step: Units added at a time.
    """

    layer_steps: int
    per_step: int

    def additions(self, size: int) -> int:
        """Returns how often units are added to a group of that size."""
        return -(-size // self.per_step)


class GatedWeights:
    """The weights that read the units of one group, with zeros for the units that are absent.

    Args:
        network: Its weights are what a unit brings along when it is added.
        slots: Where the units occur.
    """

    def __init__(self, network: nn.Module, slots: Sequence[UnitSlot]) -> None:
        self.slots = slots
        self.pretrained = {_name(s): network.get_parameter(_name(s)).detach() for s in slots}
        self.leaves = {name: value.clone() for name, value in self.pretrained.items()}
        self.present = {name: torch.ones_like(value) for name, value in self.pretrained.items()}
        for slot in slots:
            where = slot.coordinates.flatten().to(self.leaves[_name(slot)].device)
            for tensors in (self.leaves, self.present):
                tensors[_name(slot)].index_fill_(slot.axis, where, 0.0)

    def add(self, units: Tensor) -> None:
        """Lets units in, with their pre-trained weights."""
        for slot in self.slots:
            name, axis = _name(slot), slot.axis
            where = slot.coordinates[units].flatten().to(self.leaves[name].device)
            start = self.pretrained[name].index_select(axis, where)
            self.leaves[name].index_copy_(axis, where, start)
            self.present[name].index_fill_(axis, where, 1.0)

    def squared_norms(self, gradients: dict[str, Tensor]) -> Tensor:
        """Returns ``||G_k||_F^2`` per unit, in units of its layer's weights, summed over the slots.

        The gradient of a layer in front of a batch norm is inverse to the size of its weights,
        which means nothing there: without the factor small weights would decide for all readers.
        """
        total: Tensor | None = None
        for slot in self.slots:
            norms = per_unit(gradients[_name(slot)], slot).double().square().sum(1).cpu()
            norms *= self.pretrained[_name(slot)].double().square().mean().item()
            total = norms if total is None else total + norms
        assert total is not None
        return total


class GroupLoss:
    """``L_M + lambda sum L_S`` of one group as a function of the weights that read it.

    Args:
        discriminator: The network to select in, trained up to here.
        original: The network whose feature maps are to be kept.
        slots: Where the units occur.
        stages: Whose discrimination-aware losses count.
        batches: The data; all that fit into the memory set aside for feature maps, at least one.
        weight: ``lambda``.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        original: nn.Module,
        slots: Sequence[UnitSlot],
        stages: Collection[int],
        batches: Sequence[Split],
        weight: float,
    ) -> None:
        self.discriminator = discriminator
        self.stages = tuple(sorted(set(stages)))
        self.weight = weight
        self.layers = list(dict.fromkeys(slot.module for slot in slots))
        self.batches: list[Split] = []
        self.targets: list[dict[str, list[Tensor]]] = []
        used = 0
        for batch in batches:
            target = self._feature_maps(original, batch[0])
            used += sum(values.nbytes for maps in target.values() for values in maps)
            if self.batches and used > _TARGET_BYTES:
                break
            self.batches.append(batch)
            self.targets.append(target)

    def gradients(self, weights: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """Returns ``dL/dW`` on one mini-batch, for absent units too.

        Args:
            weights: By parameter name.
            index: Of the mini-batch; they come round again.

        Raises:
            TrainingDivergedError: If a gradient is not finite.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        with torch.enable_grad():
            loss = self.loss(leaves, index)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }
        for name, gradient in gradients.items():
            if not gradient.isfinite().all():
                raise TrainingDivergedError(
                    f"Expected finite gradients of {name!r} in the selection of channels, got NaN "
                    f"or infinite ones; check the weights, or prepare with precision='fp32'."
                )
        return gradients

    def loss(self, weights: dict[str, Tensor], index: int) -> Tensor:
        """Returns ``L`` on one mini-batch, a scalar."""
        inputs, right = self.batches[index % len(self.batches)]
        targets = self.targets[index % len(self.batches)]
        terms: list[Tensor] = []
        seen = dict.fromkeys(targets, 0)

        def compare(name: str, output: Tensor) -> None:
            if name in targets and seen[name] < len(targets[name]):
                target = targets[name][seen[name]].float()
                seen[name] += 1
                energy = target.square().mean().clamp(min=1e-12)
                terms.append((output.float() - target).square().mean() / energy)

        network = self.discriminator.network
        with _watched(network, self.layers, compare):
            found = self.discriminator.losses(inputs, right, self.stages, weights=weights)
        terms += [self.weight * value for value in found.values()]
        return torch.stack(terms).sum()

    def _feature_maps(self, original: nn.Module, inputs: Inputs) -> dict[str, list[Tensor]]:
        maps: dict[str, list[Tensor]] = {}

        def keep(name: str, output: Tensor) -> None:
            maps.setdefault(name, []).append(output.detach().clone())

        dtype = self.discriminator.dtype
        with (
            _watched(original, self.layers, keep),
            torch.no_grad(),
            autocast(dtype, device_of(inputs)),
        ):
            ask(original, inputs)
        return maps


def greedy_order(
    weights: GatedWeights,
    problem: GroupLoss,
    size: int,
    options: GreedyOptions,
    report: Callable[[], object] = lambda: None,
) -> Tensor:
    """Adds units until all are there; returns them in the order of their addition.

    Of units added at the same time the one with the larger gradient comes first; of equal ones
    that with the lower index.

    Args:
        weights: Of a group, none of whose units is present.
        problem: What they are to minimise.
        size: Units of the group.
        options: How they are added.
        report: Called after each addition.

    Raises:
        TrainingDivergedError: If a gradient is not finite.
    """
    order = torch.empty(0, dtype=torch.int64)
    turn = count()  # the mini-batch of each gradient
    while len(order) < size:
        norms = weights.squared_norms(problem.gradients(weights.leaves, next(turn)))
        norms[order] = -1.0
        chosen = rank_units(norms)[: min(options.per_step, size - len(order))]
        weights.add(chosen)
        order = torch.cat([order, chosen])
        if len(order) < size:
            minimise(weights, problem, options.layer_steps, turn)
        report()
    return order


def minimise(weights: GatedWeights, problem: GroupLoss, steps: int, turn: Iterator[int]) -> None:
    """Takes Adam steps on the weights that are present; the others stay zero."""
    if not steps:
        return
    groups = [
        {
            "params": [leaf],
            "lr": RELATIVE_RATE * weights.pretrained[name].square().mean().sqrt().item(),
        }
        for name, leaf in weights.leaves.items()
    ]
    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        gradients = problem.gradients(weights.leaves, next(turn))
        for name, leaf in weights.leaves.items():
            leaf.grad = gradients[name] * weights.present[name]
        optimizer.step()


def _name(slot: UnitSlot) -> str:
    return f"{slot.module}.{slot.tensor}".lstrip(".")


@contextmanager
def _watched(
    network: nn.Module, layers: Collection[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Shows the outputs of some layers while the network runs."""

    def hook(name: str) -> Callable[..., None]:
        def leave(_module: nn.Module, _inputs: object, output: object) -> None:
            tensors = tensors_in(output)
            if tensors and tensors[0].is_floating_point():
                see(name, tensors[0])

        return leave

    handles = [network.get_submodule(x).register_forward_hook(hook(x)) for x in layers]
    with hooked(handles):
        yield

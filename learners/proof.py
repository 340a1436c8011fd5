"""Proves channel groups: a sliced network must compute what the masked one computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from amc_env.graph import ChannelGroup
from learners.claims import Claims
from learners.forward_tracing import TracedForward
from learners.grouping import Grouper, Grouping
from learners.outputs import difference
from learners.rewrite_checks import Rewrites, make_rewrites
from learners.rewrites import Rewrite
from learners.surgery import Surgeon
from learners.watching import Watch

TOLERANCE = 1e-5


def randomised(model: nn.Module, generator: torch.Generator) -> None:
    """Makes degenerate tensors generic, in place; for a copy that only serves the proof.

    A batch norm that has its initial values, or a residual branch that starts at zero, hides
    every mistake: all its channels are equal.
    """
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            if bool((tensor == 0).float().mean() > 0.3) or float(tensor.std()) == 0:
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                scale = 0.5 if tensor.dim() < 2 else 2 / max(1, tensor[0].numel()) ** 0.5
                positive = name.endswith("running_var")
                tensor.add_(noise * scale if positive else (noise - 0.5) * scale)


def random_cut(
    sizes: Mapping[str, int], generator: torch.Generator, fraction: float | None = 0.5
) -> dict[str, Tensor]:
    """Returns a random set of kept units per group.

    Args:
        sizes: Units per group.
        generator: The source of randomness.
        fraction: Share that stays. None draws one per group, of any size, with much weight on a
            single unit and on all of them: equal shares everywhere would hide mistakes.
    """
    kept = {}
    for name, size in sizes.items():
        share = fraction
        if share is None:
            share = 1.5 * float(torch.rand((), generator=generator)) - 0.25
        most = size if fraction is None else max(1, size - 1)
        count = min(most, max(1, round(share * size)))
        kept[name] = torch.randperm(size, generator=generator)[:count].sort().values
    return kept


class Prover:
    """Compares sliced and masked copies of a network on some inputs.

    Args:
        surgeon: Cuts a copy of the network (with generic weights).
        inputs: Argument tuples to run it on.
    """

    def __init__(self, surgeon: Surgeon, inputs: Sequence[tuple[Tensor, ...]]) -> None:
        self.surgeon = surgeon
        self.inputs = inputs
        self.masked = copy.deepcopy(surgeon.model)

    def fault(self, kept: Mapping[str, Tensor]) -> str | None:
        """Returns what is wrong with a cut, None if it is right."""
        try:
            sliced, masked = self.surgeon.slice(kept), self.masked
            self.surgeon.mask_copy(masked, kept)
            with torch.no_grad():
                for arguments in self.inputs:
                    deviation = difference(sliced(*arguments), masked(*arguments))
                    if not deviation <= TOLERANCE:
                        return f"a cut changes the output by {deviation:.1e}"
        except Exception as error:  # any failure of a cut network is a reason not to cut it
            text = str(error).strip().splitlines() or [type(error).__name__]
            return f"a cut network does not run: {text[0][:200]}"
        return None


@dataclass
class _Trial:
    """Groups to prove, with what is needed to cut along them."""

    grouping: Grouping
    provers: list[Prover]
    proved: set[ChannelGroup]
    generator: torch.Generator

    def faults(self) -> dict[str, str]:
        """Returns group -> what is wrong with it; empty once all are right, alone and together."""
        groups = [group for group in self.grouping.graph.groups if group not in self.proved]
        faults: dict[str, str] = {}
        for group in groups:
            fault = self.provers[0].fault(random_cut({group.name: group.size}, self.generator))
            if fault is None:
                self.proved.add(group)
            else:
                faults[group.name] = fault
        return faults or self._joint_faults()

    def _joint_faults(self) -> dict[str, str]:
        sizes = {group.name: group.size for group in self.grouping.graph.groups}
        generic, real = self.provers
        trials = ((generic, None), (generic, None), (generic, 0.0), (real, 0.5))
        for prover, fraction in trials:
            kept = random_cut(sizes, self.generator, fraction)
            fault = prover.fault(kept) if sizes else None
            if fault is not None:
                return {self._culprit(prover, kept): f"together with other groups {fault}"}
        return {}

    @staticmethod
    def _culprit(prover: Prover, kept: Mapping[str, Tensor]) -> str:
        """Returns the last group of the shortest wrong prefix: right alone, wrong together."""
        names = list(kept)
        low, high = 0, len(names)  # the prefix of length `low` is right, that of `high` is wrong
        while high - low > 1:
            middle = (low + high) // 2
            if prover.fault({name: kept[name] for name in names[:middle]}) is None:
                low = middle
            else:
                high = middle
        return names[high - 1]


def prove(
    model: nn.Module, watch: Watch, arguments: tuple[Tensor, ...]
) -> tuple[Grouping, list[Rewrite]]:
    """Returns groups that are right alone and together, and the rewrites they need.

    Args:
        model: The network.
        watch: Runs it under labels.
        arguments: Its inputs.
    """
    generator = torch.Generator().manual_seed(0)
    batch = arguments[0].shape[0] if arguments and arguments[0].dim() else 1
    generic = copy.deepcopy(model)
    randomised(generic, generator)
    inputs = _proof_inputs(model, arguments, generator)
    rejected: dict[int, str] = {}
    proved: set[ChannelGroup] = set()
    while True:
        run = watch.run()
        grouping = Grouper(model, run.mode, batch).build(rejected)
        made = _rewrites(grouping, run.traced, generator, generic, inputs[0])
        rewrites = made.rewrites
        provers = [Prover(Surgeon(net, grouping, rewrites), inputs) for net in (generic, model)]
        faults = _Trial(grouping, provers, proved, generator).faults()
        if not faults:
            claims = Claims(provers[-1].surgeon, arguments, batch)
            faults = claims.faults(torch.Generator().manual_seed(0))
        if not faults:
            return replace(grouping, graph=claims.completed()), rewrites
        sizes = {group.name: group.size for group in grouping.graph.groups}
        for name, reason in faults.items():
            start = grouping.first_unit[name]
            units = grouping.unit_of_label
            inside = (units >= start) & (units < start + sizes[name])
            reason = made.explained(reason, torch.arange(start, start + sizes[name]))
            # Runs number their labels alike, so a label stands for the same data next time.
            rejected |= dict.fromkeys(inside.nonzero()[:, 0].tolist(), reason)


def _proof_inputs(
    model: nn.Module, arguments: tuple[Tensor, ...], generator: torch.Generator
) -> list[tuple[Tensor, ...]]:
    """Returns the example, and a batch of two: the example and a random input."""

    def twice(tensor: Tensor) -> Tensor:
        if not tensor.dim() or not tensor.is_floating_point():
            return torch.cat((tensor, tensor)) if tensor.dim() else tensor
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return torch.cat((tensor, noise))

    pair = tuple(twice(x) for x in arguments)
    try:
        with torch.no_grad():
            model(*pair)
    except Exception:  # a network for one sample at a time
        return [arguments]
    return [pair]


def _rewrites(
    grouping: Grouping,
    traced: Mapping[str, TracedForward],
    generator: torch.Generator,
    model: nn.Module,
    arguments: tuple[Tensor, ...],
) -> Rewrites:
    sizes = {group.name: group.size for group in grouping.graph.groups}
    if not sizes or not traced:
        return Rewrites()

    def alive(kept: Mapping[str, Tensor]) -> Tensor:
        mask = torch.ones(grouping.n_units, dtype=torch.bool)
        for name, units in kept.items():
            start = grouping.first_unit[name]
            mask[start : start + sizes[name]] = False
            mask[start + units] = True
        return mask

    joint = [alive(random_cut(sizes, generator, share)) for share in (0.5, 0.0, *[None] * 4)]
    alone = [alive({name: torch.tensor([sizes[name] - 1])}) for name in sizes]

    def run(network: nn.Module) -> object:
        with torch.no_grad():
            return network(*arguments)

    return make_rewrites(model, traced, grouping.unit_of_label, (joint, alone), run)

"""Checks a graph's claims about a network, cut and uncut, by counting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tracing.labels.counting import count_bytes, count_macs, count_parameters
from amc_compress.learners.tracing.surgery import Surgeon
from amc_env.graph import LayerGraph, LayerSpec, Width

TOLERANCE = 1e-4
"""How far, relative to the count, a claim may be from it."""

Cut = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Counts:
    """Multiply-adds for one sample, learned numbers, and bytes of a network."""

    macs: float
    parameters: float
    bytes: float


class Claims:
    """Claims of a traced network's graph, checked against its networks.

    Args:
        surgeon: Cuts the network.
        inputs: What it runs on.
        batch: Samples in them.
    """

    def __init__(self, surgeon: Surgeon, inputs: Inputs, batch: int) -> None:
        self.surgeon = surgeon
        self.graph: LayerGraph = surgeon.grouping.graph
        self.inputs = inputs
        self.batch = batch
        claimed, counted = _claimed(self.graph, {}), self._counted({})
        self.surplus = counted.macs - claimed.macs
        """Multiply-adds of the uncut network that the graph does not express."""
        if abs(self.surplus) <= TOLERANCE * counted.macs:
            self.surplus = 0.0

    def completed(self) -> LayerGraph:
        """Returns the graph with the surplus as a fixed cost; what it claims too much is noted."""
        graph = self.graph
        if self.surplus > 0:
            missing = -int(-self.surplus // 1)
            spec = LayerSpec("other operations", "fixed", Width(missing), Width(1))
            return replace(graph, layers=(*graph.layers, spec))
        if self.surplus < 0:
            note = (
                f"{-self.surplus:,.0f} multiply-adds are claimed of the network that were not"
                f" counted in its run; ratios err on the safe side."
            )
            return replace(graph, notes=(*graph.notes, note))
        return graph

    def faults(self, generator: torch.Generator) -> dict[str, str]:
        """Returns group -> what its cut makes of the claim; empty if all claims hold.

        Args:
            generator: Draws the cut that is tried besides the smallest network.
        """
        groups = self.graph.groups
        if not groups:
            return {}
        smallest = {g.name: torch.arange(g.size - g.least, g.size) for g in groups}
        drawn = {}
        for group in groups:
            count = int(torch.randint(group.least, group.size + 1, (), generator=generator))
            order = torch.randperm(group.size, generator=generator)
            drawn[group.name] = order[:count].sort().values
        for cut in (smallest, drawn):
            if self._fault(cut) is not None:
                return self._culprits(cut)
        return {}

    def _culprits(self, cut: Cut) -> dict[str, str]:
        """The groups that break the claim alone, else the last of the shortest wrong prefix."""
        alone = {name: self._fault({name: units}) for name, units in cut.items()}
        faults = {name: fault for name, fault in alone.items() if fault is not None}
        if faults:
            return faults
        names = list(cut)
        for end in range(2, len(names) + 1):
            fault = self._fault({name: cut[name] for name in names[:end]})
            if fault is not None:
                return {names[end - 1]: f"together with other groups {fault}"}
        return {}

    def _fault(self, cut: Cut) -> str | None:
        claimed, counted = _claimed(self.graph, cut), self._counted(cut)
        pairs = (
            ("multiply-adds", claimed.macs + self.surplus, counted.macs),
            ("parameters", claimed.parameters, counted.parameters),
            # Small buffers are left in that a cut takes away: bytes err on the safe side.
            ("bytes", max(claimed.bytes, counted.bytes), counted.bytes),
        )
        for what, claim, count in pairs:
            if abs(claim - count) > TOLERANCE * max(count, 1.0):
                return f"a cut leaves {count:,.0f} {what} instead of {claim:,.0f}"
        return None

    def _counted(self, cut: Cut) -> _Counts:
        network = self.surgeon.slice(cut, shares=True) if cut else self.surgeon.model
        macs = count_macs(network, self.inputs) / self.batch
        return _Counts(macs, count_parameters(network), count_bytes(network))


def _claimed(graph: LayerGraph, cut: Cut) -> _Counts:
    kept = graph.full() | {name: float(len(units)) for name, units in cut.items()}
    parameters = graph.other_parameters + sum(
        layer.weights(kept) + layer.has_bias * layer.out_width.at(kept)
        for layer in graph.layers
        if layer.has_weights
    )
    buffers = 0.0
    for entry in graph.channel_parameters:
        width = entry.width.at(kept)
        parameters += entry.n_parameters * width
        buffers += entry.n_buffers * width
    size = 4 * (parameters + buffers) + graph.other_buffer_bytes
    return _Counts(sum(x.macs(kept) for x in graph.layers), parameters, size)

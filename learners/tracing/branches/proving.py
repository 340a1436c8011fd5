"""Proves branches: a network without one computes what the whole one does with 0 in its place."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tracing.branches.finding import find_places
from amc_compress.learners.tracing.branches.flow import follow_data
from amc_compress.learners.tracing.branches.left_out import Place
from amc_compress.learners.tracing.cases import Case
from amc_compress.learners.tracing.labels.counting import (
    count_bytes,
    count_macs,
    count_parameters,
    stored_buffers,
)
from amc_compress.learners.tracing.probing import Probes
from amc_compress.learners.tracing.proof import TOLERANCE, exactly, random_cut, randomised
from amc_compress.learners.tracing.surgery import Surgeon
from amc_env.costs.costs import make_cost
from amc_env.graph import Branch, LayerGraph
from amc_env.plan import depth_decision
from amc_env.validation.sentences import first_line

_CLAIMED = {"macs": "multiply-adds", "params": "parameters", "bytes": "bytes"}
_CLAIM_TOLERANCE = 1e-4
_BYTES_PER_FLOAT = 4


def prove_branches(
    surgeon: Surgeon, probes: Probes, batch: int
) -> tuple[LayerGraph, dict[str, Place]]:
    """Returns the graph with the branches that may be left out, and where they are.

    Args:
        surgeon: Cuts a network whose groups are proved.
        probes: The cases in which a network without a branch must be right.
        batch: Samples in the example.
    """
    return _Proof(surgeon, probes, batch).found()


class _Proof:
    """Finds the branches of a network whose groups are proved; see :func:`prove_branches`.

    Args:
        surgeon: Cuts it.
        probes: The cases in which a network without a branch must be right.
        batch: Samples in the example.
    """

    def __init__(self, surgeon: Surgeon, probes: Probes, batch: int) -> None:
        self.surgeon = surgeon
        self.probes = probes
        self.batch = batch
        self.graph: LayerGraph = surgeon.grouping.graph
        generic = copy.deepcopy(surgeon.model)
        randomised(generic, torch.Generator().manual_seed(3))
        self._generic = Surgeon(generic, surgeon.grouping, surgeon.rewrites)
        self._whole: dict[Case, object] = {}

    def found(self) -> tuple[LayerGraph, dict[str, Place]]:
        """Returns the graph with its branches, and where they are; what stays is in its notes."""
        flow = follow_data(self.surgeon.model, self.probes.alone[0])
        places, reasons = find_places(flow, self.surgeon.model)
        proved: dict[str, Place] = {}
        branches: list[Branch] = []
        for place in self._ordered(places):
            branch = self._branch(place, [*proved.values()])
            fault = self._fault(place, branch, proved)
            if fault is None:
                proved[place.name] = place
                branches.append(branch)
            else:
                reasons[place.name] = fault
        if proved and (fault := self._joint_fault(proved, self.probes)):
            reasons |= dict.fromkeys(proved, f"together with others {fault}")
            proved, branches = {}, []
        notes = self.graph.notes
        if reasons:
            told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            notes = (*notes, f"Residual branches that stay, whatever the plan: {told}.")
        order = {layer.name: i for i, layer in enumerate(self.graph.layers)}
        branches.sort(key=lambda b: (min(order[name] for name in b.layers), -len(b.layers)))
        return replace(self.graph, branches=tuple(branches), notes=notes), proved

    def _ordered(self, places: Sequence[Place]) -> list[Place]:
        """Inner branches first: what an outer one has for itself is what they leave."""
        names = [name for name, _ in self.surgeon.model.named_modules()]
        return sorted(places, key=lambda place: sum(map(place.holds, names)))

    def _branch(self, place: Place, inner: Sequence[Place]) -> Branch:
        """Returns the facts about a branch."""
        graph, model = self.graph, self.surgeon.model
        layers = tuple(x.name for x in graph.layers if place.holds(x.name))
        channels = tuple(
            dict.fromkeys(x.name for x in graph.channel_parameters if place.holds(x.name))
        )
        inside = [x for x in inner if all(map(place.holds, x.modules))]

        def is_own(name: str) -> bool:
            return place.holds(name) and not any(x.holds(name) for x in inside)

        full = graph.full()
        own_layers = [x for x in graph.layers if is_own(x.name) and x.has_weights]
        own_channels = [x for x in graph.channel_parameters if is_own(x.name)]
        claimed = sum(x.weights(full) + x.has_bias * x.out_width.at(full) for x in own_layers)
        claimed += sum(x.n_parameters * x.width.at(full) for x in own_channels)
        buffers = _BYTES_PER_FLOAT * sum(x.n_buffers * x.width.at(full) for x in own_channels)
        held = sum(p.numel() for n, p in model.named_parameters() if is_own(n))
        stored = sum(
            b.numel() * b.element_size() for n, b in stored_buffers(model).items() if is_own(n)
        )
        groups = tuple(
            g.name for g in graph.groups if {*g.producers, *g.consumers} <= {*layers, *channels}
        )
        return Branch(
            place.name, layers, channels, groups, round(held - claimed), round(stored - buffers)
        )

    def _fault(self, place: Place, branch: Branch, proved: Mapping[str, Place]) -> str | None:
        """What is wrong with leaving out a branch, alone or with those that are proved."""
        if not branch.layers:
            return "it has no layers"
        alone = {place.name: place}
        fault, is_shown = self._compared(alone, {}, self.probes.alone)
        if fault is None and not is_shown:
            fault = "no output that was seen depends on it, so a comparison proves nothing"
        if fault is None:
            fault = self._wrong_claim(place, branch)
        if fault is None and proved:
            fault, _ = self._compared({**proved, **alone}, self._cut(), self.probes.alone[:1])
        return fault

    def _joint_fault(self, proved: Mapping[str, Place], probes: Probes) -> str | None:
        cases = [*probes.alone, *probes.together]
        return self._compared(proved, self._cut(), cases)[0]

    def _cut(self) -> dict[str, Tensor]:
        groups = self.graph.groups
        least = {group.name: group.least for group in groups}
        sizes = {group.name: group.size for group in groups}
        return random_cut(sizes, torch.Generator().manual_seed(4), None, least)

    def _compared(
        self, places: Mapping[str, Place], cut: Mapping[str, Tensor], cases: Sequence[Case]
    ) -> tuple[str | None, bool]:
        """What differs from the whole network with 0 in their place; whether any 0 shows."""
        surgeon = Surgeon(self._generic.model, self.surgeon.grouping, self.surgeon.rewrites, places)
        kept = {**cut, **{place.key: _none() for place in places.values()}}
        is_shown = False
        for position, case in enumerate(cases):
            try:
                if not position:
                    rebuilt, reference = surgeon.slice(kept, shares=True), surgeon.mask(kept)
                expected = case.run(reference)
                deviation = difference(case.run(rebuilt), expected)
                if TOLERANCE < deviation < math.inf:
                    deviation = exactly(case, rebuilt, reference, deviation)
            except Exception as error:  # any failure is a reason to leave the branch where it is
                return f"a network without it does not run{case.what}: {first_line(error)}", False
            if not deviation <= TOLERANCE:
                return f"leaving it out changes the output by {deviation:.1e}{case.what}", False
            if case not in self._whole:
                self._whole[case] = case.run(self._generic.model)
            is_shown = is_shown or difference(expected, self._whole[case]) > TOLERANCE
        return None, is_shown

    def _wrong_claim(self, place: Place, branch: Branch) -> str | None:
        """What a network without the branch has otherwise than the costs say."""
        graph = replace(self.graph, branches=(branch,))
        decisions = (depth_decision(graph, branch.name),)
        inputs: Inputs = self.probes.example.inputs
        surgeon = Surgeon(
            self.surgeon.model, self.surgeon.grouping, self.surgeon.rewrites, {place.name: place}
        )
        networks = (surgeon.model, surgeon.slice({place.key: _none()}, shares=True))
        for name, what in _CLAIMED.items():
            cost = make_cost(name, graph, decisions)
            claimed = cost([1.0]) - cost([0.0])
            before, after = (_counted(name, x, inputs, self.batch) for x in networks)
            if abs(before - after - claimed) > _CLAIM_TOLERANCE * before:
                return f"without it {before - after:,.0f} {what} go instead of {claimed:,.0f}"
        return None


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


def _counted(name: str, network: nn.Module, inputs: Inputs, batch: int) -> float:
    if name == "macs":
        return count_macs(network, inputs) / batch
    return count_parameters(network) if name == "params" else count_bytes(network)

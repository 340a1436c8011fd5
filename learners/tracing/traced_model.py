"""Finds the channel groups of any network, proves them, and cuts along them.

The network is run on an example input, in training mode, and wherever else it runs other code
(``probing``) while labels follow its data (``label_rules``); what is tied
becomes channel groups (:mod:`amc_compress.learners.tracing.grouping`);
modules with channel numbers baked into their forward get a rewritten one
(``rewrite``); and every group proves that a sliced network equals a masked one
(``proof``). What fails, or is not understood, stays whole, with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.networks.outputs import tensors_in
from amc_compress.learners.numerics.layout import laid_out, set_layout
from amc_compress.learners.tasks.inputs import Inputs, ask, mapped, to_inputs
from amc_compress.learners.tracing.branches.left_out import DEPTH, Place
from amc_compress.learners.tracing.branches.proving import prove_branches
from amc_compress.learners.tracing.examples.part import isolated
from amc_compress.learners.tracing.examples.variations import (
    described,
    first_sample,
    floats,
    n_samples,
)
from amc_compress.learners.tracing.grouping import Grouping
from amc_compress.learners.tracing.labelled_run import Watch
from amc_compress.learners.tracing.probing import find_probes
from amc_compress.learners.tracing.proof import prove
from amc_compress.learners.tracing.slots import UnitSlot, weight_name
from amc_compress.learners.tracing.surgery import Surgeon
from amc_env.errors import InputDataError, UntraceableModelError
from amc_env.graph import LayerGraph
from amc_env.validation.checks import checked
from amc_env.validation.sentences import first_line


class TracedModel:
    """A network, its proved channel groups, and the means to cut them.

    Args:
        model: The original, never modified; of networks whose module names had to change (computed
            weights, wrappers inside), a copy.
        grouping: Its groups and slots.
        surgeon: Cuts it.
        notes: What was done to make the network cuttable, for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        grouping: Grouping,
        surgeon: Surgeon,
        notes: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.notes = tuple(notes)
        self._grouping = grouping
        self._surgeon = surgeon
        self._weights: dict[str, str] = {}

    @property
    def graph(self) -> LayerGraph:
        """Layers, groups in network order, and what is frozen for which reason."""
        return self._grouping.graph

    def slice(self, kept: Mapping[str, Tensor], network: nn.Module | None = None) -> nn.Module:
        """Returns a really smaller copy of the network.

        Args:
            kept: Group name -> sorted int64 indices of the units that stay; groups that are
                missing stay whole. ``"branch:depth"`` -> no indices, to leave a branch out.
            network: Another network of the same names and shapes to cut in its place, for example
                a copy that was trained on.

        Returns:
            A copy in the original's mode, with its current weights and the same module names
            and state-dict keys.

        Raises:
            ValueError: If a group is unknown, its indices are out of order or range, or the other
                network has other names or shapes.
        """
        return self._surgeon.slice(kept, network)

    def mask(self, kept: Mapping[str, Tensor]) -> nn.Module:
        """Returns a copy of the original's shapes in which nothing reads the cut units."""
        return self._surgeon.mask(kept)

    def without(self, branch: str) -> nn.Module:
        """Returns a copy of the network in which a branch is left out.

        Raises:
            ValueError: If there is no such branch.
        """
        return self.slice({f"{branch}{DEPTH}": torch.zeros(0, dtype=torch.int64)})

    def ends_of(self, branch: str) -> tuple[str, str]:
        """Returns the module of a branch that runs first, and the one whose output is added.

        Raises:
            KeyError: If there is no such branch.
        """
        place = self._surgeon.places[branch]
        return place.entry, place.exit

    def last_module_of(self, branch: str) -> str | None:
        """Returns the innermost module that returns just what a branch adds to what it reads.

        None if there is none, or the branch's first module reads something else.

        Raises:
            KeyError: If there is no such branch.
        """
        return self._surgeon.places[branch].last

    def kept_outputs(self, layer: str, kept: Mapping[str, Tensor]) -> Tensor:
        """Returns the sorted outputs of a layer that stay, along that axis of its weight."""
        return self._kept(layer, 0, kept)

    def kept_inputs(self, layer: str, kept: Mapping[str, Tensor]) -> Tensor:
        """Returns the sorted inputs of a layer that stay, along that axis of its weight."""
        return self._kept(layer, 1, kept)

    def unit_slots(self, group: str) -> list[UnitSlot]:
        """Returns everywhere that the units of a group occur.

        Raises:
            ValueError: If there is no such group.
        """
        sizes = {entry.name: entry.size for entry in self.graph.groups}
        if group not in sizes:
            raise ValueError(f"No channel group named {group!r}; groups: {sorted(sizes)}.")
        size, start = sizes[group], self._grouping.first_unit[group]
        found = []
        for slot in self._grouping.slots:
            inside = (slot.units >= start) & (slot.units < start + size)
            where = inside.nonzero()[:, 0]
            if len(where):
                order = torch.argsort(slot.units[where], stable=True)
                coordinates = where[order].view(size, -1)
                found.append(UnitSlot(slot.module, slot.tensor, slot.axis, coordinates, slot.role))
        return found

    def _kept(self, layer: str, axis: int, kept: Mapping[str, Tensor]) -> Tensor:
        weight = self._weight(layer)
        axis ^= self._grouping.output_axis(weight)
        return self._surgeon.kept_coordinates(weight, axis, kept)

    def _weight(self, layer: str) -> str:
        if layer not in self._weights:  # walking the network takes longer than the look-up
            name = weight_name(layer, dict(self.model.named_parameters()))
            if name is None:
                raise ValueError(f"No layer with weights named {layer!r}.")
            self._weights[layer] = name
        return self._weights[layer]


@checked
def trace(
    model: nn.Module,
    example_input: Inputs | Sequence[Any] | Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    part: str | None = None,
    branches: bool = False,
) -> TracedModel:
    """Finds and proves the channel groups of a network.

    Args:
        model: Any network, in any of the forms that ``intake`` takes in; it is
            not modified. It is run in float32; slices have the types of its own weights.
        example_input: What it is called with: a tensor, a tuple of arguments, a dictionary of
            arguments by name, or a ``Call``. Axis 0 of its tensors is the batch; a list inside of
            it has an item per sample.
        ignore: Layers (or modules that hold them) whose output channels must stay.
        part: The submodule that is cut, if not the whole network: its inside alone, so that its
            inputs and outputs stay. The rest of the network is only run, and may be of any kind;
            its multiply-adds on the example, parameters and buffers count as fixed.
        branches: Whether to look for residual branches that may be left out, too.

    Returns:
        The traced network. Its graph has no groups if nothing can be cut safely.

    Raises:
        InputDataError: If the network does not run on the input, does not run the part, or holds
            NaN.
        UntraceableModelError: If the network cannot be taken in, or returns no tensor, or uses what
            is inside of the part.
        ValueError: If a name in ``ignore`` matches no module.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> traced = trace(net, torch.randn(1, 3, 8, 8))
        >>> traced.graph.groups[0].size
        8
        >>> traced.slice({"0": torch.tensor([1, 5])})[0]
        Conv2d(3, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    # Kernels for channels last end in other operations, and some of those have no rule; which
    # channels are tied does not depend on the layout.
    given = mapped(
        lambda x: laid_out(x.detach().cpu(), torch.contiguous_format), to_inputs(example_input)
    )
    taken = take_in(model, "cpu", live=True)
    work = taken.network
    set_layout(work, torch.contiguous_format)
    _check(work, ignore)
    # What floats is in the type that the copy runs in.
    inputs = _single(work, floats(Tensor.float, given))
    subject, border = work, None
    whole = inputs
    if part is not None:
        subject, inputs, border = isolated(work, whole, part)
    probes = find_probes(subject, inputs, torch.Generator().manual_seed(1))
    grouping, rewrites = prove(subject, Watch(subject, probes, ignore), probes, n_samples(whole))
    places: dict[str, Place] = {}
    if branches:
        surgeon = Surgeon(subject, grouping, rewrites)
        graph, places = prove_branches(surgeon, probes, n_samples(whole))
        grouping = replace(grouping, graph=graph)
    if border is not None:
        grouping = replace(grouping, graph=border.added(grouping.graph))
        _check_rest(Surgeon(work, grouping, rewrites), whole, border.part)
    # The proof has cut a copy; from here on the user's own network is cut.
    return TracedModel(
        taken.live, grouping, Surgeon(taken.live, grouping, rewrites, places), taken.form.notes
    )


def _check(model: nn.Module, ignore: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    for name in ignore:
        if name not in names:
            raise ValueError(f"Expected names of modules to ignore, got {name!r}.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        odd = "NaN" if bool(torch.isnan(tensor).any()) else ""
        # A buffer may be a mask of infinite numbers.
        if not odd and isinstance(tensor, nn.Parameter) and bool(torch.isinf(tensor).any()):
            odd = "infinite numbers"
        if odd:
            raise InputDataError(
                f"Expected finite weights, but {name!r} holds {odd}; load another checkpoint."
            )


def _check_rest(surgeon: Surgeon, inputs: Inputs, part: str) -> None:
    """Checks that the rest of a network runs around the smallest part.

    Raises:
        UntraceableModelError: If it does not.
    """
    groups = surgeon.grouping.graph.groups
    smallest = {group.name: torch.arange(group.least) for group in groups}
    try:
        with torch.no_grad():
            ask(surgeon.slice(smallest), inputs)
    except Exception as error:
        raise UntraceableModelError(
            f"Expected the rest of the network to run whatever is cut inside of {part!r}, got"
            f" {type(error).__name__}: {first_line(error)}; choose the part around the code that"
            " reads widths of it."
        ) from error


def _single(model: nn.Module, inputs: Inputs) -> Inputs:
    """Returns the first sample of the inputs if the network runs on it, else all of them."""
    failure: Exception | None = None
    for chosen in (first_sample(inputs), inputs):
        try:
            with torch.no_grad():
                output = ask(model, chosen)
        except Exception as error:
            failure = error
            continue
        if not tensors_in(output):
            raise UntraceableModelError(
                f"Expected a network that returns tensors, got {type(output).__name__}."
            )
        return chosen
    assert failure is not None
    raise InputDataError(
        f"Expected a network that runs on the example input ({described(inputs)}), got"
        f" {type(failure).__name__}: {first_line(failure)}; pass an input of the shape and type"
        " that it was made for."
    ) from failure


__all__ = ["TracedModel", "UnitSlot", "trace"]

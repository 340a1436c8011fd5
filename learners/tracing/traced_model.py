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

import torch
from torch import Tensor, nn

from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.networks.outputs import tensors_in
from amc_compress.learners.numerics.layout import laid_out, set_layout
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
                missing stay whole.
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
    example_input: Tensor | tuple[Tensor, ...],
    *,
    ignore: Sequence[str] = (),
) -> TracedModel:
    """Finds and proves the channel groups of a network.

    Args:
        model: Any network, in any of the forms that ``intake`` takes in; it is
            not modified. It is run in float32; slices have the types of its own weights.
        example_input: One input, or a tuple of them; axis 0 is the batch.
        ignore: Layers (or modules that hold them) whose output channels must stay.

    Returns:
        The traced network. Its graph has no groups if nothing can be cut safely.

    Raises:
        InputDataError: If the network does not run on the input or holds NaN.
        UntraceableModelError: If the network cannot be taken in, or returns no tensor.
        ValueError: If a name in ``ignore`` matches no module.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> traced = trace(net, torch.randn(1, 3, 8, 8))
        >>> traced.graph.groups[0].size
        8
        >>> traced.slice({"0": torch.tensor([1, 5])})[0]
        Conv2d(3, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    given = example_input if isinstance(example_input, tuple) else (example_input,)
    # Kernels for channels last end in other operations, and some of those have no rule; which
    # channels are tied does not depend on the layout.
    given = tuple(laid_out(x.detach().cpu(), torch.contiguous_format) for x in given)
    taken = take_in(model, "cpu", live=True)
    work = taken.network
    set_layout(work, torch.contiguous_format)
    _check(work, ignore)
    # What floats is in the type that the copy runs in.
    arguments = _single(work, tuple(x.float() if x.is_floating_point() else x for x in given))
    probes = find_probes(work, arguments, torch.Generator().manual_seed(1))
    grouping, rewrites = prove(work, Watch(work, probes, ignore), probes)
    # The proof has cut a copy; from here on the user's own network is cut.
    return TracedModel(
        taken.live, grouping, Surgeon(taken.live, grouping, rewrites), taken.form.notes
    )


def _check(model: nn.Module, ignore: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    for name in ignore:
        if name not in names:
            raise ValueError(f"Expected names of modules to ignore, got {name!r}.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise InputDataError(
                f"Expected finite weights, but {name!r} holds NaN; load another checkpoint."
            )


def _single(model: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns the first sample of the inputs if the network runs on it, else all of them."""
    single = tuple(x[:1] if x.dim() else x for x in arguments)
    failure: Exception | None = None
    for chosen in (single, arguments):
        try:
            with torch.no_grad():
                output = model(*chosen)
        except Exception as error:
            failure = error
            continue
        if not tensors_in(output):
            raise UntraceableModelError(
                f"Expected a network that returns tensors, got {type(output).__name__}."
            )
        return chosen
    shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in arguments)
    assert failure is not None
    raise InputDataError(
        f"Expected a network that runs on the example input ({shapes}), got"
        f" {type(failure).__name__}: {first_line(failure)}; pass an input of the shape and type"
        " that it was made for."
    ) from failure


__all__ = ["TracedModel", "UnitSlot", "trace"]

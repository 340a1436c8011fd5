"""Cuts a network: a really smaller copy, or a masked one of the same shapes for comparison."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from amc_compress.learners.layers.attention import CutMultiheadAttention, can_be_cut
from amc_compress.learners.networks.forms import detached
from amc_compress.learners.tracing.branches.left_out import Place, left_out, of_groups
from amc_compress.learners.tracing.grouping import Grouping
from amc_compress.learners.tracing.labels.recurrent import RECURRENT
from amc_compress.learners.tracing.masking.masked import mask_slots
from amc_compress.learners.tracing.rewriting.attributes import Attributes
from amc_compress.learners.tracing.rewriting.rewrite import box
from amc_compress.learners.tracing.rewriting.rewrites import Rewrite
from amc_compress.learners.tracing.slots import Slot


class Surgeon:
    """Makes cut copies of a network.

    Args:
        model: The original network; its current weights are read at every cut.
        grouping: Its channel groups and slots.
        rewrites: Modules whose forward has channel numbers baked in, or attributes hold some.
        places: Branches that may be left out, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        grouping: Grouping,
        rewrites: Sequence[Rewrite | Attributes],
        places: Mapping[str, Place] | None = None,
    ) -> None:
        self.places = dict(places or {})
        self.model = model
        self.grouping = grouping
        self.rewrites = rewrites
        self._slots: dict[str, list[Slot]] = {}
        for slot in grouping.slots:
            self._slots.setdefault(slot.name, []).append(slot)
        named = [*model.named_parameters(), *model.named_buffers()]
        held = {id(tensor) for name, tensor in named if name in self._slots}
        # Of a weight that is tied, all that hold it.
        self._patched = sorted(
            name
            for name, module in model.named_modules()
            if any(id(x) in held for x in (*module._parameters.values(), *module._buffers.values()))
        )

    def alive(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Returns which units stay, shape ``(n_units,)``.

        Raises:
            ValueError: If a group is unknown or its units are not sorted, distinct and in range.
        """
        alive = torch.ones(self.grouping.n_units, dtype=torch.bool)
        groups = {group.name: group for group in self.grouping.graph.groups}
        for name, units in of_groups(kept).items():
            if name not in groups:
                raise ValueError(f"No channel group named {name!r}; groups: {sorted(groups)}.")
            units = torch.as_tensor(units, dtype=torch.int64, device="cpu")
            size, least = groups[name].size, groups[name].least
            if (
                units.dim() != 1 or len(units) < least
                or int(units[0]) < 0 or int(units[-1]) >= size
                or bool((units[1:] <= units[:-1]).any())
            ):  # fmt: skip
                count = "one" if least == 1 else str(least)
                raise ValueError(
                    f"Expected at least {count}, sorted, distinct units below {size} for group"
                    f" {name!r}, got {units.tolist()}."
                )
            start = self.grouping.first_unit[name]
            alive[start : start + size] = False
            alive[start + units] = True
        return alive

    def slice(
        self,
        kept: Mapping[str, Tensor],
        network: nn.Module | None = None,
        *,
        shares: bool = False,
    ) -> nn.Module:
        """Returns a smaller copy of the model, or of another network of its shapes.

        Module names and state-dict keys stay.

        Args:
            kept: Group -> the units that stay; ``"branch:depth"`` -> none, to leave it out.
            network: The other network.
            shares: Whether parameters that stay whole may lie in the memory of the original, of a
                copy that only runs.

        Raises:
            ValueError: If the other network has not the model's names and shapes.
        """
        alive, gone = self.alive(kept), left_out(kept, self.places)
        source = self.model if network is None else network
        if source is not self.model:
            self._check_shapes(source)
        memo = detached(source)
        with torch.no_grad():
            for name, tensor in _tensors(source):
                is_shared = shares and isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = _like(tensor, self._cut(tensor, name, alive, is_shared))
        model = copy.deepcopy(source, memo)
        for name in self._patched:
            _patch(source.get_submodule(name), model.get_submodule(name))
        for name, units in self.grouping.norms.items():
            _patch_norm(model.get_submodule(name), alive[units])
        for name, units in self.grouping.norm_shapes.items():
            _patch_shape(model.get_submodule(name), box(units, alive))
        device = next((p.device for p in source.parameters()), alive.device)
        for rewrite in self.rewrites:
            if rewrite.is_needed(alive):
                rewrite.apply(model.get_submodule(rewrite.name), alive, device)
        for place in gone:
            place.remove(model)
        return model

    def _check_shapes(self, network: nn.Module) -> None:
        shapes = {name: tensor.shape for name, tensor in _tensors(self.model)}
        others = {name: tensor.shape for name, tensor in _tensors(network)}
        for name in sorted(shapes.keys() | others.keys()):
            expected, got = shapes.get(name), others.get(name)
            if expected != got:
                raise ValueError(
                    f"Expected a network with the shapes of the traced one, but its {name} has "
                    f"{'none' if got is None else list(got)} instead of "
                    f"{'none' if expected is None else list(expected)}: pass an uncut copy."
                )

    def _cut(self, tensor: Tensor, name: str, alive: Tensor, is_shared: bool) -> Tensor:
        result = tensor.detach()
        for slot in self._slots.get(name, ()):
            stays = alive[slot.units]
            if not bool(stays.all()):
                index = stays.nonzero()[:, 0].to(tensor.device)
                result = result.index_select(slot.axis, index)
        return result if is_shared or result.shape != tensor.shape else result.clone()

    def mask(self, kept: Mapping[str, Tensor]) -> nn.Module:
        """Returns a copy of the original's shapes that ignores the cut channels.

        This is the reference that a slice must equal; what a branch that is left out would add is
        multiplied by 0. Whatever reads a cut channel has zero weights
        for it; norms and means over channels are taken over those that stay.
        """
        model = copy.deepcopy(self.model, detached(self.model))
        self.mask_copy(model, kept)
        for place in left_out(kept, self.places):
            place.silence(model)
        return model

    def mask_copy(
        self, model: nn.Module, kept: Mapping[str, Tensor], masked: set[str] | None = None
    ) -> None:
        """Masks a copy of the network in place, whatever it was masked by before.

        Args:
            model: The copy.
            kept: Group -> the units that stay.
            masked: Its parameters that are masked, brought up to date; all may be if ``None``.
        """
        slots, averaged = self.grouping.slots, self.grouping.averaged
        originals = dict(_tensors(self.model))
        mask_slots(model, originals, slots, self.alive(kept), averaged, masked)

    def kept_coordinates(self, tensor: str, axis: int, kept: Mapping[str, Tensor]) -> Tensor:
        """Returns the sorted coordinates of one axis that stay."""
        alive = self.alive(kept)
        for slot in self._slots.get(tensor, ()):
            if slot.axis == axis:
                return alive[slot.units].nonzero()[:, 0]
        return torch.arange(self.model.get_parameter(tensor).shape[axis])


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _like(original: Tensor, data: Tensor) -> Tensor:
    if isinstance(original, nn.Parameter):
        return nn.Parameter(data, requires_grad=original.requires_grad)
    return data


# ---------------------------------------------------------------------- attributes


def _patch(old: nn.Module, new: nn.Module) -> None:
    """Brings the width attributes of a layer in line with its sliced tensors."""
    if isinstance(new, RECURRENT):
        _patch_recurrent(new)
    elif isinstance(new, nn.MultiheadAttention):
        _patch_attention(old, new)
    weight = getattr(new, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(new, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        if new.in_channels == new.groups:  # depthwise
            new.groups = weight.shape[0]
        new.in_channels, new.out_channels = weight.shape[0], weight.shape[1] * new.groups
    elif isinstance(new, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        _patch_conv(old, new, weight)
    elif isinstance(new, nn.Linear):
        new.out_features, new.in_features = weight.shape
    elif isinstance(new, nn.Embedding):
        new.embedding_dim = weight.shape[1]
    elif isinstance(new, nn.PReLU):
        new.num_parameters = len(weight)


def _patch_conv(old: nn.Module, new: nn.Conv1d | nn.Conv2d | nn.Conv3d, weight: Tensor) -> None:
    width_out, width_in = int(old.out_channels), int(old.in_channels)  # type: ignore[arg-type]
    new.out_channels = weight.shape[0]
    if width_in == new.groups != 1:  # depthwise
        new.groups = weight.shape[0] // (width_out // width_in)
    new.in_channels = weight.shape[1] * new.groups


def _patch_recurrent(new: nn.RNNBase | nn.RNNCellBase) -> None:
    cell = isinstance(new, nn.RNNCellBase)
    inputs, states = (getattr(new, f"weight_{x}{'' if cell else '_l0'}") for x in ("ih", "hh"))
    new.input_size = inputs.shape[1]
    projection = getattr(new, "weight_hr_l0", None)
    new.hidden_size = states.shape[1] if projection is None else projection.shape[1]
    if projection is not None:
        new.proj_size = projection.shape[0]


def _patch_attention(old: nn.Module, new: nn.MultiheadAttention) -> None:
    assert isinstance(old, nn.MultiheadAttention)
    if can_be_cut(new) and new.in_proj_weight.shape != old.in_proj_weight.shape:
        CutMultiheadAttention.adopt(new)


def _patch_norm(new: nn.Module, stays: Tensor) -> None:
    """Brings the attributes of a norm in line with its kept channels, with weights or without."""
    name = "num_channels" if isinstance(new, nn.GroupNorm) else "num_features"
    width = getattr(new, name, None)
    if not isinstance(width, int) or len(stays) % width:
        return
    kept = int(stays[:width].sum())  # instance norms get the channels of all images in a row
    if isinstance(new, nn.GroupNorm):
        new.num_groups = max(1, new.num_groups * kept // width)
    setattr(new, name, kept)


def _patch_shape(new: nn.Module, kept: Sequence[Tensor] | None) -> None:
    """Brings the shape that a layer norm runs over in line with its kept channels."""
    shape = getattr(new, "normalized_shape", None)
    if kept is not None and isinstance(shape, Sequence) and len(shape) == len(kept):
        vars(new)["normalized_shape"] = tuple(len(coordinates) for coordinates in kept)

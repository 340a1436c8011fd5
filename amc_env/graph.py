"""Facts about a network: its layers, and which of their channels can only be cut together.

Everything here is plain data. How a network is traced into these facts is the learners' business.

Notation: a *channel group* has ``size`` units; cutting one unit removes every weight coordinate
tied to it (residual adds, depthwise convolutions and attention heads tie several). The width of
any weight axis is then linear in the kept units of the groups:
``width = fixed + sum(multiplier[g] * kept[g])``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from amc_env.validation.checks import check_least, checked
from amc_env.validation.sentences import some

# Shares of the multiply-adds: of what no cut changes, and of operations without a rule among it.
_WORTH_A_REMARK, _UNKNOWN_WORTH_A_REMARK = 0.05, 0.01
_WORTH_A_NAME = 0.001

CHANNELS, HEADS, MLP, EMBEDDING = "channels", "heads", "mlp", "embedding"
"""What the units of a channel group are; channels where nothing else is known."""


@checked
@dataclass(frozen=True)
class Width:
    """The length of one tensor axis as a linear function of the kept units per group.

    Args:
        fixed: Coordinates that no group controls.
        terms: ``(group name, coordinates per unit)`` pairs.

    Example:
        The input of a linear layer behind ``flatten`` of 8 channels of 4 x 4 pixels is
        ``Width(0, (("conv2", 16),))``.
    """

    fixed: int
    terms: tuple[tuple[str, int], ...] = ()

    @property
    def numbers(self) -> dict[str, float]:
        """What it is made of, none of which may be negative."""
        return {"fixed": self.fixed, **{f"channels of {group!r}": n for group, n in self.terms}}

    def at(self, kept: Mapping[str, float]) -> float:
        """Returns the axis length when ``kept[group]`` units of each group stay."""
        return self.fixed + sum(multiplier * kept[group] for group, multiplier in self.terms)


@checked
@dataclass(frozen=True)
class ChannelGroup:
    """Units of several layers that can only be cut together: one keep-ratio decision.

    Args:
        name: Name of the first layer that produces these channels.
        size: Number of units that can be cut one by one.
        producers: Layers whose output axis carries the units.
        consumers: Layers whose input axis carries the units.
        least: Number of units that must stay: a variance of one number is none.
        role: What the units are: ``"channels"``; in a transformer ``"heads"`` of attention (those
            that share a key and value head are one unit, with it), hidden units of an ``"mlp"``, or
            channels of the ``"embedding"``, which residual branches read and write.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    least: int = 1
    role: str = CHANNELS

    def __post_init__(self) -> None:
        check_least(f"the group {self.name!r}", {"least": self.least}, 1)
        check_least(f"the group {self.name!r}", {"size": self.size}, self.least)


@checked
@dataclass(frozen=True)
class LayerSpec:
    """A layer with weights, or another operation that multiplies, as the cost models see it.

    ``MACs = positions * prod(kernel) * in_width * out_width``, which also holds for depthwise and
    grouped convolutions because ``in_width`` is the axis length of the weight, i.e. the input
    channels *per convolution group*.

    Args:
        name: Qualified module name.
        kind: ``"conv"``, ``"linear"``, ``"recurrent"`` (what multiplies the states of a recurrent
            module, or its inputs backwards in time; forwards that is ``"linear"``),
            ``"embedding"`` (a table that is looked up in, no work), ``"matmul"``
            (products of activations, no weights), or ``"fixed"``: an operation that no cut changes
            and no other kind expresses, such as a bilinear layer; ``in_width`` is its
            multiply-adds, its weights are among ``other_parameters`` of the graph.
        in_width: ``weight.shape[1]``; of a transposed convolution or a table ``weight.shape[0]``.
        out_width: ``weight.shape[0]``; of those ``weight.shape[1]``.
        kernel: Spatial kernel, empty for linear layers.
        stride: Spatial stride, empty for linear layers.
        conv_groups: ``groups`` of the convolution, 1 for linear layers.
        positions: How often the weight is applied to one image (output pixels or tokens, times
            the number of calls); 0 for a layer that runs for other images only: it is stored,
            and does no work.
        has_bias: Whether one bias per output exists.
        input_size: Spatial size of the input feature map, empty for linear layers.
    """

    name: str
    kind: str
    in_width: Width
    out_width: Width
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    conv_groups: int = 1
    positions: int = 1
    has_bias: bool = False
    input_size: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        owner = f"the layer {self.name!r}"
        sizes = {"kernel": self.kernel, "stride": self.stride, "conv_groups": (self.conv_groups,)}
        for name, numbers in sizes.items():
            check_least(owner, {name: min(numbers, default=1)}, 1)
        check_least(owner, {"positions": self.positions}, 0)
        for width in (self.in_width, self.out_width):
            check_least(owner, width.numbers, 0)

    @property
    def has_weights(self) -> bool:
        """Whether it is a layer with weights of its own."""
        return self.kind not in ("matmul", "fixed")

    def macs(self, kept: Mapping[str, float]) -> float:
        """Returns the multiply-adds for one image."""
        return (
            self.positions
            * math.prod(self.kernel)
            * self.in_width.at(kept)
            * self.out_width.at(kept)
        )

    def weights(self, kept: Mapping[str, float]) -> float:
        """Returns the number of weights, without the bias; 0 where there is no layer."""
        if not self.has_weights:
            return 0.0
        return math.prod(self.kernel) * self.in_width.at(kept) * self.out_width.at(kept)


@checked
@dataclass(frozen=True)
class ChannelParameters:
    """Per-channel parameters of a normalisation, PReLU or layer-scale module.

    Args:
        name: Qualified module (or parameter) name.
        width: Number of channels.
        n_parameters: Learned numbers per channel (2 for an affine batch norm).
        n_buffers: Stored but not learned numbers per channel (2 for batch norm).
    """

    name: str
    width: Width
    n_parameters: int
    n_buffers: int = 0

    def __post_init__(self) -> None:
        counts = {"n_parameters": self.n_parameters, "n_buffers": self.n_buffers}
        check_least(f"{self.name!r}", counts | self.width.numbers, 0)


@checked
@dataclass(frozen=True)
class Branch:
    """What is added to the tensor that it reads, ``x + f(x)``, and may be left out: then x remains.

    A residual block, or the attention or the MLP half of a transformer's block. What belongs to
    several branches, one within the other, is there only if all of them are.

    Args:
        name: Its own, say that of its module.
        layers: Names of all layers, and other operations that multiply, in ``f``.
        channel_parameters: Names of the per-channel parameters in ``f``.
        groups: Names of the groups whose channels are in ``f`` alone.
        other_parameters: Learned numbers in ``f`` that are among the graph's
            ``other_parameters``, without those of branches within it.
        other_buffer_bytes: Bytes in ``f`` that are among the graph's ``other_buffer_bytes``,
            likewise.
    """

    name: str
    layers: tuple[str, ...]
    channel_parameters: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    other_parameters: int = 0
    other_buffer_bytes: int = 0


Part = TypeVar("Part", LayerSpec, Branch)


@checked
@dataclass(frozen=True)
class LayerGraph:
    """A network as a list of layers and channel groups, both in network order.

    Args:
        layers: Everything that costs multiply-adds.
        groups: Channel groups that are proved safe to cut.
        channel_parameters: Normalisations and other per-channel parameters.
        other_parameters: Learned numbers in no layer above (position embeddings, ...).
        other_buffer_bytes: Bytes of buffers that no group controls (counters, masks, ...).
        frozen: Channels that stay whole: layer name -> the reason.
        notes: Sentences on what the facts above do not cover.
        computed: Layers that multiply with something computed from their weight, as weight
            standardisation does: what is written there is not what they use.
        branches: What may be left out, in network order, an outer branch before those within it.
    """

    layers: tuple[LayerSpec, ...]
    groups: tuple[ChannelGroup, ...]
    channel_parameters: tuple[ChannelParameters, ...] = ()
    other_parameters: int = 0
    other_buffer_bytes: int = 0
    frozen: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    branches: tuple[Branch, ...] = ()

    def full(self) -> dict[str, float]:
        """Returns ``group name -> size``: the uncompressed network."""
        return {group.name: float(group.size) for group in self.groups}

    def channels_per_unit(self, group: ChannelGroup) -> int:
        """Returns how many output channels each producer of the group loses with one unit.

        More than one where channels are tied: by groups of a normalisation or a convolution, by
        attention heads. Of producers that differ, their greatest common divisor.
        """
        producers = set(group.producers)
        found = [
            multiplier
            for layer in self.layers
            if layer.name in producers
            for name, multiplier in layer.out_width.terms
            if name == group.name
        ]
        return math.gcd(*found) or 1

    def fixed_shares(self) -> dict[str, float]:
        """Returns layer -> its share of all multiply-adds, for those that no group changes."""
        full = self.full()
        total = sum(layer.macs(full) for layer in self.layers)
        fixed = (x for x in self.layers if not (x.in_width.terms or x.out_width.terms))
        return {layer.name: layer.macs(full) / total for layer in fixed if layer.macs(full)}

    def remarks(self) -> tuple[str, ...]:
        """Returns what to know before a budget is set, in sentences: fixed costs, notes."""
        shares = self.fixed_shares()
        share = sum(shares.values())
        unknown = sum(shares.get(layer.name, 0.0) for layer in self.layers if layer.kind == "fixed")
        informs = share >= _WORTH_A_REMARK or unknown >= _UNKNOWN_WORTH_A_REMARK
        if not self.groups or not informs:
            return self.notes
        ordered = sorted(shares, key=lambda name: -shares[name])
        named = [f"{n} ({shares[n]:.1%})" for n in ordered if shares[n] >= _WORTH_A_NAME]
        return (
            f"{share:.1%} of the multiply-adds are in operations that no cut of channels changes: "
            f"{some(named)}.",
            *self.notes,
        )

    def layer(self, name: str) -> LayerSpec:
        """Returns the layer of that name.

        Raises:
            KeyError: If there is none.
        """
        return _named(name, self.layers, "layer", "layers")

    def branch(self, name: str) -> Branch:
        """Returns the branch of that name.

        Raises:
            KeyError: If there is none.
        """
        return _named(name, self.branches, "branch", "branches")


def _named(name: str, parts: Sequence[Part], kind: str, kinds: str) -> Part:
    for part in parts:
        if part.name == name:
            return part
    raise KeyError(f"No {kind} named {name!r}; {kinds}: {[x.name for x in parts]}")

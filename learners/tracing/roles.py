"""What a channel group is in a transformer: attention heads, an MLP's hidden units, the embedding.

Nothing is read off names. Heads are what multiplies with its own channels alone: the batch of a
product of activations, of which every entry is one class of labels. The embedding is the stream
that layers before heads read and layers behind heads write. What is between two layers that read
and write that stream, channel by channel, are the hidden units of an MLP.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from amc_compress.learners.tracing.labels.label_rules import LabelMode
from amc_compress.learners.tracing.labels.label_state import Call
from amc_compress.learners.tracing.labels.labels import FIXED
from amc_env.graph import CHANNELS, EMBEDDING, HEADS, MLP


class Roles:
    """Tells the role of channel groups.

    Args:
        mode: The mode that watched the network.
        weights: Name -> weight, of its layers.
    """

    def __init__(self, mode: LabelMode, weights: Mapping[str, Tensor]) -> None:
        self._classes = mode.table.classes()
        attention = (call.factors[0] for call in mode.calls if self._is_attention(call))
        self._heads = set[int]().union(*map(self._of, attention))
        self._inputs: dict[str, set[int]] = {}
        self._outputs: dict[str, set[int]] = {}
        self._pointwise = {x for x, weight in weights.items() if weight.shape[2:].numel() == 1}
        # A depthwise convolution makes its outputs of the units themselves.
        self._depthwise = {x for x, weight in weights.items() if weight.shape[1:2] == (1,)}
        for name, weight in weights.items() if self._heads else ():
            if id(weight) in mode.axis_labels:
                axes, is_upside_down = mode.axis_labels[id(weight)], id(weight) in mode.transposed
                self._inputs[name] = self._of(axes[not is_upside_down])
                self._outputs[name] = self._of(axes[is_upside_down])
        pairs = [(self._inputs[name], self._outputs[name]) for name in self._inputs]
        read = set[int]().union(*(inputs for inputs, outputs in pairs if outputs & self._heads))
        written = set[int]().union(*(outputs for inputs, outputs in pairs if inputs & self._heads))
        self._stream = read & written

    def of(self, classes: Tensor, producers: Collection[str], consumers: Collection[str]) -> str:
        """Returns the role of a channel group.

        Args:
            classes: Its classes of labels.
            producers: Weights that make its units.
            consumers: Weights that read them.
        """
        found = set(classes.tolist())
        if self.is_heads(found):
            return HEADS
        if found <= self._stream:
            return EMBEDDING
        makers = {*producers} - self._depthwise
        sides = [self._inputs.get(name) for name in makers]
        sides += [self._outputs.get(name) for name in consumers]
        is_inside = makers and consumers and all(x and x <= self._stream for x in sides)
        return MLP if is_inside and self._pointwise >= {*makers, *consumers} else CHANNELS

    def is_heads(self, classes: Collection[int]) -> bool:
        """Whether classes of labels are attention heads."""
        return self._heads.issuperset(classes)

    def _is_attention(self, call: Call) -> bool:
        """Whether every entry of a batch of products of activations is one class of labels."""
        if call.weight is not None or not call.factors:
            return False
        batch, rows, inner, columns = call.factors
        if batch is None or rows is None or inner is None or columns is None:
            return False
        return self._of(rows) | self._of(inner) == self._of(batch.reshape(-1)[:1]) != set()

    def _of(self, labels: Tensor | None) -> set[int]:
        """Returns the classes of some labels, without that of what is fixed."""
        return (
            set() if labels is None else set(torch.unique(self._classes[labels]).tolist()) - {FIXED}
        )

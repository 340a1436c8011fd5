"""Layers that least squares do not repair: too wide, or without a weight of their own."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import Tensor, nn

from amc_compress.learners.layers.weight_forms import form_of
from amc_env.graph import LayerGraph
from amc_env.validation.sentences import some

MAX_COLUMNS = 5000
"""Wider patches get no Gram matrix: that matrix of 5,000 columns takes 100 MB in float32."""


def columns_of(graph: LayerGraph) -> dict[str, int]:
    """Returns layer -> inputs per output, kernel included."""
    full = graph.full()
    return {
        layer.name: round(math.prod(layer.kernel) * layer.in_width.at(full))
        for layer in graph.layers
        if layer.has_weights and layer.kind != "embedding"
    }


def wide_layers(graph: LayerGraph) -> dict[str, int]:
    """Returns layer -> inputs per output of those with too many."""
    return {name: count for name, count in columns_of(graph).items() if count > MAX_COLUMNS}


def wide_layers_note(graph: LayerGraph, by_channel: Collection[str] = ()) -> tuple[str, ...]:
    """Returns sentences that name the layers of more columns, or none.

    Args:
        graph: Of the network.
        by_channel: Layers that are repaired nevertheless, see ``candidates.moments.wide``.
    """
    columns = columns_of(graph)
    whole = [f"{n} ({k:,})" for n, k in wide_layers(graph).items() if n not in by_channel]
    split = [f"{n} ({k:,})" for n, k in columns.items() if n in by_channel]
    notes = []
    if whole:
        notes.append(
            f"layers with more than {MAX_COLUMNS:,} inputs per output keep their weights as they "
            f"are, without a repair by least squares: {some(whole)}."
        )
    if split:
        notes.append(
            f"layers with too many inputs per output for least squares over all of them are "
            f"repaired channel by channel, which restores less: {some(split)}."
        )
    return tuple(notes)


def is_repairable(layer: nn.Module | None) -> bool:
    """Whether a layer's weights can be fitted after a cut of its inputs.

    Not where they stand in a module of several, as in recurrent ones and attention, or in none; nor
    in a transposed convolution of several groups.
    """
    if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
        return False
    form = form_of(layer)
    return not (form.inputs_first and form.groups > 1)


def unrepaired_note(graph: LayerGraph, network: nn.Module) -> tuple[str, ...]:
    """Returns a sentence that names the other layers that a cut leaves unrepaired, or none.

    Args:
        graph: Of the network.
        network: The original.
    """
    modules = dict(network.named_modules())
    found = [
        layer.name
        for layer in graph.layers
        if layer.has_weights
        and layer.in_width.terms
        and (layer.name in graph.computed or not is_repairable(modules.get(layer.name)))
    ]
    if not found:
        return ()
    return (
        f"weights that are computed from others, or belong to recurrent layers, attention or no "
        f"layer of their own, stay as they are where their inputs are cut: {some(found)}.",
    )

"""Layers that least squares do not repair: too wide, or without a weight of their own."""

from __future__ import annotations

import math

from torch import Tensor, nn

from amc_compress.learners.layers.weight_forms import form_of
from amc_env.graph import LayerGraph
from amc_env.validation.sentences import some

MAX_COLUMNS = 5000
"""Wider patches are left alone: the Gram matrix of 5,000 columns takes 100 MB in float32."""


def wide_layers(graph: LayerGraph) -> dict[str, int]:
    """Returns layer -> inputs per output, kernel included, of those that are not repaired."""
    full = graph.full()
    columns = {
        layer.name: round(math.prod(layer.kernel) * layer.in_width.at(full))
        for layer in graph.layers
        if layer.has_weights and layer.kind != "embedding"
    }
    return {name: count for name, count in columns.items() if count > MAX_COLUMNS}


def wide_layers_note(graph: LayerGraph) -> tuple[str, ...]:
    """Returns a sentence that names the layers that are not repaired, or none."""
    found = wide_layers(graph)
    if not found:
        return ()
    named = some([f"{name} ({count:,})" for name, count in found.items()])
    return (
        f"layers with more than {MAX_COLUMNS:,} inputs per output keep their weights as they are, "
        f"without a repair by least squares: {named}.",
    )


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

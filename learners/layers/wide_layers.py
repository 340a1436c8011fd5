"""Layers with too many inputs for a repair by least squares."""

from __future__ import annotations

import math

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
        if layer.has_weights
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

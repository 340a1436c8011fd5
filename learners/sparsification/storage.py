"""What sparse weights really take on disk: measured layer by layer, by density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from amc_env.graph import LayerGraph
from amc_env.plan import Decision
from amc_env.sparse_form import SparseForm
from amc_env.storage import FLOAT_BITS, StorageFormat
from learners.quantization.packing_sparse import encode
from learners.sparsification.fitted import FittedWeights
from learners.sparsification.patterns import Pattern

_DENSITIES = (0.05, 0.1, 0.25, 0.5, 1.0)
_LARGEST_GROUP = 8  # N:M with more are stored as unstructured zeros are


def sparse_storage(
    fitted: FittedWeights, graph: LayerGraph, decisions: Sequence[Decision], pattern: Pattern
) -> StorageFormat:
    """Returns how sparse networks are stored, without the header of the file.

    The exponents of floats compress, and so do the places of blocks; how well depends on the
    layer, and a re-fit spreads the values.

    Args:
        fitted: The weights that layers get.
        graph: Facts about it.
        decisions: Densities of layers.
        pattern: Of the zeros.
    """
    regular = 0 < pattern.m <= _LARGEST_GROUP
    form = StorageFormat(pattern=pattern.name if regular else "unstructured")
    layers = [graph.layer(d.target) for d in decisions]
    nothing = {FLOAT_BITS: ((0.0, 0.0), (1.0, 0.0))}
    places = SparseForm(layers, replace(form, value_bits={x.name: nothing for x in layers}))
    sizes = np.array([d.size for d in decisions], dtype=np.float64)
    zeros, ones = np.zeros(len(layers)), np.ones(len(layers))
    points: dict[str, list[tuple[float, float]]] = {d.target: [] for d in decisions}
    for wished in _DENSITIES:
        found = np.array([d.nearest(wished) for d in decisions])
        known = places.bytes(sizes, found, zeros, ones, exact=True)[1]
        for d, density, of_places in zip(decisions, found, known, strict=True):
            if any(density == before for before, _ in points[d.target]):
                continue
            keep = d.units(density)
            values, mask = fitted.solve(d.target, keep)[0], fitted.mask(d.target, keep)
            size = len(encode(values.cpu().numpy(), mask.cpu().numpy(), None))
            bits = max(8.0 * (size - of_places) / keep, 0.0)
            points[d.target].append((float(density), min(bits, 2.0 * FLOAT_BITS)))
    return replace(form, value_bits={name: {FLOAT_BITS: row} for name, row in points.items()})

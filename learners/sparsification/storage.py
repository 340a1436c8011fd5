"""Measured sizes on disk of sparse weights, by layer and density."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from amc_compress.learners.layers.bit_layers import is_bit_module
from amc_compress.learners.packing.packed_file import packed_bytes
from amc_compress.learners.packing.sparse import encode
from amc_compress.learners.sparsification.fitted import FittedWeights
from amc_compress.learners.sparsification.patterns import Pattern
from amc_compress.learners.tracing.slots import weight_name
from amc_env.costs.cost_model import with_weights
from amc_env.costs.costs import BytesCost
from amc_env.costs.sparse_form import SparseForm
from amc_env.costs.storage import FLOAT_BITS, StorageFormat
from amc_env.graph import LayerGraph
from amc_env.plan import CompressionPlan, Decision

_DENSITIES = (0.05, 0.1, 0.25, 0.5, 1.0)
_LARGEST_GROUP = 8  # N:M with more are stored as unstructured zeros are


def sparse_storage(
    network: nn.Module,
    fits: Sequence[FittedWeights],
    graph: LayerGraph,
    decisions: Sequence[Decision],
    pattern: Pattern,
) -> StorageFormat:
    """Returns how sparse networks are stored, without the header of the file.

    The exponents of floats compress, and so do the places of blocks; how well depends on the
    layer. A re-fit spreads the values, and a training from the dense weights does not.

    Args:
        network: The original.
        fits: Weights that its layers may get; what they take is averaged.
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
    for requested in _DENSITIES:
        found = np.array([d.nearest(requested) for d in decisions])
        known = places.bytes(sizes, found, zeros, ones, exact=True)[1]
        for d, density, of_places in zip(decisions, found, known, strict=True):
            if any(density == before for before, _ in points[d.target]):
                continue
            keep = d.units(density)
            sizes_found = [_size(f.solve(d.target, keep)[0], f.mask(d.target, keep)) for f in fits]
            bits = max(8.0 * (float(np.mean(sizes_found)) - of_places) / keep, 0.0)
            points[d.target].append((float(density), min(bits, 2.0 * FLOAT_BITS)))
    points |= _left_dense(network, graph, points)
    return replace(form, value_bits={name: {FLOAT_BITS: row} for name, row in points.items()})


def with_header(
    form: StorageFormat,
    graph: LayerGraph,
    decisions: Sequence[Decision],
    plan: CompressionPlan,
    networks: Sequence[nn.Module],
) -> StorageFormat:
    """Adds the header of the packed file, measured on the networks of a plan."""
    tensors = BytesCost(graph, decisions, form).predict(plan.values_for(decisions))
    sizes = [len(packed_bytes(network, plan=plan)) for network in networks]
    # Layers were measured, so that what is missing is the header; it may be less than the few
    # bytes by which their sum is off.
    return replace(form, fixed_bytes=max(float(np.mean(sizes)) - tensors, 0.0))


def _left_dense(
    network: nn.Module, graph: LayerGraph, decided: Container[str]
) -> dict[str, list[tuple[float, float]]]:
    """Measures the layers that no decision is about: the files code their weights as well."""
    points = {}
    for layer in with_weights(graph):
        name = weight_name(layer.name, dict(network.named_parameters(remove_duplicate=False)))
        if layer.name in decided or name is None:
            continue
        weight, module = network.get_parameter(name), name.rpartition(".")[0]
        coded = is_bit_module(network.get_submodule(module))
        size = _size(weight, None) if coded else weight.numel() * FLOAT_BITS // 8
        points[layer.name] = [(1.0, 8.0 * size / weight.numel())]
    return points


def _size(weight: Tensor, mask: Tensor | None) -> int:
    places = None if mask is None else mask.cpu().numpy()
    return len(encode(weight.detach().cpu().numpy(), places, None))

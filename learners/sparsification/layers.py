"""Layers that can be sparse, and the reasons for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from amc_compress.learners.candidates.space import SearchSpace
from amc_compress.learners.layers.bit_layers import bit_layer, check_ignored, is_within
from amc_compress.learners.layers.shared_weights import holders_of
from amc_compress.learners.layers.weight_forms import form_of
from amc_compress.learners.sparsification.patterns import Pattern
from amc_env.errors import UntraceableModelError
from amc_env.graph import LayerGraph
from amc_env.plan import Decision, DecisionKind


def sparse_choice(
    network: nn.Module,
    graph: LayerGraph,
    pattern: Pattern,
    min_density: float,
    ignore: Sequence[str],
) -> SearchSpace:
    """Returns the density decisions of a network.

    Args:
        network: The original.
        graph: Facts about it.
        pattern: Of the zeros.
        min_density: Smallest share of weights on offer.
        ignore: Layers (or modules that hold them) that stay dense.

    Raises:
        UntraceableModelError: If no layer can be sparse; the message says why.
        ValueError: If a name to ignore is that of no layer.
    """
    check_ignored(graph, ignore)
    modules = dict(network.named_modules())
    candidates = [
        x.name
        for x in graph.layers
        if x.kind in ("conv", "linear")
        and x.positions
        and x.name not in graph.computed
        and _is_product(network, x.name)
    ]
    wanted = [name for name in candidates if not is_within(name, ignore)]
    # Two masks on one weight would contradict each other.
    owners = holders_of(modules.values())
    # A mask would be put in one of the places only.
    again = network.named_modules(remove_duplicate=False)
    owners += holders_of(m for name, m in again if modules.get(name) is not m)
    decisions, left_dense = [], {}
    for layer in graph.layers:
        if not layer.has_weights:
            continue
        if reason := _reason(layer.name, candidates, wanted, modules, owners, pattern):
            left_dense[layer.name] = reason
            continue
        size = _weight(modules[layer.name]).numel()
        choices = tuple(k / size for k in pattern.counts(size, min_density))
        if len(choices) == 1:
            left_dense[layer.name] = (
                f"its {size} weights leave no choice with the pattern {pattern.name} and "
                f"densities from {min_density} on"
            )
            continue
        decisions.append(Decision(layer.name, DecisionKind.DENSITY, choices, size))
    if not decisions:
        raise UntraceableModelError(
            f"Expected a convolution or linear layer that can be sparse ({pattern.name}), but all "
            f"layers stay dense: {left_dense}."
        )
    return SearchSpace(tuple(decisions), left_out=left_dense)


def _is_product(network: nn.Module, name: str) -> bool:
    """Whether a layer is a convolution or linear layer of any class with a weight of its own."""
    found = bit_layer(network, name)
    return found is not None and found.has_input and found.parameter == "weight"


def _reason(
    name: str,
    candidates: Sequence[str],
    wanted: Sequence[str],
    modules: dict[str, nn.Module],
    owners: Counter[int],
    pattern: Pattern,
) -> str | None:
    """Why a layer is left dense, ``None`` if it is not."""
    if name not in candidates:
        return "it is no convolution or linear layer that uses its weight as it is"
    if name not in wanted:
        return "it is to be ignored"
    weight = _weight(modules[name])
    if owners[id(weight)] > 1:
        return "it shares its weight with another layer, or stands under several names"
    return pattern.rejection(form_of(modules[name]).outputs_first(weight).shape)


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight

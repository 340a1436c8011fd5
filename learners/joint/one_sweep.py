"""Zeros and bits of a layer found in one sweep over its inputs.

One after the other, rounding takes up what it does to the outputs in the weights that pruning has
left, and pruning does not know what will be rounded. In one sweep (Frantar and Alistarh 2023,
"SparseGPT", 2301.00774, section 3.5) both errors go into the weights of the inputs that come after,
whether these will be zero or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from amc_compress.learners.joint.parts import PlanPart, plan_of
from amc_compress.learners.quantization.uniform.learner import UniformQuantization
from amc_compress.learners.sparsification.learner import WeightSparsification
from amc_compress.learners.sparsification.sparsegpt import choice
from amc_env.costs.storage import OFF_BITS
from amc_env.plan import CompressionPlan


def sweeps_once(parts: Sequence[PlanPart]) -> bool:
    """Whether the last two parts prune and round all that is pruned by sweeps."""
    if len(parts) < 2:
        return False
    densities, bits = parts[-2:]
    return (
        isinstance(densities, WeightSparsification)
        and isinstance(bits, UniformQuantization)
        and densities.options.repair == "sparsegpt"
        and bits.options.rounding == "gptq"
        # N:M needs neighbours to be met one after the other.
        and not (bits.options.act_order and densities.pattern.m)
        and all(densities.sweeps(d.target) and bits.sweeps(d.target) for d in densities.decisions)
    )


def prune_and_round(
    parts: Sequence[PlanPart], network: nn.Module, plan: CompressionPlan, *, exact: bool
) -> nn.Module:
    """Returns what the last two parts make of a network, each layer in one sweep.

    Layers that are pruned and keep their floating-point weights are pruned alone.

    Args:
        parts: That :func:`sweeps_once`.
        network: What the earlier ones made of the original.
        plan: The decisions of all parts.
        exact: See ``PlanPart.apply``.
    """
    densities, bits = parts[-2:]
    assert isinstance(densities, WeightSparsification)
    assert isinstance(bits, UniformQuantization)
    of_weights, of_bits = plan_of(densities, plan), plan_of(bits, plan)
    widths = bits.weight_bits(of_bits)
    kept = {
        name: count
        for name, count in densities.counts(network, of_weights).items()
        if widths[name] != OFF_BITS
    }
    sparse = densities.apply(network, of_weights, exact=exact, later=kept)
    pattern = densities.pattern
    pruned = {
        name: (count, partial(choice, pattern=pattern, keep=count)) for name, count in kept.items()
    }
    return bits.prune_and_round(sparse, of_bits, pruned)

"""Storage format of joint plans for the costs, measured on the original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from amc_compress.learners.joint.learner import apply_parts, kept_units
from amc_compress.learners.joint.parts import PlanPart, in_network_order
from amc_compress.learners.packing.sizes import header_bytes
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.learners.tasks.inputs import Inputs
from amc_env.costs.costs import BytesCost
from amc_env.costs.sparse_form import measured_value_bits
from amc_env.costs.storage import StorageFormat
from amc_env.plan import CompressionPlan, DecisionKind

# Of the network on which the header of the packed file is measured.
_TYPICAL_DENSITY = 0.25

# At which the sizes of codes are measured.
_DENSITIES = (0.03, 0.1, 0.25, 0.5, 1.0)


def plan_at(parts: Sequence[PlanPart], ratio: float) -> CompressionPlan:
    """Returns the plan of keep ratios near ``ratio``, typical densities, and all else at most."""
    requested = {DecisionKind.KEEP_RATIO: ratio, DecisionKind.DENSITY: _TYPICAL_DENSITY}
    decisions = [d for part in parts for d in part.decisions]
    return CompressionPlan(
        {
            d.key: d.nearest(requested[d.kind]) if d.kind in requested else d.choices[-1]
            for d in decisions
        }
    )


def joint_storage(parts: Sequence[PlanPart], example: Inputs) -> StorageFormat:
    """Returns how joint networks are stored; the header of the packed file is measured.

    With a quarter of the weights and the most bits, on all channels and on half of them: a file
    holds the plan, and which channels stayed, and neither depends much on what they are. Between
    the two lies what entropy-coded weights of cut layers take beyond those they were measured on.

    Args:
        parts: All of them, the quantizer last.
        example: One batch as the network takes it.
    """
    graph, bits = parts[0].graph, parts[-1]
    assert isinstance(bits, QuantizationLearner)
    assert bits.storage is not None
    form = replace(bits.storage, fixed_bytes=0.0)
    for part in parts:
        if isinstance(part, WeightSparsification):
            form = _sparse_form(form, part, bits)
    decisions = in_network_order(graph, [part.decisions for part in parts])
    cost, headers = BytesCost(graph, decisions, form), []
    for ratio in (0.5, 1.0) if form.value_bits else (0.5,):
        plan = CompressionPlan({**plan_at(parts, ratio), **bits.most_bits()})
        headers.append(
            header_bytes(
                apply_parts(parts, plan, exact=True),
                plan,
                cost.predict(plan.values_for(decisions)),
                kept=kept_units(parts, plan),
                example_input=example,
                part=bits.options.part,
            )
        )
    return replace(form, fixed_bytes=sum(headers) / len(headers))


def _sparse_form(
    form: StorageFormat, densities: WeightSparsification, bits: QuantizationLearner
) -> StorageFormat:
    """Adds what sparse layers really take, measured on the original at several densities."""
    assert densities.storage is not None
    pattern = densities.storage.pattern
    floats = densities.storage.value_bits  # for bits that are "off"
    full = densities.graph.full()
    points: dict[str, dict[int, dict[float, float]]] = {}
    for values in _requested(densities):
        plan = CompressionPlan({d.key: values[d.target] for d in densities.decisions})
        networks = [densities.apply(densities.original, plan)]
        if densities.proxy.reconstruct and min(values.values()) < 1.0:
            # Codes of weights that were trained are used more equally than those of re-fit ones.
            networks.append(densities.unfitted(plan))
        for name, width, size in _largest(bits.stored_bytes(network) for network in networks):
            density = values.get(name, 1.0)
            weights = round(densities.graph.layer(name).weights(full))
            rows = points.setdefault(name, {}).setdefault(width, {})
            rows[density] = measured_value_bits(size, weights, density, pattern)
    measured = {
        name: {
            **floats.get(name, {}),
            **{width: tuple(rows.items()) for width, rows in widths.items()},
        }
        for name, widths in points.items()
    }
    return replace(form, value_bits={**floats, **measured}, pattern=pattern)


def _largest(
    measured: Iterable[Mapping[str, Mapping[int, int]]],
) -> Iterator[tuple[str, int, int]]:
    """Yields layer, bits and the most bytes that were found."""
    first, *others = measured
    for name, found in first.items():
        for width, size in found.items():
            yield name, width, max(size, *(other[name][width] for other in others), 0)


def _requested(densities: WeightSparsification) -> list[Mapping[str, float]]:
    """Returns layer -> density of the networks to measure; N:M has two choices, not four."""
    plans = [{d.target: d.nearest(request) for d in densities.decisions} for request in _DENSITIES]
    return [plan for i, plan in enumerate(plans) if plan not in plans[:i]]

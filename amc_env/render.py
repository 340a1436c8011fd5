"""The plan so far, layer by layer against the original: as a text table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amc_env.costs.costs import COSTS, CostModel, make_cost, original_cost
from amc_env.costs.storage import OFF_BITS
from amc_env.graph import LayerGraph
from amc_env.plan import Decision, DecisionKind

_BAR_WIDTH = 20
_PIXELS_PER_INCH = 80
_BITS = (DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS)
_SHOWN_COSTS = ("macs", "params", "bytes")
_BIT_COSTS = ("bops", "mean_bits")


def _padded(decisions: Sequence[Decision], values: Sequence[float]) -> list[float]:
    """Undecided values count as the original's."""
    return [*values, *(d.choices[-1] for d in decisions[len(values) :])]


def kept_units(decisions: Sequence[Decision], values: Sequence[float]) -> dict[str, float]:
    """Returns ``group -> kept units`` of the keep-ratio decisions."""
    return {
        d.target: float(d.units(v))
        for d, v in zip(decisions, values, strict=True)
        if d.kind is DecisionKind.KEEP_RATIO
    }


def layer_widths(
    graph: LayerGraph, decisions: Sequence[Decision], values: Sequence[float]
) -> list[tuple[str, int, int, float, float]]:
    """Returns per layer ``(name, original width, width, original MACs, MACs)``."""
    full = graph.full()
    kept = full | kept_units(decisions, _padded(decisions, values))
    return [
        (
            layer.name,
            round(layer.out_width.at(full)),
            round(layer.out_width.at(kept)),
            layer.macs(full),
            layer.macs(kept),
        )
        for layer in graph.layers
        if layer.has_weights
    ]


def decided_bits(
    decisions: Sequence[Decision], values: Sequence[float], kind: DecisionKind
) -> dict[str, float]:
    """Returns ``layer -> bits`` of the decisions of one kind that are made."""
    return {d.target: v for d, v in zip(decisions, values, strict=False) if d.kind is kind}


def _described(decision: Decision, value: float) -> str:
    """Value, kept units and bar of a decision that is made."""
    filled = round(_BAR_WIDTH * value / decision.choices[-1])
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    if decision.kind in _BITS:
        return f"{'off' if value == OFF_BITS else f'{value:g}':>7}  {'':>9}  {bar}"
    kept = f"{decision.units(value)}/{decision.size}"
    return f"{value:>7.3f}  {kept:>9}  {bar}"


def plan_table(
    graph: LayerGraph,
    decisions: Sequence[Decision],
    values: Sequence[float],
    costs: Mapping[str, CostModel] | None = None,
) -> str:
    """Returns a table with one line per decision and closing lines with the costs.

    Args:
        graph: The network.
        decisions: All decisions in order.
        values: The values of the first of them.
        costs: Cost models to show; without them, the default ones.
    """
    width = max([9, *(len(d.target) for d in decisions)])
    lines = [f"{'decision':<{width}}  {'kind':<15} {'value':>7}  {'kept':>9}"]
    for i, decision in enumerate(decisions):
        shown = _described(decision, values[i]) if i < len(values) else f"{'?':>7}"
        lines.append(f"{decision.target:<{width}}  {decision.kind.value:<15} {shown}")
    padded = _padded(decisions, values)
    for name, cost in _shown_costs(graph, decisions, costs).items():
        now, before = cost(padded), original_cost(cost, decisions)
        pair = f"{_number(now):>14} of {_number(before)}"
        lines.append(f"{name:<{width}}  {pair} ({now / before:.1%})")
    return "\n".join(lines)


def _shown_costs(
    graph: LayerGraph, decisions: Sequence[Decision], costs: Mapping[str, CostModel] | None
) -> dict[str, CostModel]:
    """The default costs that say something about these decisions, then all others."""
    names = [*_SHOWN_COSTS]
    if any(d.kind in _BITS for d in decisions):
        names += _BIT_COSTS
    if any(d.kind is DecisionKind.DENSITY for d in decisions):
        names.append("density")
    given = dict(costs or {})
    shown = {n: given[n] if n in given else make_cost(n, graph, decisions) for n in names}
    return shown | {n: c for n, c in given.items() if n not in COSTS}


def _number(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"


def plan_picture(
    graph: LayerGraph, decisions: Sequence[Decision], values: Sequence[float]
) -> npt.NDArray[np.uint8]:
    """Returns a bar chart of layer widths against the original, shape ``(h, w, 3)``, uint8.

    Where bits are decided, a second panel shows them, layer by layer; a missing bar is a layer
    that is not decided about, or not yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = layer_widths(graph, decisions, values)
    names = [row[0] for row in rows]
    with_bits = any(d.kind in _BITS for d in decisions)
    figure = Figure(
        figsize=(max(6.0, 0.35 * len(rows)), 6.5 if with_bits else 4.0), dpi=_PIXELS_PER_INCH
    )
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1 + with_bits, 1, sharex=True, squeeze=False)[:, 0]
    positions = np.arange(len(rows))
    panels[0].bar(positions, [row[1] for row in rows], color="#d5dbe3", label="original")
    panels[0].bar(positions, [row[2] for row in rows], color="#2a6fbb", label="kept")
    panels[0].set_ylabel("output channels")
    panels[0].set_title(f"{len(values)} of {len(decisions)} decisions made", fontsize=10)
    if with_bits:
        _draw_bits(panels[1], names, decisions, values)
    panels[-1].set_xticks(positions, names, rotation=90, fontsize=7)
    for axes in panels:
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("tight")
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return np.asarray(pixels, dtype=np.uint8)[..., :3].copy()


def _draw_bits(
    axes: Any, names: Sequence[str], decisions: Sequence[Decision], values: Sequence[float]
) -> None:
    """Two bars per layer: bits of its weights and of its input."""
    positions = np.arange(len(names))
    for kind, label, color, shift in (
        (DecisionKind.WEIGHT_BITS, "weights", "#2a6fbb", -0.2),
        (DecisionKind.ACTIVATION_BITS, "input", "#e08a2e", 0.2),
    ):
        bits = decided_bits(decisions, values, kind)
        axes.bar(
            positions + shift, [bits.get(n, 0.0) for n in names], 0.4, color=color, label=label
        )
    axes.set_ylim(0.0, max([8.0, *(d.choices[-1] for d in decisions if d.kind in _BITS)]))
    axes.set_ylabel("bits")

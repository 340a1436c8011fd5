"""The plan so far, layer by layer against the original: as a text table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amc_env.costs.canonical import VoidDecisions
from amc_env.costs.costs import CostModel, costs_for, make_cost, original_cost
from amc_env.costs.layer_terms import columns
from amc_env.costs.presence import of_layers
from amc_env.graph import CHANNELS, LayerGraph
from amc_env.kinds import Panel, Quantity
from amc_env.plan import Decision

_BAR_WIDTH = 20
_PIXELS_PER_INCH = 80
_SHOWN_COSTS = ("macs", "params", "bytes")


def _padded(decisions: Sequence[Decision], values: Sequence[float]) -> list[float]:
    """Undecided values count as the original's."""
    return [*values, *(d.choices[-1] for d in decisions[len(values) :])]


def _void(graph: LayerGraph, decisions: Sequence[Decision], values: Sequence[float]) -> list[bool]:
    """Returns which decisions say nothing, because of a branch that is left out so far."""
    return VoidDecisions(graph, decisions).of(_padded(decisions, values))


def kept_units(decisions: Sequence[Decision], values: Sequence[float]) -> dict[str, float]:
    """Returns ``group -> kept units`` of the decisions about widths."""
    found = columns(decisions, Quantity.WIDTH)
    return {name: float(decisions[i].units(values[i])) for name, i in found.items()}


def layer_widths(
    graph: LayerGraph, decisions: Sequence[Decision], values: Sequence[float]
) -> list[tuple[str, int, int, float, float]]:
    """Returns per layer ``(name, original width, width, original MACs, MACs)``."""
    full, padded = graph.full(), _padded(decisions, values)
    kept = full | kept_units(decisions, padded)
    layers = [layer for layer in graph.layers if layer.has_weights]
    present = of_layers(layers, graph, decisions).at(np.array(padded))
    return [
        (
            layer.name,
            round(layer.out_width.at(full)),
            round(layer.out_width.at(kept) * is_there),
            layer.macs(full),
            layer.macs(kept) * is_there,
        )
        for layer, is_there in zip(layers, present.tolist(), strict=True)
    ]


def decided_values(
    graph: LayerGraph, decisions: Sequence[Decision], values: Sequence[float], kind: str
) -> dict[str, float]:
    """Returns ``layer -> value`` of the decisions of one kind that are made; of two the smaller.

    Those that say nothing, because of a branch that is left out, are not there.
    """
    found: dict[str, float] = {}
    void = _void(graph, decisions, values)
    for decision, value, is_void in zip(decisions, values, void, strict=False):
        if decision.kind.name == kind and not is_void:
            for name in decision.kind.layers(graph, decision.target):
                found[name] = min(value, found.get(name, value))
    return found


def _described(decision: Decision, value: float) -> str:
    """Value, kept units and bar of a decision that is made."""
    top = decision.choices[-1]
    filled = round(_BAR_WIDTH * min(max(value / top, 0.0), 1.0)) if top > 0.0 else 0
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    text, kept = decision.kind.text(value), decision.kind.kept(value, decision.size)
    return f"{text:>7}  {kept:>9}  {bar}"


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
    roles = {group.name: group.role for group in graph.groups if group.role != CHANNELS}
    lines = [f"{'decision':<{width}}  {'kind':<15} {'value':>7}  {'kept':>9}"]
    void = _void(graph, decisions, values)
    for i, decision in enumerate(decisions):
        shown = _described(decision, values[i]) if i < len(values) else f"{'?':>7}"
        shown = f"{'-':>7}" if void[i] else shown
        role = roles.get(decision.target) if decision.kind.quantity is Quantity.WIDTH else None
        shown += f"  {role}" if role else ""
        lines.append(f"{decision.target:<{width}}  {decision.kind.name:<15} {shown}")
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
    wanted = {*_SHOWN_COSTS, *(name for d in decisions for name in d.kind.costs)}
    given, known = dict(costs or {}), costs_for(decisions)
    shown = {
        n: given[n] if n in given else make_cost(n, graph, decisions) for n in known if n in wanted
    }
    return shown | {n: c for n, c in given.items() if n not in known}


def _number(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"


def plan_picture(
    graph: LayerGraph, decisions: Sequence[Decision], values: Sequence[float]
) -> npt.NDArray[np.uint8]:
    """Returns a bar chart of layer widths against the original, shape ``(h, w, 3)``, uint8.

    Further panels show bits and what else is decided, layer by layer; a missing bar is a layer
    that is not decided about, or not yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = layer_widths(graph, decisions, values)
    names = [row[0] for row in rows]
    further = [x for x in dict.fromkeys(d.kind.panel for d in decisions) if x is not None]
    figure = Figure(
        figsize=(max(6.0, 0.35 * len(rows)), 4.0 + 2.5 * len(further)), dpi=_PIXELS_PER_INCH
    )
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1 + len(further), 1, sharex=True, squeeze=False)[:, 0]
    positions = np.arange(len(rows))
    panels[0].bar(positions, [row[1] for row in rows], color="#d5dbe3", label="original")
    panels[0].bar(positions, [row[2] for row in rows], color="#2a6fbb", label="kept")
    panels[0].set_ylabel("output channels")
    panels[0].set_title(f"{len(values)} of {len(decisions)} decisions made", fontsize=10)
    for axes, panel in zip(panels[1:], further, strict=True):
        shown = [decided_values(graph, decisions, values, bar.kind) for bar in panel.bars]
        _draw_panel(axes, names, panel, shown)
        own = [d.choices[-1] for d in decisions if d.kind.panel == panel]
        axes.set_ylim(0.0, max([panel.top, *own]))
    panels[-1].set_xticks(positions, names, rotation=90, fontsize=7)
    for axes in panels:
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("tight")
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return np.asarray(pixels, dtype=np.uint8)[..., :3].copy()


def _draw_panel(
    axes: Any, names: Sequence[str], panel: Panel, shown: Sequence[Mapping[str, float]]
) -> None:
    """As many bars per layer as the panel has."""
    positions, width = np.arange(len(names)), 0.8 / len(panel.bars)
    for k, (bar, values) in enumerate(zip(panel.bars, shown, strict=True)):
        shift = width * (k - (len(panel.bars) - 1) / 2)
        heights = [values.get(name, 0.0) for name in names]
        axes.bar(positions + shift, heights, width, color=bar.colour, label=bar.label)
    axes.set_ylabel(panel.label)

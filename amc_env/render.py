"""The plan so far, layer by layer against the original: as a text table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc_env.cost import make_cost
from amc_env.graph import LayerGraph
from amc_env.plan import CompressionPlan, Decision, DecisionKind

_BAR_WIDTH = 20
_PIXELS_PER_INCH = 80


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
        if layer.kind != "matmul"
    ]


def plan_table(graph: LayerGraph, decisions: Sequence[Decision], values: Sequence[float]) -> str:
    """Returns a table with one line per decision and a closing line with the costs."""
    width = max([8, *(len(d.target) for d in decisions)])
    lines = [f"{'decision':<{width}}  {'kind':<15} {'value':>7}  {'kept':>9}"]
    for i, decision in enumerate(decisions):
        name = f"{decision.target:<{width}}  {decision.kind.value:<15}"
        if i >= len(values):
            lines.append(f"{name} {'?':>7}")
            continue
        share = values[i] / decision.choices[-1]
        filled = round(_BAR_WIDTH * share)
        kept = f"{decision.units(values[i])}/{decision.size}"
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        lines.append(f"{name} {values[i]:>7.3f}  {kept:>9}  {bar}")
    full = CompressionPlan.full(decisions).values_for(decisions)
    padded = _padded(decisions, values)
    for name in ("macs", "params", "bytes"):
        cost = make_cost(name, graph, decisions)
        ratio = cost(padded) / cost(full)
        lines.append(f"{name:<{width}}  {cost(padded):>14,.0f} of {cost(full):,.0f} ({ratio:.1%})")
    return "\n".join(lines)


def plan_picture(
    graph: LayerGraph, decisions: Sequence[Decision], values: Sequence[float]
) -> npt.NDArray[np.uint8]:
    """Returns a bar chart of layer widths against the original, shape ``(h, w, 3)``, uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = layer_widths(graph, decisions, values)
    names = [row[0] for row in rows]
    figure = Figure(figsize=(max(6.0, 0.35 * len(rows)), 4.0), dpi=_PIXELS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    positions = np.arange(len(rows))
    axes.bar(positions, [row[1] for row in rows], color="#d5dbe3", label="original")
    axes.bar(positions, [row[2] for row in rows], color="#2a6fbb", label="kept")
    axes.set_xticks(positions, names, rotation=90, fontsize=7)
    axes.set_ylabel("output channels")
    axes.set_title(f"{len(values)} of {len(decisions)} decisions made", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("tight")
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return np.asarray(pixels, dtype=np.uint8)[..., :3].copy()

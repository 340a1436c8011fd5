"""Shared drawing code of a comparison's figures: axes, line labels, PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from amc_compress.comparison.report.styles import FAINT, INK, SOFT, Style

_PIXELS_PER_INCH = 130
_LINE_WIDTH = 1.7


def new_axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Returns an empty figure of so many inches and its axes."""
    figure = Figure(figsize=(width, height), dpi=_PIXELS_PER_INCH)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, color=INK, loc="left", pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa5b3")
    axes.tick_params(colors=SOFT, labelsize=9)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
        axis.label.set_fontsize(10)
    return figure, axes


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file, everything outside its axes included."""
    stream = io.BytesIO()
    # Nothing but the picture in it, so that equal figures are equal files.
    figure.savefig(
        stream,
        format="png",
        bbox_inches="tight",
        pad_inches=0.12,
        facecolor="white",
        metadata={"Software": None},
    )
    return stream.getvalue()


def curve_size(n_agents: int) -> tuple[float, float]:
    """Returns width and height of a figure of curves, in inches, with room for all names."""
    return 7.6, max(4.6, 0.2 * n_agents + 0.8)


def band_alpha(n_agents: int) -> float:
    """Returns how opaque each band may be so that many of them do not hide the lines."""
    return min(0.13, 1.0 / n_agents)


def line_options(style: Style) -> dict[str, Any]:
    """Returns matplotlib's options for a line of an agent."""
    return {"color": style.colour, "linestyle": style.line, "linewidth": _LINE_WIDTH}


def label_lines(
    axes: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Style]
) -> None:
    """Writes the agents' names right of the axes, at the height where their lines end.

    Names that would overlap are moved apart and connected to their lines; those of lines that leave
    the picture downwards say so.

    Args:
        axes: With its final limits.
        ends: Agent -> where its line ends, in data coordinates.
        styles: Agent -> style.
    """
    if not ends:
        return
    place = axes.transData + axes.transAxes.inverted()
    points = {agent: place.transform(end) for agent, end in ends.items()}
    below = {agent for agent, (_, y) in points.items() if y < 0.0}
    agents = sorted(points, key=lambda agent: points[agent][1])
    axes_height = axes.get_window_extent().height / axes.figure.dpi
    gap = 0.165 / axes_height
    heights = spread([max(0.0, float(points[agent][1])) for agent in agents], gap)
    for agent, height in zip(agents, heights, strict=True):
        x, y = points[agent]
        style = styles[agent]
        label = style.label
        if agent in below:
            x, y, label = 1.0, 0.0, f"{label} (ends below)"
        options: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.add_line(
            Line2D([x, 1.0, 1.03], [y, y, height], color=style.colour, linewidth=0.6, **options)
        )
        axes.add_line(Line2D([1.03, 1.08], [height, height], **line_options(style), **options))
        axes.text(1.09, height, label, color=INK, fontsize=8.5, va="center", **options)


def legend(axes: Axes, agents: Sequence[str], styles: Mapping[str, Style]) -> None:
    """Writes the agents' names right of the axes, in the given order."""
    handles = [
        Line2D([], [], label=styles[agent].label, **line_options(styles[agent])) for agent in agents
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=8.5,
        handlelength=2.6,
        labelcolor=INK,
    )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Returns positions at least ``gap`` apart, nearest to the requested ones (least squares).

    They stay between 0 and 1 if there is room for all.

    Args:
        wanted: The requested positions, ascending.
        gap: Smallest distance of neighbours.

    Neighbours that are too close form a block around the mean of their requests, and blocks merge:
    the pool-adjacent-violators algorithm on the requests less their places in the row.
    """
    blocks: list[list[float]] = []
    for i, request in enumerate(wanted):
        blocks.append([request - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    starts = [float(np.mean(block)) for block in blocks for _ in block]
    if (room := 1.0 - (len(starts) - 1) * gap) > 0:
        starts = [min(max(start, 0.0), room) for start in starts]
    return [start + i * gap for i, start in enumerate(starts)]

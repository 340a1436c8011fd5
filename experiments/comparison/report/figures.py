"""Learning curves: best reward so far, against evaluations and against seconds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from amc_compress.comparison.report.drawing import (
    band_alpha,
    curve_size,
    label_lines,
    legend,
    line_options,
    new_axes,
)
from amc_compress.comparison.report.styles import SOFT, Style
from amc_compress.comparison.statistics.curves import Curve
from amc_compress.comparison.statistics.scores import FloatArray

# Poor plans leave the picture downwards, so that the ends of the others can be told apart.
_ROOM_BELOW_UNIFORM = 0.35
_ROOM = 0.05


def draw_evaluations(
    curves: Mapping[str, Curve], styles: Mapping[str, Style], task: str, uniform: float
) -> Figure:
    """Draws best reward against evaluations on a task.

    Args:
        curves: Agent -> curve.
        styles: Agent -> style.
        task: Name of the task.
        uniform: Reward of the uniform plan.
    """
    figure, axes = new_axes(*curve_size(len(curves)), f"{task}: best reward so far")
    shown = _draw_rewards(axes, curves, styles, uniform)
    _end_against_evaluations(axes, shown, styles)
    return figure


def draw_seconds(
    curves: Mapping[str, Curve], styles: Mapping[str, Style], task: str, uniform: float
) -> Figure:
    """Draws best reward against processor seconds of agent and evaluation on a task.

    Args:
        curves: Agent -> curve.
        styles: Agent -> style.
        task: Name of the task.
        uniform: Reward of the uniform plan.
    """
    figure, axes = new_axes(
        *curve_size(len(curves)), f"{task}: best reward so far, in processor time"
    )
    shown = _draw_rewards(axes, curves, styles, uniform)
    for agent, curve in shown.items():
        axes.plot(
            curve.x[-1:], curve.mean[-1:], styles[agent].marker, color=styles[agent].colour,
            markersize=6, markeredgecolor="white", markeredgewidth=0.7, zorder=5,
        )  # fmt: skip
    axes.axhline(uniform, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.set_xlabel("processor seconds of agent and evaluation")
    legend(axes, sorted(shown, key=lambda a: -float(shown[a].mean[-1])), styles)
    return figure


def draw_iqm_curves(curves: Mapping[str, Curve], styles: Mapping[str, Style]) -> Figure:
    """Draws interquartile mean scores against evaluations.

    Args:
        curves: Agent -> curve.
        styles: Agent -> style.
    """
    figure, axes = new_axes(*curve_size(len(curves)), "All tasks: score of the best plan so far")
    for agent, curve in curves.items():
        axes.plot(curve.x, curve.mean, drawstyle="steps-post", **line_options(styles[agent]))
    axes.set_ylim(*_limits(curves, 0.0))
    axes.set_ylabel("interquartile mean of the scores")
    _end_against_evaluations(axes, curves, styles)
    return figure


def _draw_rewards(
    axes: Axes, curves: Mapping[str, Curve], styles: Mapping[str, Style], uniform: float
) -> dict[str, Curve]:
    """Draws rewards with their intervals; returns the curves that have any."""
    shown = {agent: curve for agent, curve in curves.items() if len(curve.x)}
    for agent, curve in shown.items():
        axes.plot(curve.x, curve.mean, drawstyle="steps-post", **line_options(styles[agent]))
        axes.fill_between(
            curve.x, curve.low, curve.high, step="post", color=styles[agent].colour,
            alpha=band_alpha(len(curves)), linewidth=0,
        )  # fmt: skip
    axes.set_ylim(*_limits(shown, uniform))
    axes.set_ylabel("reward, mean over seeds")
    return shown


def _end_against_evaluations(
    axes: Axes, curves: Mapping[str, Curve], styles: Mapping[str, Style]
) -> None:
    """Sets the axis of evaluations, and writes the agents at the ends of their lines."""
    axes.set_xlim(1, max([2.0, *(float(c.x[-1]) for c in curves.values())]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("evaluations")
    ends = {agent: (float(c.x[-1]), float(c.mean[-1])) for agent, c in curves.items()}
    label_lines(axes, ends, styles)


def _limits(curves: Mapping[str, Curve], uniform: float) -> tuple[float, float]:
    """Axis limits from just below the uniform plan to the top; far worse values are clipped."""
    top = max([uniform, *(_largest(curve) for curve in curves.values())])
    worst = min([uniform, *(float(np.min(curve.mean)) for curve in curves.values())])
    if top > uniform:
        worst = max(worst, uniform - _ROOM_BELOW_UNIFORM * (top - uniform))
    height = top - worst or max(0.01, 0.05 * abs(top))
    return worst - _ROOM * height, top + _ROOM * height


def _largest(curve: Curve) -> float:
    known: FloatArray = curve.high[~np.isnan(curve.high)]
    return float(max([curve.mean.max(), *known]))

"""Figures over all tasks: scores, profiles, pairwise wins, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amc_compress.comparison.report.drawing import (
    band_alpha,
    curve_size,
    legend,
    line_options,
    new_axes,
)
from amc_compress.comparison.report.styles import FAINT, INK, SOFT, Style
from amc_compress.comparison.statistics.statistics import Interval, Profile

_ROW = 0.27  # inches per agent

_LEAST_SCORE = -0.5
"""Worse agents stand at the edge with their number, so that the others can be told apart."""


def draw_scores(
    intervals: Mapping[str, Interval], styles: Mapping[str, Style], n_tasks: int
) -> Figure:
    """Draws interquartile mean scores with their intervals, best on top.

    Args:
        intervals: Agent -> interquartile mean.
        styles: Agent -> style.
        n_tasks: Over how many tasks.
    """
    figure, axes = _rows(
        len(intervals), f"Score over {n_tasks} task{'s' * (n_tasks != 1)}: interquartile mean"
    )
    agents = sorted(intervals, key=lambda agent: intervals[agent].estimate)
    for height, agent in enumerate(agents):
        interval, style = intervals[agent], styles[agent]
        ends = [interval.low, interval.high]
        axes.plot(ends, [height] * 2, color=style.colour, linewidth=6, alpha=0.3,
                  solid_capstyle="butt")  # fmt: skip
        if interval.estimate >= _LEAST_SCORE:
            axes.plot(interval.estimate, height, style.marker, color=style.colour, markersize=6)
        else:
            axes.plot(_LEAST_SCORE, height, "<", color=style.colour, markersize=6, clip_on=False)
            axes.annotate(
                f"{interval.estimate:.1f}", (_LEAST_SCORE, height), xytext=(8, 0),
                textcoords="offset points", va="center", fontsize=8.5, color=INK,
            )  # fmt: skip
    if any(interval.low < _LEAST_SCORE for interval in intervals.values()):
        axes.set_xlim(left=_LEAST_SCORE)
    axes.axvline(0.0, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(agents)), [styles[a].label for a in agents], color=INK)
    axes.set_xlabel("score (0: uniform plan, 1: best plan found)")
    return figure


def draw_profiles(profiles: Mapping[str, Profile], styles: Mapping[str, Style]) -> Figure:
    """Draws the share of searches above each score.

    Args:
        profiles: Agent -> profile.
        styles: Agent -> style.
    """
    figure, axes = new_axes(
        *curve_size(len(profiles)), "Share of searches that ended above a score"
    )
    for agent, profile in profiles.items():
        style = styles[agent]
        axes.plot(profile.thresholds, profile.share, **line_options(style))
        axes.fill_between(
            profile.thresholds, profile.low, profile.high, color=style.colour,
            alpha=band_alpha(len(profiles)), linewidth=0,
        )  # fmt: skip
    thresholds = next(iter(profiles.values())).thresholds
    axes.set_xlim(float(thresholds[0]), float(thresholds[-1]))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("score (0: uniform plan, 1: best plan found)")
    axes.set_ylabel("share of the searches")
    # Sorted by the area below, which is the mean score within the picture.
    legend(axes, sorted(profiles, key=lambda a: -float(profiles[a].share.mean())), styles)
    return figure


def draw_improvements(
    improvements: Mapping[tuple[str, str], Interval],
    agents: Sequence[str],
    styles: Mapping[str, Style],
) -> Figure:
    """Draws the probability that the agent of the row beats that of the column.

    Args:
        improvements: (row, column) -> probability.
        agents: Best first.
        styles: Agent -> style.
    """
    size = 0.42 * len(agents) + 1.2
    figure, axes = new_axes(
        size,
        size,
        "Probability that the row beats the column, per cent\n"
        "(bold: the interval leaves no doubt who is ahead)",
    )
    shares = np.full((len(agents), len(agents)), np.nan)
    for i, row in enumerate(agents):
        for j, column in enumerate(agents):
            if row != column:
                _write_cell(axes, i, j, improvements[row, column])
                shares[i, j] = improvements[row, column].estimate
    # Purple to orange by way of white: colour-blind readers can tell them apart. Only the pale
    # part of the scale, on which black letters can be read.
    axes.imshow(shares, cmap="PuOr_r", vmin=-0.4, vmax=1.4)
    labels = [styles[agent].label for agent in agents]
    axes.set_xticks(range(len(agents)), labels, rotation=40, ha="right", color=INK)
    axes.set_yticks(range(len(agents)), labels, color=INK)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_ranks(
    ranks: Mapping[str, Mapping[str, float]],
    means: Mapping[str, float],
    styles: Mapping[str, Style],
) -> Figure:
    """Draws the rank of every agent on every task, and its mean rank.

    Args:
        ranks: Task -> agent -> rank of its mean reward.
        means: Agent -> mean rank over tasks.
        styles: Agent -> style.
    """
    figure, axes = _rows(len(means), "Rank on every task (dots) and mean rank (bars)")
    agents = sorted(means, key=lambda agent: -means[agent])
    for height, agent in enumerate(agents):
        colour = styles[agent].colour
        own = [task[agent] for task in ranks.values()]
        axes.plot([min(own), max(own)], [height] * 2, color=FAINT, linewidth=5, zorder=1)
        # Equal ranks side by side, not on top of each other.
        offsets = [0.13 * (own[:i].count(r) - (own.count(r) - 1) / 2) for i, r in enumerate(own)]
        heights = [height + offset for offset in offsets]
        axes.plot(own, heights, "o", color=colour, markersize=5, alpha=0.6, markeredgewidth=0)
        axes.plot(means[agent], height, "|", color=colour, markersize=16, markeredgewidth=2.4)
    axes.set_yticks(range(len(agents)), [styles[a].label for a in agents], color=INK)
    axes.set_xlim(0.5, len(agents) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank of the mean reward (1: best)")
    return figure


def _rows(n: int, title: str) -> tuple[Figure, Axes]:
    figure, axes = new_axes(6.4, 1.1 + _ROW * n, title)
    axes.set_ylim(-0.6, n - 0.4)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _write_cell(axes: Axes, row: int, column: int, interval: Interval) -> None:
    is_sure = interval.low > 0.5 or interval.high < 0.5
    axes.text(
        column, row, f"{100 * interval.estimate:.0f}", ha="center", va="center", fontsize=8.5,
        color=INK, fontweight="bold" if is_sure else "normal",
    )  # fmt: skip

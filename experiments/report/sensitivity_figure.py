"""The picture of ``amc sensitivity``: what each decision loses, and what it saves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from amc_env.files import write_atomic
from amc_env.scores.metric import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOFT, _FAINT, _MAIN = "#1c2430", "#5d6979", "#e4e8ee", "#1668b8"
_ROW, _WIDTH = 0.27, 9.0
_LONGEST = 34
_TICKS = (-20, -5, -1, 0, 0.5, 1, 2, 5, 10, 20, 50, 100)


class Measured(Protocol):
    """One decision at one value."""

    @property
    def decision(self) -> str: ...  # noqa: D102

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def value(self) -> float: ...  # noqa: D102

    @property
    def drop(self) -> float: ...  # noqa: D102

    @property
    def cost_ratio(self) -> dict[str, float]: ...  # noqa: D102


def draw_sensitivity(
    rows: Sequence[Measured], cost: str, metric: Metric, paths: Sequence[Path]
) -> None:
    """Draws a row for each decision, in network order.

    Left a dot per value, at the drop of the score: the darker, the more is cut. Right what its
    smallest value saves of the network's cost.

    Args:
        rows: Of all decisions.
        cost: Name of the cost on the right.
        metric: What the scores are made from.
        paths: The files; their endings choose the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys((row.decision, row.kind) for row in rows))
    kinds = {kind for _, kind in names}
    unit = 100.0 if metric.is_accuracy else 1.0
    figure = Figure(figsize=(_WIDTH, 1.3 + _ROW * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for place, name in enumerate(names):
        own = sorted((r for r in rows if (r.decision, r.kind) == name), key=lambda r: r.value)
        drops = [unit * row.drop for row in own]
        shades = [0.25 + 0.75 * (1.0 - i / max(len(own), 1)) for i in range(len(own))]
        left.plot([min(drops), max(drops)], [place, place], color=_FAINT, linewidth=2, zorder=1)
        left.scatter(
            drops, [place] * len(own), c=shades, cmap="Blues", vmin=0.0, vmax=1.15, s=34,
            edgecolors=_MAIN, linewidths=0.6, zorder=2,
        )  # fmt: skip
        saved = 100.0 * (1.0 - min(row.cost_ratio[cost] for row in own))
        right.barh(place, saved, color=_MAIN, height=0.6)
    labels = [name if len(kinds) == 1 else f"{name} {kind}" for name, kind in names]
    left.set_yticks(range(len(names)), [_shortened(label) for label in labels])
    left.set_ylim(len(names) - 0.4, -0.6)
    if metric.is_accuracy:  # a tenth of a point matters where others lose thirty
        left.set_xscale("symlog", linthresh=1.0, linscale=1.0)
        left.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        left.minorticks_off()
        all_drops = [unit * row.drop for row in rows]
        left.set_xlim(min(-0.15, 1.1 * min(all_drops)), max(1.0, 1.3 * max(all_drops)))
    left.axvline(0.0, color=_SOFT, linewidth=0.8)
    points = "points of accuracy" if metric.is_accuracy else f"drop of the score ({metric.title})"
    left.set_xlabel(f"{points} lost when it alone is cut; darker: less is kept", fontsize=9)
    right.set_xlabel(f"% of {cost} saved at most", fontsize=9)
    for axes in (left, right):
        _style(axes)
    left.tick_params(axis="y", labelcolor=_INK)
    _save(figure, paths)


def _style(axes: Axes) -> None:
    axes.grid(axis="x", color=_FAINT)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _save(figure: Figure, paths: Sequence[Path]) -> None:
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "amc"}):
        for path in paths:
            file = io.BytesIO()
            figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=_dateless(path))
            write_atomic(path, file.getvalue())


def _dateless(path: Path) -> dict[str, None] | None:
    """Metadata that makes equal pictures equal files."""
    return {"Date": None} if path.suffix == ".svg" else None


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST else f"…{label[1 - _LONGEST :]}"

"""Small charts as inline SVG, without files or scripts.

Every chart is laid out here, in a fixed coordinate system, and drawn by ``templates/charts.svg``;
the page scales it, so that it fits a phone. Colours are CSS classes of the report's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to one direction of the picture.

    Args:
        low: Value at the start.
        high: Value at the end.
        label: What it shows.
        percent: Whether ticks are written as percentages.
    """

    low: float
    high: float
    label: str
    percent: bool = False

    @classmethod
    def around(cls, values: Sequence[float], label: str, *, percent: bool = False) -> Axis:
        """Builds a scale that holds all values with a little room at both ends."""
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.01
        return cls(low - room, high + room, label, percent)

    def place(self, value: float) -> float:
        """Returns where a value lies, 0 at the start and 1 at the end."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> Iterator[tuple[float, str]]:
        """Yields about ``count`` round values on the scale, with their inscriptions."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        for value in (i * step for i in range(first, last + 1)):
            yield value, f"{100 * value:.4g}%" if self.percent else f"{value:.6g}"


@dataclass
class Chart:
    """A picture with two scales, drawn layer by layer.

    Args:
        x: Horizontal scale.
        y: Vertical scale.
        title: Read aloud by screen readers.
        marks: What is drawn on the grid, in order: the name of a form, and what it needs.
    """

    width, height = 470.0, 290.0
    left, right, top, bottom = 58.0, width - 12.0, 10.0, height - 42.0

    x: Axis
    y: Axis
    title: str
    marks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the coordinates of a point."""
        return (
            self.left + (self.right - self.left) * self.x.place(x),
            self.top + (self.bottom - self.top) * (1.0 - self.y.place(y)),
        )

    def dots(
        self, points: Sequence[tuple[float, float]], css: str, hints: Sequence[str], r: float = 3.2
    ) -> None:
        """Draws dots; a hint is shown when the pointer rests on its dot."""
        for point, hint in zip(points, hints, strict=True):
            self.marks.append(("dot", {"at": self.at(*point), "css": css, "r": r, "hint": hint}))

    def line(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Draws straight lines from point to point."""
        self.marks.append(("line", {"points": [self.at(*point) for point in points], "css": css}))

    def steps(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Draws a staircase: each value holds until the next."""
        corners: list[tuple[float, float]] = []
        for x, y in points:
            if corners:
                corners.append((x, corners[-1][1]))
            corners.append((x, y))
        self.line(corners, css)

    def horizontal(self, y: float, css: str) -> None:
        """Draws a line across the picture."""
        self.line([(self.x.low, y), (self.x.high, y)], css)

    def band(self, x0: float, x1: float, css: str) -> None:
        """Shades everything between two horizontal values."""
        corners = self.at(x0, self.y.high), self.at(x1, self.y.low)
        self.marks.append(("band", {"corners": corners, "css": css}))


@dataclass(frozen=True)
class LayerRows:
    """A picture with one row per layer, its name on the left.

    Horizontal, because layer names are long and networks are deep: the picture grows downwards,
    which is how a phone scrolls.

    Args:
        form: ``"kept"``, how many units stay of how many, or ``"bits"``, of 8, of a layer's weights
            and of what it reads.
        rows: Name of a layer, and the two numbers; None is float32.
        title: Read aloud by screen readers.
        unit: What is counted.
    """

    width = 560.0

    form: Literal["kept", "bits"]
    rows: Sequence[tuple[Any, ...]]
    title: str
    unit: str = "channels"

    @property
    def name_width(self) -> float:
        """Returns the room for the names."""
        return min(220.0, 10.0 + 7.2 * max(len(name) for name, *_ in self.rows))

    @property
    def scale(self) -> float:
        """Returns the length of one unit, if the largest layer leaves room for the numbers."""
        largest: int = max(size for _, _, size in self.rows)
        count_width = max(106.0, 24.0 + 28.0 * len(str(largest)))
        return (self.width - self.name_width - count_width) / largest


@dataclass(frozen=True)
class Figure:
    """A chart of the search.

    Args:
        note: What it shows.
        chart: The picture; None where there is nothing to draw.
        legend: Colour, text and CSS class of every entry.
    """

    note: str
    chart: Chart | None = None
    legend: Sequence[tuple[str, str, str]] = ()

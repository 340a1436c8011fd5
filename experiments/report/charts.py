"""Small charts as inline SVG, without files or scripts.

Every chart is drawn in a fixed coordinate system and scaled by the page, so that it fits a phone.
Colours are CSS classes of the report's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 10.0, 42.0


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
        room = 0.06 * (high - low) or max(0.01, 0.05 * abs(high))
        return cls(low - room, high + room, label, percent)

    def place(self, value: float) -> float:
        """Returns where a value lies, 0 at the start and 1 at the end."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Returns about ``count`` round values on the scale."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def text(self, value: float) -> str:
        """Returns the inscription of a tick."""
        return f"{100 * value:.4g}%" if self.percent else f"{value:.6g}"


@dataclass
class Chart:
    """A picture with two scales, drawn layer by layer.

    Args:
        x: Horizontal scale.
        y: Vertical scale.
        title: Read aloud by screen readers.
        width: Of the coordinate system.
        height: Of the coordinate system.
    """

    x: Axis
    y: Axis
    title: str
    width: float = 470.0
    height: float = 290.0
    _parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the coordinates of a point."""
        inner_width = self.width - _LEFT - _RIGHT
        inner_height = self.height - _TOP - _BOTTOM
        return (
            _LEFT + inner_width * self.x.place(x),
            _TOP + inner_height * (1.0 - self.y.place(y)),
        )

    def dots(
        self, points: Sequence[tuple[float, float]], css: str, hints: Sequence[str], r: float = 3.2
    ) -> None:
        """Draws dots; a hint is shown when the pointer rests on its dot."""
        for (x, y), hint in zip(points, hints, strict=True):
            cx, cy = self.at(x, y)
            self._parts.append(
                f'<circle class="{css}" cx="{cx:.1f}" cy="{cy:.1f}" r="{r}">'
                f"<title>{escape(hint)}</title></circle>"
            )

    def line(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Draws straight lines from point to point."""
        places = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in points)
        self._parts.append(f'<polyline class="line {css}" points="{places}"/>')

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

    def vertical(self, x: float, css: str) -> None:
        """Draws a line from bottom to top."""
        self.line([(x, self.y.low), (x, self.y.high)], css)

    def band(self, x0: float, x1: float, css: str) -> None:
        """Shades everything between two horizontal values."""
        (left, top), (right, bottom) = self.at(x0, self.y.high), self.at(x1, self.y.low)
        self._parts.append(
            f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )

    def svg(self) -> str:
        """Returns the picture."""
        return _svg(self.width, self.height, self.title, [*self._grid(), *self._parts])

    def _grid(self) -> list[str]:
        parts = []
        bottom, left = self.height - _BOTTOM, _LEFT
        for value in self.y.ticks():
            _, y = self.at(self.x.low, value)
            parts.append(
                f'<line class="grid" x1="{left}" x2="{self.width - _RIGHT}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/><text class="tick" x="{left - 6}" y="{y + 4:.1f}" '
                f'text-anchor="end">{self.y.text(value)}</text>'
            )
        for value in self.x.ticks(6):
            x, _ = self.at(value, self.y.low)
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
                f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">'
                f"{self.x.text(value)}</text>"
            )
        parts.append(
            f'<line class="axis" x1="{left}" x2="{self.width - _RIGHT}" y1="{bottom}" '
            f'y2="{bottom}"/><text class="label" x="{(left + self.width - _RIGHT) / 2}" '
            f'y="{self.height - 5}" text-anchor="middle">{escape(self.x.label)}</text>'
        )
        return parts


@dataclass(frozen=True)
class Bar:
    """One layer of a plan.

    Args:
        name: Of the layer.
        kept: Units that stay.
        size: Units of the original.
    """

    name: str
    kept: int
    size: int


def plan_bars(bars: Sequence[Bar], title: str, width: float = 560.0, unit: str = "channels") -> str:
    """Draws kept against original units: one horizontal bar per layer, lengths in units.

    Horizontal, because layer names are long and networks are deep: the picture grows downwards,
    which is how a phone scrolls.
    """
    row, top = 24.0, 4.0
    name_width = min(220.0, 10.0 + 7.2 * max(len(bar.name) for bar in bars))
    digits = len(str(max(bar.size for bar in bars)))
    count_width = max(106.0, 24.0 + 28.0 * digits)
    largest = max(bar.size for bar in bars)
    scale = (width - name_width - count_width) / largest
    parts = []
    for i, bar in enumerate(bars):
        y = top + i * row
        share = f"{bar.kept / bar.size:.0%}"
        parts.append(
            f'<text class="name" x="{name_width - 8:.1f}" y="{y + 15}" text-anchor="end">'
            f"{escape(bar.name)}</text>"
            f'<rect class="whole" x="{name_width:.1f}" y="{y + 4}" rx="2" '
            f'width="{bar.size * scale:.1f}" height="15"/>'
            f'<rect class="kept" x="{name_width:.1f}" y="{y + 4}" rx="2" '
            f'width="{bar.kept * scale:.1f}" height="15"><title>{escape(bar.name)}: '
            f"{bar.kept:d} of {bar.size:d} {unit} stay</title></rect>"
            f'<text class="tick" x="{name_width + bar.size * scale + 6:.1f}" y="{y + 15}">'
            f"{bar.kept:d} / {bar.size:d} · {share}</text>"
        )
    return _svg(width, top * 2 + row * len(bars), title, parts)


@dataclass(frozen=True)
class BitRow:
    """Bits of one layer.

    Args:
        name: Of the layer.
        weights: Bits per weight; None for float32.
        activations: Bits of what it reads; None for float32.
    """

    name: str
    weights: int | None
    activations: int | None


def bit_bars(rows: Sequence[BitRow], title: str, width: float = 560.0) -> str:
    """Draws the bits of every layer: its weights on the left, what it reads on the right.

    A full bar is 8 bits; float32 is a grey bar that says so.
    """
    row, top, gap = 24.0, 24.0, 18.0
    name_width = min(220.0, 10.0 + 7.2 * max(len(r.name) for r in rows))
    column = (width - name_width - gap) / 2
    starts = (name_width, name_width + column + gap)
    parts = [
        f'<text class="tick" x="{x:.1f}" y="14">bits per {what}</text>'
        for x, what in zip(starts, ("weight", "activation"), strict=True)
    ]
    for i, r in enumerate(rows):
        y = top + i * row
        parts.append(
            f'<text class="name" x="{name_width - 8:.1f}" y="{y + 15}" text-anchor="end">'
            f"{escape(r.name)}</text>"
        )
        for x, css, bits in ((starts[0], "kept", r.weights), (starts[1], "reads", r.activations)):
            parts += _bit_bar(x, y, column - _NUMBER_WIDTH, css, bits)
    return _svg(width, top + 4.0 + row * len(rows), title, parts)


_NUMBER_WIDTH = 34.0
_FULL_BITS = 8


def _bit_bar(x: float, y: float, width: float, css: str, bits: int | None) -> list[str]:
    whole = f'<rect class="whole" x="{x:.1f}" y="{y + 4}" rx="2" width="{width:.1f}" height="15"/>'
    if bits is None:
        return [whole, f'<text class="tick" x="{x + 6:.1f}" y="{y + 15.5}">float32</text>']
    length = width * bits / _FULL_BITS
    return [
        whole,
        f'<rect class="{css}" x="{x:.1f}" y="{y + 4}" rx="2" width="{length:.1f}" height="15"/>',
        f'<text class="tick" x="{x + width + 6:.1f}" y="{y + 15.5}">{bits:g}</text>',
    ]


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">\n'
        f"{body}\n</svg>"
    )

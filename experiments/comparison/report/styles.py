"""Styles of agents: the same colour, line and marker in every figure.

Colours are Okabe and Ito's, told apart by colour-blind readers too; where they run out, line and
marker change. The uniform plan is grey, as the ground that others stand on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from amc_compress.agents.registry import split_label

INK, SOFT, FAINT = "#1c2430", "#5d6979", "#e4e8ee"

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_LINES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0, ()),
    (0, (5, 1.6)),
    (0, (1.4, 1.2)),
    (0, (6, 1.5, 1.4, 1.5)),
    (0, (8, 2, 3, 2)),
)
_MARKERS = ("o", "s", "^", "D", "v")
_BASELINE = "uniform"
_LONGEST_LABEL = 26
_SEPARATORS = re.compile("[.:]")


@dataclass(frozen=True)
class Style:
    """Style of one agent.

    Args:
        colour: As ``#rrggbb``.
        line: matplotlib's line style: offset and dashes.
        marker: matplotlib's marker.
        label: The agent's label, shortened where it is long.
    """

    colour: str
    line: tuple[float, tuple[float, ...]]
    marker: str
    label: str


def agent_styles(agents: Iterable[str]) -> dict[str, Style]:
    """Returns the style of every agent.

    Args:
        agents: Their labels, in the order of the file.
    """
    agents = list(agents)
    labels = _short_labels(agents)
    styles = {}
    place = 0
    for agent in agents:
        if agent == _BASELINE:
            styles[agent] = Style(SOFT, _LINES[2], "X", agent)
            continue
        kind = place // len(_COLOURS) % len(_LINES)
        colour = _COLOURS[place % len(_COLOURS)]
        styles[agent] = Style(colour, _LINES[kind], _MARKERS[kind], labels[agent])
        place += 1
    return styles


def _short_labels(agents: list[str]) -> dict[str, str]:
    """Labels that fit next to a figure, still all different."""
    labels: dict[str, str] = {}
    for agent in agents:
        name, options = split_label(agent)
        telling = _SEPARATORS.split(name)[-1]  # of package.module:Class the class
        telling += f":{options}" if options else ""
        short = telling
        if len(telling) > _LONGEST_LABEL:
            short = telling[: _LONGEST_LABEL - 1] + "…"
        number = 2
        while short in labels.values():
            ending = f"… {number}"
            short = telling[: _LONGEST_LABEL - len(ending)] + ending
            number += 1
        labels[agent] = short
    return labels

"""Random layer graphs for property tests: widths mix several groups, constants and depthwise."""

from __future__ import annotations

import numpy as np

from amc_env.graph import ChannelGroup, ChannelParameters, LayerGraph, LayerSpec, Width
from amc_env.plan import Decision, keep_ratio_decision


def random_graph(
    seed: int, n_groups: int, largest: int, round_to: int
) -> tuple[LayerGraph, tuple[Decision, ...]]:
    """A graph whose axes are random sums of groups, with its decisions."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(n_groups)]
    groups = tuple(ChannelGroup(n, int(rng.integers(1, largest + 1)), (n,), ()) for n in names)

    def width() -> Width:
        chosen = rng.choice(
            n_groups, size=int(rng.integers(0, min(3, n_groups) + 1)), replace=False
        )
        terms = tuple((names[i], int(rng.integers(1, 4))) for i in chosen)
        return Width(int(rng.integers(0 if terms else 1, 4)), terms)

    layers = tuple(
        LayerSpec(
            f"layer{i}",
            "conv",
            width(),
            width(),
            (int(rng.choice([1, 3])),) * 2,
            (1, 1),
            positions=int(rng.integers(1, 50)),
            has_bias=bool(rng.integers(2)),
        )
        for i in range(int(rng.integers(1, 6)))
    )
    norms = (ChannelParameters("norm", width(), 2, 2),)
    decisions = tuple(keep_ratio_decision(g.name, g.size, round_to) for g in groups)
    return LayerGraph(layers, groups, norms), decisions

"""A compression problem with a formula for its accuracy: microseconds per plan, known optimum.

For trying agents: no network, no data. Widths form a plain chain of convolutions, so MACs are
bilinear in neighbouring decisions as in a real network; the accuracy is concave in each keep
ratio, with random sensitivities, and loses a little where neighbouring ratios differ.
"""

from __future__ import annotations

import numpy as np

from amc_env.env import CompressionEnv
from amc_env.graph import ChannelGroup, LayerGraph, LayerSpec, Width
from amc_env.plan import CompressionPlan, Decision, keep_ratio_decision

_IMAGE_SIDE = 32
_KERNEL = 3
_ORIGINAL_ACCURACY = 0.92


class SyntheticLearner:
    """A chain of ``n_layers`` 3 x 3 convolutions whose accuracy is a formula.

    ``accuracy = a0 * exp(-sum_i s_i (1 - r_i)^1.5 - c sum_i (r_i - r_{i+1})^2)`` with log-normal
    sensitivities ``s_i``.

    Args:
        n_layers: Number of decisions.
        seed: Draws widths and sensitivities.
        round_to: Grid of the kept channels.
        coupling: The ``c`` above.
    """

    def __init__(
        self, n_layers: int = 12, seed: int = 0, round_to: int = 4, coupling: float = 0.1
    ) -> None:
        if n_layers < 1:
            raise ValueError(f"Expected n_layers >= 1, got {n_layers}.")
        rng = np.random.default_rng(seed)
        widths = [int(w) for w in 16 * 2 ** rng.integers(0, 3, size=n_layers)]
        self._sensitivity = 0.15 * np.exp(0.9 * rng.standard_normal(n_layers))
        self._coupling = coupling
        self.graph = _chain(widths)
        self.decisions: tuple[Decision, ...] = tuple(
            keep_ratio_decision(group.name, group.size, round_to) for group in self.graph.groups
        )
        self.original_accuracy = _ORIGINAL_ACCURACY

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the accuracy of a complete plan by the class's formula."""
        ratio = np.array(plan.values_for(self.decisions))
        damage = float(self._sensitivity @ (1.0 - ratio) ** 1.5)
        damage += self._coupling * float(np.sum(np.diff(ratio) ** 2))
        return _ORIGINAL_ACCURACY * float(np.exp(-damage))


def _chain(widths: list[int]) -> LayerGraph:
    """conv0 -> conv1 -> ... -> classifier, one channel group per convolution."""
    names = [f"conv{i}" for i in range(len(widths))]
    layers, groups = [], []
    previous = Width(3)
    for i, (name, width) in enumerate(zip(names, widths, strict=True)):
        side = max(4, _IMAGE_SIDE >> (i // 4))
        output = Width(0, ((name, 1),))
        layers.append(
            LayerSpec(
                name, "conv", previous, output, (_KERNEL, _KERNEL), (1, 1), 1, side * side,
                input_size=(side, side),
            )
        )  # fmt: skip
        consumer = names[i + 1] if i + 1 < len(names) else "classifier"
        groups.append(ChannelGroup(name, width, (name,), (consumer,)))
        previous = output
    layers.append(LayerSpec("classifier", "linear", previous, Width(10), has_bias=True))
    return LayerGraph(tuple(layers), tuple(groups))


def make_synthetic(
    n_layers: int = 12,
    seed: int = 0,
    budget: str = "macs=0.5",
    action: str = "centred",
    reward: str = "accuracy",
    render_mode: str | None = None,
) -> CompressionEnv:
    """Builds the environment behind ``amc/synthetic-v0``."""
    return CompressionEnv(
        SyntheticLearner(n_layers, seed),
        budget,
        action=action,
        reward=reward,
        render_mode=render_mode,
    )

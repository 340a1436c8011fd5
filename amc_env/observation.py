"""The observation: one encoder, used at reset and at every step; one unit per feature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc_env.budget import Bounds, Budget, FeasibleSet, value_span
from amc_env.graph import LayerGraph, LayerSpec
from amc_env.plan import Decision, DecisionKind

FEATURES: tuple[tuple[str, str], ...] = (
    ("position", "decisions made / all decisions"),
    ("is_keep_ratio", "1 if the decision is a keep ratio"),
    ("is_density", "1 if the decision is a density"),
    ("is_weight_bits", "1 if the decision is a weight bit-width"),
    ("is_activation_bits", "1 if the decision is an activation bit-width"),
    ("is_linear", "1 if the layer is linear, 0 if it is a convolution"),
    ("in_channels", "weight.shape[1] / the largest of the network"),
    ("out_channels", "weight.shape[0] / the largest of the network"),
    ("input_size", "pixels of the input feature map / the largest of the network"),
    ("stride", "stride / the largest of the network"),
    ("kernel", "kernel side / the largest of the network"),
    ("tied_layers", "layers that the decision touches / the most of all decisions"),
    ("params_share", "weights of the touched layers / all weights"),
    ("macs_share", "MACs of the touched layers / all MACs"),
    ("reduced", "share of the scarcest cost already saved, with the rest kept whole"),
    ("undecided", "share of the scarcest cost that later decisions can still move"),
    ("previous", "the last executed value on its scale, 1 at the start"),
    ("interval_low", "smallest feasible value on its scale"),
    ("interval_high", "largest feasible value on its scale"),
    ("balanced", "the ratio that, given to all remaining decisions, spends what is left"),
    ("slack", "budget left of the scarcest cost if everything later is cut to its minimum"),
    ("budget", "upper bound of the scarcest cost"),
)
"""Name and meaning of every entry of the observation; all lie in [0, 1]."""

N_FEATURES = len(FEATURES)
_N_STATIC = 14

Observation = npt.NDArray[np.float32]


def _touched_layers(graph: LayerGraph, decision: Decision) -> list[LayerSpec]:
    """Layers whose cost the decision moves, producers first."""
    for group in graph.groups:
        if group.name == decision.target:
            names = dict.fromkeys([*group.producers, *group.consumers])
            by_name = {layer.name: layer for layer in graph.layers}
            return [by_name[name] for name in names if name in by_name]
    return [layer for layer in graph.layers if layer.name == decision.target]


def _static_rows(graph: LayerGraph, decisions: Sequence[Decision]) -> npt.NDArray[np.float64]:
    """Features that no decision changes, shape ``(n_decisions, 14)``, each divided by its top."""
    full = graph.full()
    total_macs = sum(layer.macs(full) for layer in graph.layers)
    total_weights = sum(layer.weights(full) for layer in graph.layers)
    rows = np.zeros((len(decisions), _N_STATIC))
    kinds = list(DecisionKind)
    for i, decision in enumerate(decisions):
        rows[i, 0] = i / len(decisions)
        rows[i, 1 + kinds.index(decision.kind)] = 1.0
        touched = _touched_layers(graph, decision)
        rows[i, 11] = len(touched)
        rows[i, 12] = sum(x.weights(full) for x in touched) / max(total_weights, 1.0)
        rows[i, 13] = sum(x.macs(full) for x in touched) / max(total_macs, 1.0)
        if touched:
            layer = touched[0]
            rows[i, 5:11] = (
                float(layer.kind == "linear"),
                layer.in_width.at(full),
                layer.out_width.at(full),
                math.prod(layer.input_size),
                max(layer.stride, default=0),
                max(layer.kernel, default=1),
            )
    for column in (6, 7, 8, 9, 10, 11):
        rows[:, column] /= max(rows[:, column].max(initial=0.0), 1.0)
    return rows


class ObservationEncoder:
    """Turns the state of an episode into a fresh vector in [0, 1].

    Args:
        graph: Facts about the network.
        decisions: All decisions in order.
        budget: The bounds shown to the agent.
        feasible: Answers questions about what is left.
    """

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        budget: Budget,
        feasible: FeasibleSet,
    ) -> None:
        self._static = _static_rows(graph, decisions)
        self._decisions = tuple(decisions)
        self._budget = budget
        self._feasible = feasible

    def encode(self, values: Sequence[float], interval: Bounds, balanced: float) -> Observation:
        """Returns the observation before the next decision, shape ``(22,)``, float32.

        Args:
            values: Executed values so far.
            interval: Feasible interval of the next decision.
            balanced: Its balanced ratio.
        """
        step = len(values)
        low, high, upper = self._scarcest(values)
        previous = 1.0
        if step:
            previous = _scaled(values[-1], value_span(self._decisions[step - 1]))
        span = value_span(self._decisions[step])
        dynamic = (
            1.0 - high,
            high - low,
            previous,
            _scaled(interval[0], span),
            _scaled(interval[1], span),
            balanced,
            upper - low,
            upper,
        )
        row = np.concatenate([self._static[step], dynamic])
        clipped: Observation = np.clip(row, 0.0, 1.0).astype(np.float32)
        return clipped

    def terminal(self) -> Observation:
        """Returns the observation after the last decision: all zeros."""
        return np.zeros(N_FEATURES, dtype=np.float32)

    def _scarcest(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Smallest ratio, largest ratio and upper bound of the cost with the least room."""
        corners = self._feasible.corner_ratios(values)

        def room(name: str) -> float:
            low, high = corners[name]
            return (self._budget.bounds[name][1] - low) / max(high - low, 1e-12)

        name = min(corners, key=room)
        return (*corners[name], self._budget.bounds[name][1])


def _scaled(value: float, span: Bounds) -> float:
    return (value - span[0]) / max(span[1] - span[0], 1e-12)

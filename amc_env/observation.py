"""The observation: one encoder, used at reset and at every step; one unit per feature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc_env.budgets.budget import Bounds, Budget, value_span
from amc_env.budgets.feasible import FeasibleSet
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
"""Name and meaning of the entries of every observation; all lie in [0, 1]."""

BIT_FEATURES: tuple[tuple[str, str], ...] = (
    ("previous_alike", "the last executed value of the same kind on its scale, 1 if there is none"),
    ("kept_inputs", "input channels of the layer after the decisions so far / all of them"),
    ("kept_outputs", "output channels of the layer after the decisions so far / all of them"),
    ("weight_bits", "weight bits decided for the layer on their scale, 1 if they are not decided"),
    ("room", "slack / undecided: the part of what can still move that the budget pays for"),
)
"""Further entries where bits, or densities and other kinds, are decided: the kinds interleave."""

DENSITY_FEATURES: tuple[tuple[str, str], ...] = (
    ("density", "density decided for the layer, 1 if it is not decided"),
)
"""Further entries where densities are decided together with other kinds."""

_N_STATIC = 14
_BITS = (DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS)

Observation = npt.NDArray[np.float32]


def features_for(decisions: Sequence[Decision]) -> tuple[tuple[str, str], ...]:
    """Returns name and meaning of every entry of the observation of a task."""
    kinds = {d.kind for d in decisions}
    beside_others = DecisionKind.DENSITY in kinds and len(kinds) > 1
    features = FEATURES
    if beside_others or kinds.intersection(_BITS):
        features += BIT_FEATURES
    return features + DENSITY_FEATURES if beside_others else features


def _touched_layers(graph: LayerGraph, decision: Decision) -> list[LayerSpec]:
    """Layers whose cost the decision moves, producers first."""
    for group in graph.groups:
        # A group may have the name of a layer, and all that its width touches is not made sparse.
        if group.name == decision.target and decision.kind is not DecisionKind.DENSITY:
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
        self._n_features = len(features_for(decisions))
        self._full = graph.full()
        self._layers = [_touched_layers(graph, d)[:1] for d in decisions]
        self._budget = budget
        self._feasible = feasible

    def encode(self, values: Sequence[float], interval: Bounds, balanced: float) -> Observation:
        """Returns the observation before the next decision, shape ``(n_features,)``, float32.

        Args:
            values: Executed values so far.
            interval: Feasible interval of the next decision.
            balanced: Its balanced ratio.
        """
        step = len(values)
        low, high, upper = self._scarcest(values)
        span = value_span(self._decisions[step])
        dynamic = (
            1.0 - high,
            high - low,
            self._scaled_value(values, step - 1),
            scaled(interval[0], span),
            scaled(interval[1], span),
            balanced,
            upper - low,
            upper,
        )
        row = [*self._static[step], *dynamic]
        if self._n_features > len(row):
            row += [*self._layer_so_far(values), (upper - low) / max(high - low, 1e-12)]
        if self._n_features > len(row):
            row.append(self._decided(values, DecisionKind.DENSITY))
        clipped: Observation = np.clip(np.array(row), 0.0, 1.0).astype(np.float32)
        return clipped

    def _scaled_value(self, values: Sequence[float], index: int | None) -> float:
        """An executed value on its scale, 1 if there is none."""
        if index is None or index < 0:
            return 1.0
        return scaled(values[index], value_span(self._decisions[index]))

    def _layer_so_far(self, values: Sequence[float]) -> tuple[float, float, float, float]:
        """The last decision of this kind, and what is decided about this layer."""
        step = len(values)
        decision, made = self._decisions[step], self._decisions[:step]
        alike = [i for i, d in enumerate(made) if d.kind is decision.kind]
        inputs = outputs = 1.0
        for layer in self._layers[step]:
            kept = self._full | {
                d.target: v * d.size
                for d, v in zip(made, values, strict=True)
                if d.kind is DecisionKind.KEEP_RATIO
            }
            inputs = layer.in_width.at(kept) / layer.in_width.at(self._full)
            outputs = layer.out_width.at(kept) / layer.out_width.at(self._full)
        return (
            self._scaled_value(values, alike[-1] if alike else None),
            inputs,
            outputs,
            self._decided(values, DecisionKind.WEIGHT_BITS),
        )

    def _decided(self, values: Sequence[float], kind: DecisionKind) -> float:
        """What is decided about the next decision's layer, on its scale; 1 if it is not."""
        target = self._decisions[len(values)].target
        made = self._decisions[: len(values)]
        found = [i for i, d in enumerate(made) if d.kind is kind and d.target == target]
        return self._scaled_value(values, found[-1] if found else None)

    def terminal(self) -> Observation:
        """Returns the observation after the last decision: all zeros."""
        return np.zeros(self._n_features, dtype=np.float32)

    def _scarcest(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Smallest ratio, largest ratio and upper bound of the cost with the least room."""
        corners = self._feasible.corner_ratios(values)

        def room(name: str) -> float:
            low, high = corners[name]
            return (self._budget.bounds[name][1] - low) / max(high - low, 1e-12)

        name = min(corners, key=room)
        return (*corners[name], self._budget.bounds[name][1])


def scaled(value: float, span: Bounds) -> float:
    """Returns where a value lies on its scale, in [0, 1]; 1 on a scale of one point."""
    if span[1] <= span[0]:
        return 1.0
    return (value - span[0]) / (span[1] - span[0])

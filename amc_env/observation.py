"""The observation: one encoder, used at reset and at every step; one unit per feature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc_env.budgets.budget import Bounds, Budget, value_span
from amc_env.budgets.feasible import FeasibleSet
from amc_env.graph import LayerGraph, LayerSpec, Width
from amc_env.kinds import USUAL_KINDS, DecisionKind, Quantity
from amc_env.plan import Decision

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

Observation = npt.NDArray[np.float32]


def features_for(decisions: Sequence[Decision]) -> tuple[tuple[str, str], ...]:
    """Returns name and meaning of every entry of the observation of a task."""
    kinds = {d.kind for d in decisions}
    features = FEATURES
    if len(kinds) > 1 or any(kind.interleaves for kind in kinds):
        features += BIT_FEATURES
    if len(kinds) > 1 and any(kind.quantity is Quantity.DENSITY for kind in kinds):
        features += DENSITY_FEATURES
    for kind in _further_kinds(decisions):
        features += ((f"is_{kind.name}", f"1 if the decision is {kind.meaning}"),)
        features += ((kind.name, kind.observed),) if kind.observed else ()
    return features


def _further_kinds(decisions: Sequence[Decision]) -> list[DecisionKind]:
    """The kinds that have no entry of their own in every observation, in order of appearance."""
    return [kind for kind in dict.fromkeys(d.kind for d in decisions) if kind not in USUAL_KINDS]


def _static_rows(graph: LayerGraph, decisions: Sequence[Decision]) -> npt.NDArray[np.float64]:
    """Features that no decision changes, shape ``(n_decisions, 14)``, each divided by its top."""
    full = graph.full()
    total_macs = sum(layer.macs(full) for layer in graph.layers)
    total_weights = sum(layer.weights(full) for layer in graph.layers)
    rows = np.zeros((len(decisions), _N_STATIC))
    for i, decision in enumerate(decisions):
        rows[i, 0] = i / len(decisions)
        if decision.kind in USUAL_KINDS:
            rows[i, 1 + USUAL_KINDS.index(decision.kind)] = 1.0
        touched = decision.kind.touched(graph, decision.target)
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


class _WidthSoFar:
    """A width after the decisions so far.

    Args:
        width: The width; None if there is no layer.
        sizes: Group name -> its units.
        decided: Group name -> the decision about it that is made by then, and its size.
    """

    def __init__(
        self,
        width: Width | None,
        sizes: Mapping[str, float],
        decided: Mapping[str, tuple[int, int]],
    ) -> None:
        self._width, self._decided = width, dict(decided)
        self._kept = {} if width is None else {name: sizes[name] for name, _ in width.terms}
        self._whole = 1.0 if width is None else width.at(sizes)

    def share(self, values: Sequence[float]) -> float:
        """Returns the width / the whole width."""
        if self._width is None or not self._decided:
            return 1.0
        kept = {n: values[index] * size for n, (index, size) in self._decided.items()}
        return self._width.at(self._kept | kept) / self._whole


@dataclass(frozen=True)
class _LayerSoFar:
    """What is decided about the next decision's layer; -1 stands for what is not.

    Args:
        alike: The last decision of the same kind.
        inputs, outputs: Widths.
        weight_bits: Decision about its weight bits.
        density: Decision about its density.
        further: Per further kind whether this decision is of it, and the decisions of it about
            the layer.
    """

    alike: int
    inputs: _WidthSoFar
    outputs: _WidthSoFar
    weight_bits: int
    density: int
    further: tuple[tuple[bool, DecisionKind, tuple[int, ...]], ...]


def _layers_so_far(graph: LayerGraph, decisions: Sequence[Decision]) -> list[_LayerSoFar]:
    """What every decision knows of its layer when it is made."""
    sizes, found = graph.full(), []
    last: dict[DecisionKind, int] = {}
    made: dict[tuple[str, Quantity], int] = {}
    further = _further_kinds(decisions)
    for i, decision in enumerate(decisions):
        inputs = outputs = _WidthSoFar(None, sizes, {})
        layers = decision.kind.touched(graph, decision.target)[:1]
        for layer in layers:
            inputs, outputs = (
                _WidthSoFar(width, sizes, _decided_groups(width, made, decisions))
                for width in (layer.in_width, layer.out_width)
            )
        found.append(
            _LayerSoFar(
                last.get(decision.kind, -1),
                inputs,
                outputs,
                made.get((decision.target, Quantity.WEIGHT_BITS), -1),
                made.get((decision.target, Quantity.DENSITY), -1),
                tuple(
                    (kind is decision.kind, kind, _about(layers, kind, graph, decisions[:i]))
                    for kind in further
                ),
            )
        )
        last[decision.kind] = made[decision.target, decision.kind.quantity] = i
    return found


def _about(
    layers: Sequence[LayerSpec], kind: DecisionKind, graph: LayerGraph, made: Sequence[Decision]
) -> tuple[int, ...]:
    """The decisions of a kind about a layer that are made."""
    names = {layer.name for layer in layers}
    return tuple(
        i
        for i, d in enumerate(made)
        if d.kind is kind and names.intersection(kind.layers(graph, d.target))
    )


def _decided_groups(
    width: Width, made: Mapping[tuple[str, Quantity], int], decisions: Sequence[Decision]
) -> dict[str, tuple[int, int]]:
    indices = {name: made.get((name, Quantity.WIDTH), -1) for name, _ in width.terms}
    return {name: (i, decisions[i].size) for name, i in indices.items() if i >= 0}


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
        features = features_for(decisions)
        static = np.zeros((len(decisions), len(features)))
        static[:, :_N_STATIC] = np.clip(_static_rows(graph, decisions), 0.0, 1.0)
        self._static: Observation = static.astype(np.float32)
        self._spans = [value_span(d) for d in decisions]
        self._uppers = {name: upper for name, (_, upper) in budget.bounds.items()}
        self._layers = _layers_so_far(graph, decisions) if len(features) > len(FEATURES) else []
        self._shows_bits = BIT_FEATURES[0] in features
        self._shows_density = DENSITY_FEATURES[0] in features
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
        span = self._spans[step]
        dynamic = [
            1.0 - high,
            high - low,
            self._scaled_value(values, step - 1),
            scaled(interval[0], span),
            scaled(interval[1], span),
            balanced,
            upper - low,
            upper,
        ]
        if self._layers:
            layer = self._layers[step]
            if self._shows_bits:
                dynamic += (
                    self._scaled_value(values, layer.alike),
                    layer.inputs.share(values),
                    layer.outputs.share(values),
                    self._scaled_value(values, layer.weight_bits),
                    (upper - low) / max(high - low, 1e-12),
                )
            if self._shows_density:
                dynamic.append(self._scaled_value(values, layer.density))
            for is_of_it, kind, made in layer.further:
                dynamic.append(float(is_of_it))
                if kind.observed:
                    dynamic.append(min([1.0, *(self._scaled_value(values, i) for i in made)]))
        observation: Observation = self._static[step].copy()
        observation[_N_STATIC:] = [x if 0.0 <= x <= 1.0 else min(max(x, 0.0), 1.0) for x in dynamic]
        return observation

    def _scaled_value(self, values: Sequence[float], index: int) -> float:
        """An executed value on its scale, 1 if there is none."""
        return 1.0 if index < 0 else scaled(values[index], self._spans[index])

    def terminal(self) -> Observation:
        """Returns the observation after the last decision: all zeros."""
        return np.zeros(self._static.shape[1], dtype=np.float32)

    def _scarcest(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Smallest ratio, largest ratio and upper bound of the cost with the least room."""
        corners = self._feasible.corner_ratios(values)

        if len(corners) == 1:
            ((name, (low, high)),) = corners.items()
            return low, high, self._uppers[name]

        def room(name: str) -> float:
            low, high = corners[name]
            return (self._uppers[name] - low) / max(high - low, 1e-12)

        name = min(corners, key=room)
        return (*corners[name], self._uppers[name])


def scaled(value: float, span: Bounds) -> float:
    """Returns where a value lies on its scale, in [0, 1]; 1 on a scale of one point."""
    if span[1] <= span[0]:
        return 1.0
    return (value - span[0]) / (span[1] - span[0])

"""The budget's and the observation's formulas as they read, with every cost asked of its model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amc_env import CompressionEnv
from amc_env.actions import Translation
from amc_env.budgets.budget import value_span
from amc_env.budgets.feasible import FeasibleSet
from amc_env.observation import (
    Observation,
    _static_rows,
    features_for,
    scaled,
)
from amc_env.plan import DecisionKind


class SlowFeasibleSet(FeasibleSet):
    """Asks the cost models for everything."""

    def _follow(self, sums):
        return None

    def balanced(self, prefix: Sequence[float]) -> float:
        rest = slice(len(prefix), None)
        values = np.concatenate([np.asarray(prefix, dtype=float), self._lowest[rest]])
        spans = np.array([value_span(d) for d in self._decisions[rest]])

        def fits(ratio: float) -> bool:
            requested = spans[:, 0] + ratio * (spans[:, 1] - spans[:, 0])
            values[rest] = np.clip(requested, self._lowest[rest], self._highest[rest])
            return all(self.ratio(n, values) <= hi for n, (_, hi) in self.budget.bounds.items())

        if fits(1.0):
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


class SlowEncoder:
    """Encodes by looking everything up."""

    def __init__(self, env: CompressionEnv, feasible: FeasibleSet) -> None:
        self.graph, self.decisions, self.budget = env.graph, env.decisions, env.budget
        self.feasible = feasible
        self.static = _static_rows(env.graph, env.decisions)
        self.names = [name for name, _ in features_for(env.decisions)]

    def encode(self, values, interval, balanced) -> Observation:
        step = len(values)
        decision = self.decisions[step]
        span = value_span(decision)
        corners = self.feasible.corner_ratios(values)

        def room(name: str) -> float:
            low, high = corners[name]
            return (self.budget.bounds[name][1] - low) / max(high - low, 1e-12)

        scarcest = min(corners, key=room)
        (low, high), upper = corners[scarcest], self.budget.bounds[scarcest][1]
        row = [*self.static[step], 1.0 - high, high - low]
        row.append(self._last(values, lambda d: True))
        row += [scaled(interval[0], span), scaled(interval[1], span), balanced]
        row += [upper - low, upper]
        if "room" in self.names:
            row.append(self._last(values, lambda d: d.kind is decision.kind))
            row += self._widths(values)
            row.append(self._about_layer(values, DecisionKind.WEIGHT_BITS))
            row.append((upper - low) / max(high - low, 1e-12))
        if "density" in self.names:
            row.append(self._about_layer(values, DecisionKind.DENSITY))
        if "depth" in self.names:
            row.append(float(decision.kind is DecisionKind.DEPTH))
            row.append(self._is_there(values))
        return np.clip(np.array(row), 0.0, 1.0).astype(np.float32)

    def terminal(self) -> Observation:
        return np.zeros(len(self.names), dtype=np.float32)

    def _last(self, values, is_meant) -> float:
        made = list(zip(self.decisions, values, strict=False))
        found = [scaled(v, value_span(d)) for d, v in made if is_meant(d)]
        return found[-1] if found else 1.0

    def _about_layer(self, values, kind) -> float:
        target = self.decisions[len(values)].target
        return self._last(values, lambda d: d.kind is kind and d.target == target)

    def _is_there(self, values) -> float:
        decision = self.decisions[len(values)]
        layers = decision.kind.touched(self.graph, decision.target)[:1]
        out = {
            d.target
            for d, v in zip(self.decisions, values, strict=False)
            if d.kind is DecisionKind.DEPTH and v == 0.0
        }
        around = {b.name for b in self.graph.branches for x in layers if x.name in b.layers}
        return float(not out & around)

    def _widths(self, values) -> list[float]:
        full = self.graph.full()
        kept = full | {
            d.target: v * d.size
            for d, v in zip(self.decisions, values, strict=False)
            if d.kind is DecisionKind.KEEP_RATIO
        }
        decision = self.decisions[len(values)]
        for layer in decision.kind.touched(self.graph, decision.target)[:1]:
            widths = (layer.in_width, layer.out_width)
            return [width.at(kept) / width.at(full) for width in widths]
        return [1.0, 1.0]


class SlowEnv(CompressionEnv):
    """The same environment by the formulas above."""

    def set_budget(self, budget) -> None:
        super().set_budget(budget)
        self._feasible = SlowFeasibleSet(self.budget, self.costs, self.decisions)
        self._encoder = SlowEncoder(self, self._feasible)  # type: ignore[assignment]
        self._translation = Translation(self._action_mapping, self._feasible, self.decisions)

    def _cost_of(self, values: Sequence[float]) -> dict[str, float]:
        return {name: model(values) for name, model in self.costs.items()}

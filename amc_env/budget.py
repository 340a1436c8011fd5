"""Budgets, and the exact set of values from which a budget can still be met.

``lower <= cost(plan) / cost(original) <= upper`` for one or several costs at once.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from amc_env.completion import CompletionSearch
from amc_env.cost import CostModel, original_cost
from amc_env.errors import InfeasibleBudgetError
from amc_env.plan import Decision, DecisionKind

Bounds = tuple[float, float]

DEFAULT_COST = "macs"
"""What a number alone bounds: ``budget=0.5`` is ``macs=0.5``."""

_BISECTIONS = 30
_MAX_REMEMBERED = 20_000


class Budget:
    """Bounds on cost ratios.

    Args:
        bounds: Cost name -> upper bound, or ``(lower, upper)``, as ratios of the original's cost.

    Example:
        >>> Budget(macs=0.5, bytes=(0.2, 0.3))
        Budget(macs=0.5, bytes=(0.2, 0.3))

    Raises:
        ValueError: If no bound is given or a bound lies outside ``0 <= lower <= upper <= 1``.
    """

    def __init__(self, **bounds: float | Sequence[float]) -> None:
        if not bounds:
            raise ValueError("Expected at least one bound, e.g. Budget(macs=0.5).")
        self.bounds: dict[str, Bounds] = {}
        for name, bound in bounds.items():
            lower, upper = _pair(name, bound)
            if not (0.0 <= lower <= upper <= 1.0 and upper > 0.0):
                raise ValueError(
                    f"Expected 0 <= lower <= upper <= 1 and upper > 0 for the budget of {name}, "
                    f"got {lower!r}:{upper!r}; a ratio of 0.5 means half of the original's cost."
                )
            self.bounds[name] = (lower, upper)

    @classmethod
    def of(cls, budget: BudgetLike) -> Budget:
        """Reads a budget in any form, all of which but the first are plain JSON.

        Args:
            budget: A budget; a text as :meth:`parse` takes it; a number, which bounds the MACs
                (``0.5`` is ``"macs=0.5"``); or cost name -> number, ``[lower, upper]`` or text,
                as in ``{"macs": [0.45, 0.5], "mean_bits": "4/32"}``.

        Raises:
            ValueError: If it has another form.
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str):
            return cls.parse(budget)
        if isinstance(budget, Real) and not isinstance(budget, bool):
            return cls(**{DEFAULT_COST: float(budget)})
        if isinstance(budget, Mapping) and all(isinstance(name, str) for name in budget):
            return cls(
                **{
                    name: _numbers(value, name) if isinstance(value, str) else value
                    for name, value in budget.items()
                }
            )
        raise ValueError(
            f"Expected a budget as 'macs=0.5', 0.5 (of the {DEFAULT_COST}) or "
            f"{{'macs': [0.45, 0.5], 'bytes': 0.3}}, got {budget!r}."
        )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads ``"macs=0.5,bytes=0.2:0.3"``; a number may be a fraction, ``"mean_bits=4/32"``.

        A number alone bounds the MACs: ``"0.5"`` is ``"macs=0.5"``.

        Raises:
            ValueError: If the text has another form.
        """
        if "=" not in text and text.strip():
            text = f"{DEFAULT_COST}={text}"
        bounds: dict[str, float | Sequence[float]] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                numbers = [_number(x) for x in value.split(":")]
            except (ValueError, ZeroDivisionError):
                numbers = []
            if not name.strip() or len(numbers) not in (1, 2) or name.strip() in bounds:
                raise ValueError(
                    f"Expected a budget like 'macs=0.5', 'macs=0.45:0.5,bytes=0.3' or "
                    f"'mean_bits=4/32', got {text!r}."
                )
            bounds[name.strip()] = numbers[0] if len(numbers) == 1 else numbers
        return cls(**bounds)

    def __repr__(self) -> str:
        """Returns the expression that builds this budget."""
        inner = ", ".join(
            f"{n}={hi!r}" if lo == 0.0 else f"{n}=({lo!r}, {hi!r})"
            for n, (lo, hi) in self.bounds.items()
        )
        return f"Budget({inner})"

    def __str__(self) -> str:
        """Returns the text that :meth:`parse` reads; equal budgets have equal texts."""
        return ",".join(
            f"{n}={hi!r}" if lo == 0.0 else f"{n}={lo!r}:{hi!r}"
            for n, (lo, hi) in sorted(self.bounds.items())
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self.bounds == other.bounds

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.bounds.items())))

    def is_met(self, cost_ratio: Mapping[str, float]) -> bool:
        """Whether every bounded ratio lies within its bounds."""
        return all(lo <= cost_ratio[name] <= hi for name, (lo, hi) in self.bounds.items())


BudgetLike = Budget | str | float | Mapping[str, Any]
"""What :meth:`Budget.of` reads."""


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _pair(name: str, bound: Any) -> Bounds:
    """Lower and upper bound, of a number or of two."""
    pair = bound if isinstance(bound, Sequence) and not isinstance(bound, str) else (0.0, bound)
    if len(pair) != 2 or not all(map(_is_number, pair)):
        raise ValueError(
            f"Expected a number or [lower, upper] for the budget of {name}, got {bound!r}."
        )
    return float(pair[0]), float(pair[1])


def _numbers(text: str, name: str) -> Bounds:
    """Reads ``"0.5"``, ``"4/32"`` or ``"0.45:0.5"``."""
    return Budget.parse(f"{name}={text}").bounds[name.strip()]


def _number(text: str) -> float:
    """Reads ``"0.5"`` or ``"4/32"``."""
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(text)


def value_span(decision: Decision) -> Bounds:
    """Returns the scale that a reading in [0, 1] refers to: ratios are their own scale."""
    if decision.kind in (DecisionKind.KEEP_RATIO, DecisionKind.DENSITY):
        return (0.0, 1.0)
    return (decision.choices[0], decision.choices[-1])


class FeasibleSet:
    """Answers what the current decision may be so that the budget can still be met.

    Args:
        budget: The bounds.
        costs: Cost name -> model; every bounded cost must be there.
        decisions: All decisions in the order they are made.

    Raises:
        InfeasibleBudgetError: If no plan on the grid meets the budget; the message names the
            reachable range.
        ValueError: If a bounded cost has no model.
    """

    def __init__(
        self, budget: Budget, costs: Mapping[str, CostModel], decisions: Sequence[Decision]
    ) -> None:
        if missing := sorted(budget.bounds.keys() - costs.keys()):
            raise ValueError(f"No cost model for {missing}; available: {sorted(costs)}.")
        self.budget = budget
        self._decisions = tuple(decisions)
        self._lowest = np.array([d.choices[0] for d in decisions])
        self._highest = np.array([d.choices[-1] for d in decisions])
        self._costs = {name: costs[name] for name in budget.bounds}
        self._original = {n: original_cost(c, self._decisions) for n, c in self._costs.items()}
        self._search = CompletionSearch(budget.bounds, self._decisions, self.ratio)
        self._completions: dict[tuple[float, ...], tuple[float, ...] | None] = {}
        if not self._can_complete(()):
            raise InfeasibleBudgetError(self._explain())

    def ratio(self, name: str, values: np.ndarray) -> float:
        """Returns cost / original cost of a complete vector of values."""
        return self._costs[name](values) / self._original[name]

    def is_met(self, values: Sequence[float]) -> bool:
        """Whether a complete vector of values meets every bound; other costs are not asked."""
        v = np.asarray(values, dtype=np.float64)
        return all(
            lower <= self.ratio(n, v) <= upper for n, (lower, upper) in self.budget.bounds.items()
        )

    def _explain(self) -> str:
        ranges = ", ".join(
            f"{name} {self.ratio(name, self._lowest):.4f} to {self.ratio(name, self._highest):.4f}"
            for name in self._costs
        )
        unmet = "".join(
            f" Even the largest plan has less {name} than the lower bound {lower}."
            for name, (lower, _) in self.budget.bounds.items()
            if self.ratio(name, self._highest) < lower
        )
        return f"No plan meets {self.budget!r}; reachable on this grid: {ranges}.{unmet} " + (
            self._explain_fixed()
            or "Relax the budget, widen its lower-to-upper window, or use a finer or wider grid "
            "(round_to, min_ratio, bits)."
        )

    def _explain_fixed(self) -> str:
        """Names the bounded costs that are the same for all plans and break their bound."""
        fixed = [
            name
            for name, (lower, upper) in self.budget.bounds.items()
            if self.ratio(name, self._lowest) == self.ratio(name, self._highest)
            and not lower <= self.ratio(name, self._lowest) <= upper
        ]
        if not fixed:
            return ""
        if all(len(d.choices) == 1 for d in self._decisions):
            return (
                "Every decision has only one value on this grid: offer more of them (round_to: "
                "kept channels come in multiples of it; min_ratio, bits)."
            )
        return (
            f"No decision changes {' or '.join(fixed)}, so no plan can meet that bound: leave it "
            f"out, bound a cost that the decisions change, or decide something else as well "
            f"(bits change bytes and bops, channels macs; a table of latencies tells only the "
            f"precisions apart that it has)."
        )

    def interval(self, prefix: Sequence[float]) -> Bounds:
        """Returns the smallest and largest feasible value of the next decision.

        Args:
            prefix: Values already chosen, in decision order.
        """
        choices = self._candidates(prefix)
        known = self._known(prefix)
        low = self._first([c for c in choices if c <= known], prefix)
        high = self._first([c for c in reversed(choices) if c >= known], prefix)
        return (low, high)

    def nearest(self, prefix: Sequence[float], wish: float) -> float:
        """Returns the feasible choice nearest to ``wish``; of two equally near ones the larger."""
        choices = self._candidates(prefix)
        for choice in sorted(choices, key=lambda c: (abs(c - wish), -c)):
            if self._can_complete((*prefix, choice)):
                return choice
            if (*prefix, choice) in self._search.given_up:
                low, high = self.interval(prefix)
                inside = [c for c in choices if low <= c <= high]
                known = self._known(prefix)
                if choice <= known:
                    return self._first([c for c in inside if choice <= c <= known], prefix)
                return self._first([c for c in reversed(inside) if known <= c <= choice], prefix)
        raise AssertionError("the prefix itself was chosen feasible")

    def _known(self, prefix: Sequence[float]) -> float:
        """The next value of the plan by which the prefix is known to be feasible."""
        found = self._completion(tuple(prefix))
        assert found is not None, "the prefix itself was chosen feasible"
        return found[len(prefix)]

    def _first(self, choices: Sequence[float], prefix: Sequence[float]) -> float:
        """The first feasible one; the last one is known to be.

        Once a search has been given up the answer cannot be exact, and bisection takes the place
        of asking one choice after the other.
        """
        start, end = 0, len(choices) - 1
        while start < end:
            middle = start
            if any((*prefix, choice) in self._search.given_up for choice in choices[:start]):
                middle = (start + end) // 2
            if self._can_complete((*prefix, choices[middle])):
                end = middle
            else:
                start = middle + 1
        return choices[end]

    def _candidates(self, prefix: Sequence[float]) -> tuple[float, ...]:
        """The choices that pass the necessary conditions, found by bisection.

        Costs are monotone, so "too expensive even with the rest at its smallest" and "too cheap
        even with the rest at its largest" each cut off one end of the grid.
        """
        choices = self._decisions[len(prefix)].choices
        bounds = self.budget.bounds

        n = len(prefix)
        low, high = self._lowest.copy(), self._highest.copy()
        low[:n] = high[:n] = prefix

        def too_dear(choice: float) -> bool:
            low[n] = choice
            return any(self.ratio(name, low) > upper for name, (_, upper) in bounds.items())

        def too_cheap(choice: float) -> bool:
            high[n] = choice
            return any(
                lower > 0.0 and self.ratio(name, high) < lower
                for name, (lower, _) in bounds.items()
            )

        last = bisect.bisect_left(choices, True, key=too_dear)
        first = bisect.bisect_left(choices, True, key=lambda c: not too_cheap(c))
        return choices[first:last]

    def balanced(self, prefix: Sequence[float]) -> float:
        """Returns the ratio that, given to every remaining decision, spends exactly what is left.

        It is the largest ``r`` in [0, 1] for which no upper bound is broken when every remaining
        decision takes ``r`` of its span, off the grid but within its smallest and largest choice.
        """
        rest = slice(len(prefix), None)
        values = np.concatenate([np.asarray(prefix, dtype=float), self._lowest[rest]])
        spans = np.array([value_span(d) for d in self._decisions[rest]])

        def fits(ratio: float) -> bool:
            wished = spans[:, 0] + ratio * (spans[:, 1] - spans[:, 0])
            values[rest] = np.clip(wished, self._lowest[rest], self._highest[rest])
            return all(self.ratio(n, values) <= hi for n, (_, hi) in self.budget.bounds.items())

        if fits(1.0):
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def corner_ratios(self, prefix: Sequence[float]) -> dict[str, Bounds]:
        """Returns per bounded cost the ratio with the rest at its smallest and at its largest."""
        n = len(prefix)
        low, high = self._lowest.copy(), self._highest.copy()
        low[:n] = high[:n] = prefix
        return {name: (self.ratio(name, low), self.ratio(name, high)) for name in self._costs}

    def _can_complete(self, prefix: Sequence[float]) -> bool:
        """Does any completion of ``prefix`` meet every bound?"""
        return self._completion(tuple(prefix)) is not None

    def _completion(self, prefix: tuple[float, ...]) -> tuple[float, ...] | None:
        """Returns a plan that begins with ``prefix`` and meets every bound, None if there is none.

        A value that the shorter prefix's completion takes is feasible without a search, so what
        was chosen feasible stays so even if a later search hits its limit.
        """
        if prefix in self._completions:
            return self._completions[prefix]
        found = self._completion(prefix[:-1]) if prefix else None
        if (prefix and found is not None and found[len(prefix) - 1] != prefix[-1]) or not prefix:
            found = self._search.find(prefix, found)
        if len(self._completions) >= _MAX_REMEMBERED:
            way = [prefix[:n] for n in range(len(prefix)) if prefix[:n] in self._completions]
            self._completions = {p: self._completions[p] for p in way}
        self._completions[prefix] = found
        return found

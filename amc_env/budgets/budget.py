"""Budgets: which costs a plan may have.

``lower <= cost(plan) / cost(original) <= upper`` for one or several costs at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from amc_env.errors import ArgumentError
from amc_env.plan import Decision, DecisionKind
from amc_env.validation.checks import matches, shown

Bounds = tuple[float, float]

DEFAULT_COST = "macs"
"""What a number alone bounds: ``budget=0.5`` is ``macs=0.5``."""


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
        if not isinstance(text, str):
            raise ArgumentError(f"Expected a budget as text, like 'macs=0.5', got {shown(text)}.")
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


def _pair(name: str, bound: Any) -> Bounds:
    """Lower and upper bound, of a number or of two; they need not lie in range yet."""
    is_pair = isinstance(bound, Sequence | np.ndarray) and not isinstance(bound, str | bytes)
    ends: list[Any] = [*bound] if is_pair else [0.0, bound]
    if len(ends) != 2 or not all(matches(end, float) for end in ends):
        raise ArgumentError(
            f"Expected a number or [lower, upper] with 0 <= lower <= upper <= 1 for the budget of "
            f"{name}, got {shown(bound)}."
        )
    return float(ends[0]), float(ends[1])


def _numbers(text: str, name: str) -> Bounds:
    """Reads ``"0.5"``, ``"4/32"`` or ``"0.45:0.5"``."""
    return Budget.parse(f"{name}={text}").bounds[name.strip()]


def _number(text: str) -> float:
    """Reads ``"0.5"`` or ``"4/32"``."""
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(text)


def value_span(decision: Decision) -> Bounds:
    """Returns the scale that an action in [0, 1] refers to: ratios are their own scale."""
    if decision.kind in (DecisionKind.KEEP_RATIO, DecisionKind.DENSITY):
        return (0.0, 1.0)
    return (decision.choices[0], decision.choices[-1])

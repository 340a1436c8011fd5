"""Budgets: which costs a plan may have.

``lower <= cost(plan) / cost(original) <= upper`` for one or several costs at once; absolute limits
(``bytes<=100kB``) become such shares once the original's costs are known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from amc_env.budgets.limits import Limit
from amc_env.errors import ArgumentError, InfeasibleBudgetError
from amc_env.plan import Decision
from amc_env.validation.checks import matches, shown

Bounds = tuple[float, float]

DEFAULT_COST = "macs"
"""What a number alone bounds: ``budget=0.5`` is ``macs=0.5``."""


Limits = tuple[Limit | None, Limit | None]
"""Lower and upper absolute limit of a cost."""

_PART = re.compile(r"\s*([^<>=]*?)\s*(<=|>=|=)(.*)")
_FORMS = "'macs=0.5', 'macs=0.45:0.5,bytes=0.3', 'mean_bits=4/32' or 'bytes<=100kB'"
_BELOW_ONE = ("mean_bits", "density")  # costs of which a limit may be less than 1 without a unit


class Budget:
    """Bounds on costs: shares of the original's, and absolute limits.

    Args:
        bounds: Cost name -> upper bound, or ``(lower, upper)``, as ratios of the original's cost;
            or a text as behind the ``=`` of :meth:`parse`: ``"4/32"``, ``"100kB"``, ``"<=2ms"``.

    Attributes:
        bounds: Cost name -> lower and upper ratio.
        limits: Cost name -> lower and upper absolute limit, either None. :meth:`resolved` makes
            ratios of them.

    Example:
        >>> Budget(macs=0.5, bytes=(0.2, 0.3))
        Budget(macs=0.5, bytes=(0.2, 0.3))
        >>> Budget(macs=0.5, bytes="100kB")
        Budget(macs=0.5, bytes='<=100kB')

    Raises:
        ValueError: If no bound is given, a ratio lies outside ``0 <= lower <= upper <= 1``, or a
            limit is no positive number with a unit.
    """

    def __init__(self, **bounds: float | Sequence[float] | str) -> None:
        if not bounds:
            raise ValueError("Expected at least one bound, e.g. Budget(macs=0.5).")
        self.bounds: dict[str, Bounds] = {}
        self.limits: dict[str, Limits] = {}
        for name, bound in bounds.items():
            if isinstance(bound, str):
                self._read(bound, [(name, part) for part in bound.split(",")])
            else:
                self._bound(name, _pair(name, bound))

    def _read(self, text: str, parts: Sequence[tuple[str, str]]) -> None:
        """Enters ratios and limits.

        Args:
            text: All that was given, for messages.
            parts: Names of costs, with ``"0.5"``, ``"0.4:0.5"``, ``"<=2ms"`` and so on.

        Raises:
            ValueError: If one has another form, or a cost has such a bound already.
        """
        for name, part in parts:
            if (ratios := _ratios(part)) is not None:
                if name in self.bounds:
                    raise ValueError(
                        f"Expected a budget like {_FORMS}, got {name} twice in {text!r}."
                    )
                self._bound(name, ratios)
            elif (limits := _limits(name, part)) is not None:
                self._limit(name, limits)
            else:
                raise ValueError(f"Expected a budget like {_FORMS}, got {text!r}.")

    def _bound(self, name: str, ratios: Bounds) -> None:
        lower, upper = ratios
        if not (0.0 <= lower <= upper <= 1.0 and upper > 0.0):
            raise ValueError(
                f"Expected 0 <= lower <= upper <= 1 and upper > 0 for the budget of {name}, "
                f"got {lower!r}:{upper!r}; a ratio of 0.5 means half of the original's cost, and "
                f"an absolute limit is written with its unit or {name}<=NUMBER."
            )
        self.bounds[name] = ratios

    def _limit(self, name: str, limits: Limits) -> None:
        before = self.limits.get(name, (None, None))
        if any(
            old is not None and new is not None for old, new in zip(before, limits, strict=True)
        ):
            raise ValueError(f"Expected one limit of {name} on each side, got two.")
        lower, upper = (new or old for old, new in zip(before, limits, strict=True))
        self.limits[name] = (lower, upper)

    @classmethod
    def of(cls, budget: BudgetLike) -> Budget:
        """Reads a budget in any form, all of which but the first are plain JSON.

        Args:
            budget: A budget; a text as :meth:`parse` takes it; a number, which bounds the MACs
                (``0.5`` is ``"macs=0.5"``); or cost name -> number, ``[lower, upper]`` or text,
                as in ``{"macs": [0.45, 0.5], "mean_bits": "4/32", "bytes": "100kB"}``.

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
            return cls(**budget)
        raise ValueError(
            f"Expected a budget as 'macs=0.5', 0.5 (of the {DEFAULT_COST}) or "
            f"{{'macs': [0.45, 0.5], 'bytes': 0.3}}, got {budget!r}."
        )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads ``"macs=0.5,bytes=0.2:0.3"``; a number may be a fraction, ``"mean_bits=4/32"``.

        A number alone bounds the MACs: ``"0.5"`` is ``"macs=0.5"``. Absolute limits have a unit,
        or ``<=`` or ``>=``: ``"bytes<=100kB,latency=2ms,macs=20M"``. A cost may have a share and a
        limit, and both hold.

        Raises:
            ValueError: If the text has another form.
        """
        if not isinstance(text, str):
            raise ArgumentError(f"Expected a budget as text, like 'macs=0.5', got {shown(text)}.")
        whole = text
        if "=" not in text and text.strip():
            text = f"{DEFAULT_COST}={text}"
        parts = []
        for part in text.split(","):
            match = _PART.fullmatch(part)
            if match is None or not match[1]:
                raise ValueError(f"Expected a budget like {_FORMS}, got {whole!r}.")
            parts.append((match[1], match[3] if match[2] == "=" else match[2] + match[3]))
        budget = cls.__new__(cls)
        budget.bounds, budget.limits = {}, {}
        budget._read(whole, parts)
        return budget

    @property
    def names(self) -> list[str]:
        """The costs that have a bound or a limit."""
        return list(dict.fromkeys((*self.bounds, *self.limits)))

    def resolved(self, original: Mapping[str, float], units: Mapping[str, str]) -> Budget:
        """Returns the budget with its limits as shares of the original's costs.

        A limit above what the original costs is a share of 1. ``cost <= limit`` and
        ``cost / original <= limit / original`` are the same for costs that are whole numbers.

        Args:
            original: Cost name -> cost of the original network.
            units: Cost name -> unit of the cost, see ``CostModel.unit``.

        Raises:
            InfeasibleBudgetError: If the original costs less than a lower limit, or a limit and a
                share of one cost exclude each other.
            ValueError: If a limit is in another unit than its cost, or there is no such cost.
        """
        if not self.limits:
            return self
        if missing := sorted(self.limits.keys() - original.keys()):
            raise ValueError(f"No cost model for {missing}; available: {sorted(original)}.")
        bounds = {name: self.bounds.get(name, (0.0, 1.0)) for name in self.names}
        for name, ends in self.limits.items():
            shares = [
                None if end is None else end.within(name, units[name]) / original[name]
                for end in ends
            ]
            lower = max(bounds[name][0], shares[0] or 0.0)
            upper = min(bounds[name][1], 1.0 if shares[1] is None else shares[1])
            if lower > upper:
                raise InfeasibleBudgetError(
                    f"No plan meets {self}: the original has {original[name]:.6g}{units[name]} of "
                    f"{name}, so that at least {lower:.4g} and at most {upper:.4g} of it are asked "
                    f"for."
                )
            bounds[name] = (lower, upper)
        return Budget(**bounds)

    def above(self, floors: Mapping[str, float]) -> Budget:
        """Returns the budget with further lower bounds.

        Args:
            floors: Cost name -> smallest ratio.

        Raises:
            InfeasibleBudgetError: If an upper bound is below one of them.
        """
        bounds = dict(self.bounds)
        for name, floor in floors.items():
            lower, upper = bounds.get(name, (0.0, 1.0))
            if upper < floor:
                raise InfeasibleBudgetError(
                    f"No plan meets {self}: every plan has at least {floor:.4g} of {name}."
                )
            bounds[name] = (max(lower, floor), upper)
        return Budget(**bounds) if floors else self

    def __repr__(self) -> str:
        """Returns the expression that builds this budget."""
        inner = []
        for name in self.names:
            texts = _limit_texts(*self.limits.get(name, (None, None)))
            lower, upper = self.bounds.get(name, (0.0, 1.0))
            if not texts:
                inner.append(
                    f"{name}={upper!r}" if lower == 0.0 else f"{name}=({lower!r}, {upper!r})"
                )
                continue
            if name in self.bounds:
                texts.insert(0, _ratio_text(lower, upper))
            inner.append(f"{name}={','.join(texts)!r}")
        return f"Budget({', '.join(inner)})"

    def __str__(self) -> str:
        """Returns the text that :meth:`parse` reads; equal budgets have equal texts."""
        texts = [f"{name}={_ratio_text(*ratios)}" for name, ratios in self.bounds.items()]
        for name, limits in self.limits.items():
            texts += [name + text for text in _limit_texts(*limits)]
        return ",".join(sorted(texts))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Budget)
            and self.bounds == other.bounds
            and self.limits == other.limits
        )

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.bounds.items())), str(self)))

    def is_met(self, cost_ratio: Mapping[str, float]) -> bool:
        """Whether every bounded ratio lies within its bounds; limits must be resolved.

        Raises:
            ValueError: If there are limits.
        """
        if self.limits:
            raise ValueError(f"Expected a budget of shares, got {self}; env.budget has them.")
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


def _ratios(text: str) -> Bounds | None:
    """Reads ``"0.5"``, ``"4/32"`` or ``"0.45:0.5"``; None for anything else."""
    try:
        numbers = [_number(x) for x in text.split(":")]
    except (ValueError, ZeroDivisionError):
        return None
    return None if len(numbers) > 2 else (0.0 if len(numbers) == 1 else numbers[0], numbers[-1])


def _limits(name: str, text: str) -> Limits | None:
    """Reads ``"<=100kB"``, ``">=50kB"``, ``"100kB"`` or ``"50kB:100kB"``; None for anything else.

    Raises:
        ValueError: If a limit is a share.
    """
    text = text.strip()
    sign = text[:2] if text[:2] in ("<=", ">=") else ""
    try:
        ends = [Limit.parse(end) for end in text.removeprefix(sign).split(":")]
    except ValueError:
        return None
    if len(ends) > (1 if sign else 2):
        return None
    for end in ends:
        if end.is_plain and end.value < 1 and name not in _BELOW_ONE:
            raise ValueError(
                f"Expected an absolute limit of {name} with its unit, e.g. 20M, 100kB or 0.5ms, "
                f"got {end}; a share of the original's is written {name}={end}."
            )
    if sign == ">=":
        return ends[0], None
    return (None if len(ends) == 1 else ends[0]), ends[-1]


def _limit_texts(lower: Limit | None, upper: Limit | None) -> list[str]:
    ends = (("<=", upper), (">=", lower))
    return [f"{sign}{limit}" for sign, limit in ends if limit is not None]


def _ratio_text(lower: float, upper: float) -> str:
    return f"{upper!r}" if lower == 0.0 else f"{lower!r}:{upper!r}"


def _number(text: str) -> float:
    """Reads ``"0.5"`` or ``"4/32"``."""
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(text)


def value_span(decision: Decision) -> Bounds:
    """Returns the scale that an action in [0, 1] refers to: ratios are their own scale."""
    return decision.kind.span(decision.choices)

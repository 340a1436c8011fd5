"""The exact set of values from which a budget can still be met."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from amc_env.budgets.balance import UNKNOWN, Doubt, bisected
from amc_env.budgets.budget import Bounds, Budget, value_span
from amc_env.budgets.completion import CompletionSearch
from amc_env.budgets.followed import Followed, Windows, nearest_of
from amc_env.budgets.reasons import reasons
from amc_env.budgets.together import ManyPlans, Request
from amc_env.budgets.walk import MOST_NUMBERS
from amc_env.budgets.window_table import WindowTable
from amc_env.costs.cost_model import CostFunction
from amc_env.costs.entered_cost import EnteredCost, entered, original_costs
from amc_env.costs.products import CostSums
from amc_env.errors import InfeasibleBudgetError
from amc_env.graph import LayerGraph
from amc_env.plan import Decision
from amc_env.validation.checks import checked

_MAX_REMEMBERED = 20_000


class Outlook(NamedTuple):
    """What is left to a decision.

    Args:
        interval: Smallest and largest feasible value.
        balanced: The ratio that, given to every remaining decision, spends what is left.
        choices: The feasible ones, ascending; none if it takes a search to know them.
    """

    interval: Bounds
    balanced: float
    choices: Sequence[float]


@checked
class FeasibleSet:
    """Computes the values of the current decision from which the budget can still be met.

    Args:
        budget: The bounds; limits become shares of the original's costs.
        costs: Cost name -> model; every bounded cost must be there.
        decisions: All decisions in the order they are made.
        graph: The network, which may explain why a budget cannot be reached.
        sums: The costs of product form, if they are known already.

    Attributes:
        budget: The bounds as shares alone, and those that costs have by themselves.

    Raises:
        InfeasibleBudgetError: If no plan on the grid meets the budget; the message names the
            reachable range.
        ValueError: If a bounded cost has no model.
    """

    def __init__(
        self,
        budget: Budget,
        costs: Mapping[str, CostFunction],
        decisions: Sequence[Decision],
        graph: LayerGraph | None = None,
        sums: CostSums | None = None,
    ) -> None:
        if missing := sorted({*budget.names} - costs.keys()):
            raise ValueError(f"No cost model for {missing}; available: {sorted(costs)}.")
        self._decisions = tuple(decisions)
        self._lowest = np.array([d.choices[0] for d in decisions])
        self._highest = np.array([d.choices[-1] for d in decisions])
        floors = {n: f for n, c in costs.items() if (f := getattr(c, "floor", 0.0)) > 0.0}
        names = dict.fromkeys([*budget.names, *floors])
        self._costs = entered({name: costs[name] for name in names}, self._decisions)
        self._original = original_costs(self._costs, self._decisions)
        units = {name: cost.unit for name, cost in self._costs.items()}
        self._asked = budget
        self.budget = budget = budget.resolved(self._original, units).above(floors)
        # Costs that fall somewhere; every other one is trusted to be monotone.
        self._falling = {
            n: c for n, c in self._costs.items() if isinstance(c, EnteredCost) and c.dip
        }
        self._search = CompletionSearch(
            budget.bounds,
            self._decisions,
            self.ratio,
            {n: (c.terms, self._original[n]) for n, c in self._falling.items()},
            partial(
                WindowTable.build,
                self._costs,
                self._original,
                budget.bounds,
                [np.array(d.choices) for d in decisions],
            ),
        )
        self._completions: dict[tuple[float, ...], tuple[float, ...] | None] = {}
        if not self._can_complete(()):
            raise InfeasibleBudgetError(" ".join((self._explain(), *self._about(graph))))
        self._are_all_followed = False
        self._followed = self._follow(sums)

    def _follow(self, sums: CostSums | None) -> Followed | None:
        """Prepares for the costs of product form, None if there are none."""
        if sums is None:
            sums = CostSums.build(self._costs, self._decisions)
        sums = sums.of([name for name in sums.names if name in self._costs])
        if not (sums.names and self._decisions and sums.n_numbers <= MOST_NUMBERS):
            return None
        windows = Windows(sums, self._decisions, self.budget.bounds, self._original)
        self._are_all_followed = len(sums.names) == len(self._costs)
        return Followed(windows, self._decisions) if windows.line.is_small else None

    def ratio(self, name: str, values: np.ndarray) -> float:
        """Returns cost / original cost of a complete vector of values."""
        return self._costs[name](values) / self._original[name]

    def is_met(self, values: Sequence[float]) -> bool:
        """Whether a complete vector of values meets every bound; other costs are not asked."""
        v = np.asarray(values, dtype=np.float64)
        return all(
            lower <= self.ratio(n, v) <= upper for n, (lower, upper) in self.budget.bounds.items()
        )

    def _about(self, graph: LayerGraph | None) -> list[str]:
        bounds = self.budget.bounds
        too_low = any(self.ratio(n, self._lowest) > upper for n, (_, upper) in bounds.items())
        return [] if graph is None else reasons(graph, self._decisions, bounds, too_low=too_low)

    def _explain(self) -> str:
        asked = f"{self._asked!r}"
        if self._asked.limits:
            asked += f", which is {self.budget!r} as shares of the original,"
        if not self._decisions:
            found = ", ".join(
                f"{name} {self.ratio(name, self._lowest):.4f}" for name in self._costs
            )
            return f"Nothing is decided, so the costs are {found}, which breaks {asked}."
        ranges = ", ".join(
            f"{name} {self.ratio(name, self._lowest):.4f} to {self.ratio(name, self._highest):.4f}"
            for name in self._costs
        )
        unmet = "".join(
            f" Even the largest plan has less {name} than the lower bound {lower}."
            for name, (lower, _) in self.budget.bounds.items()
            if self.ratio(name, self._highest) < lower
        )
        found = f"No plan meets {asked}"
        if () in self._search.given_up:
            found = (
                f"No plan that meets {asked} was found within the limit of the search, "
                f"which does not prove that there is none"
            )
        unmet += "".join(f" {c.floor_reason}" for c in self._costs.values() if c.floor_reason)
        dips = "".join(f" ({c.dip}.)" for c in self._falling.values())
        return f"{found}; reachable on this grid: {ranges}.{unmet}{dips} " + (
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
        if feasible := self._known_feasible(prefix):
            return (feasible[0], feasible[-1])
        choices = self._candidates(prefix)
        known = self._known(prefix)
        low = self._first([c for c in choices if c <= known], prefix)
        high = self._first([c for c in reversed(choices) if c >= known], prefix)
        return (low, high)

    def outlook(self, prefix: Sequence[float]) -> Outlook:
        """Returns what is left to the next decision."""
        choices = self._known_feasible(prefix)
        interval = (choices[0], choices[-1]) if choices else self.interval(prefix)
        return Outlook(interval, self.balanced(prefix), choices)

    def nearest(self, prefix: Sequence[float], request: float) -> float:
        """Returns the feasible choice nearest to ``request``; of two equally near, the larger."""
        if feasible := self._known_feasible(prefix):
            return nearest_of(feasible, request)
        choices = self._candidates(prefix)
        for choice in sorted(choices, key=lambda c: (abs(c - request), -c)):
            if self._can_complete((*prefix, choice)):
                return choice
            if (*prefix, choice) in self._search.given_up:
                low, high = self.interval(prefix)
                inside = [c for c in choices if low <= c <= high]
                known = self._known(prefix)
                if choice <= known:
                    return self._first([c for c in inside if choice <= c <= known], prefix)
                return self._first([c for c in reversed(inside) if known <= c <= choice], prefix)
        raise _beyond(prefix)

    def _known_feasible(self, prefix: Sequence[float]) -> Sequence[float]:
        """The feasible choices of the next decision, if they are known without a search."""
        followed = self._followed
        if followed is None or not self._are_all_followed or self._search.is_tabled:
            return ()
        return followed.feasible() if followed.go_to(prefix) else ()

    def _known(self, prefix: Sequence[float]) -> float:
        """The next value of the plan by which the prefix is known to be feasible."""
        found = self._completion(tuple(prefix))
        if found is None:
            raise _beyond(prefix)
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
        even with the rest at its largest" each cut off one end of the grid. Of a cost that falls
        somewhere neither is true, and all choices are candidates.
        """
        choices = self._decisions[len(prefix)].choices
        if self._falling:
            return choices
        bounds = self.budget.bounds

        n = len(prefix)
        low, high = self._lowest.copy(), self._highest.copy()
        low[:n] = high[:n] = prefix

        def too_expensive(choice: float) -> bool:
            low[n] = choice
            return any(self.ratio(name, low) > upper for name, (_, upper) in bounds.items())

        def too_cheap(choice: float) -> bool:
            high[n] = choice
            return any(
                lower > 0.0 and self.ratio(name, high) < lower
                for name, (lower, _) in bounds.items()
            )

        last = bisect.bisect_left(choices, True, key=too_expensive)
        first = bisect.bisect_left(choices, True, key=lambda c: not too_cheap(c))
        inside = choices[first:last]
        # True of monotone costs; one that is not, unnoticed, must not cut off what is known.
        known = self._known(prefix)
        return inside if inside and inside[0] <= known <= inside[-1] else choices

    def balanced(self, prefix: Sequence[float]) -> float:
        """Returns the ratio that, given to every remaining decision, spends exactly what is left.

        It is the largest ``r`` in [0, 1] for which no upper bound is broken when every remaining
        decision takes ``r`` of its span, off the grid but within its smallest and largest choice.
        """
        return self._settled(prefix, self._doubt(prefix))

    def _settled(self, prefix: Sequence[float], doubt: Doubt) -> float:
        """The balanced ratio; the cost models are asked where there is doubt."""
        if doubt.is_settled:
            return doubt.answer
        fits = self._line_through(prefix)
        return 1.0 if fits(1.0) else bisected(doubt, fits)

    def _doubt(self, prefix: Sequence[float]) -> Doubt:
        """What is known of the balanced ratio without asking the cost models."""
        if self._followed is None or not self._followed.go_to(prefix):
            return UNKNOWN
        doubt = self._followed.doubt()
        # Costs that are not followed may break their bounds anywhere.
        return doubt if self._are_all_followed else Doubt(0, doubt.breaks)

    def _line_through(self, prefix: Sequence[float]) -> Callable[[float], bool]:
        """Returns whether no upper bound is broken when the rest takes a ratio of its span."""
        rest = slice(len(prefix), None)
        values = np.concatenate([np.asarray(prefix, dtype=float), self._lowest[rest]])
        spans = np.array([value_span(d) for d in self._decisions[rest]])

        lowest, highest = self._lowest[rest], self._highest[rest]

        def fits(ratio: float) -> bool:
            requested = spans[:, 0] + ratio * (spans[:, 1] - spans[:, 0])
            values[rest] = np.minimum(
                np.maximum(requested, lowest), highest
            )  # np.clip takes longer
            return all(self.ratio(n, values) <= hi for n, (_, hi) in self.budget.bounds.items())

        return fits

    def choose(
        self, rows: Sequence[Sequence[float]], request: Request | None = None
    ) -> list[list[float]]:
        """Returns the values of many plans: of each decision the feasible choice nearest to it.

        The same as one plan after the other by :meth:`nearest`, and much faster.

        Args:
            rows: Per plan what is asked for, shape ``(n_plans, n_decisions)``.
            request: Makes the requested value of it; None where it is one.
        """
        windows = None if self._followed is None else self._followed.windows
        is_followed = self._are_all_followed and not self._search.is_tabled
        if windows is None or not is_followed or len(rows) == 1:
            chosen, unknown = np.zeros((len(rows), len(self._decisions))), [*range(len(rows))]
        else:
            plans = ManyPlans(windows, self._decisions, request, self._settled)
            chosen, is_known = plans.choose(rows)
            unknown = np.flatnonzero(~is_known).tolist()
        found: list[list[float]] = chosen.tolist()
        for plan in unknown:
            values: list[float] = []
            found[plan] = values
            for i, asked in enumerate(rows[plan]):
                if request is not None:
                    ratio = self.balanced(values)
                    asked = request(asked, i, self.interval(values), ratio)
                values.append(self.nearest(values, asked))
        return found

    def corner_ratios(self, prefix: Sequence[float]) -> dict[str, Bounds]:
        """Returns per bounded cost the ratio with the rest at its smallest and at its largest."""
        if self._followed is not None and self._are_all_followed and self._followed.go_to(prefix):
            return dict(self._followed.ratios())
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


def _beyond(prefix: Sequence[float]) -> InfeasibleBudgetError:
    return InfeasibleBudgetError(
        f"No plan that begins with the values {list(prefix)} is known to meet the budget; take "
        f"plans from env.project or env.decode."
    )

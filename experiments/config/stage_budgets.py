"""The budgets on the way to a budget that is reached in stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from amc_env import Budget

MOST_STAGES = 100


def stage_budgets(budget: Budget, stages: int | Sequence[float]) -> list[Budget]:
    """Returns the budgets of the stages; the last one is the budget itself.

    Args:
        budget: Of the finished network.
        stages: How many: upper bounds then fall from 1 in equal ratios. Or the upper bounds of
            the first cost, falling; those of the other costs fall in step. Lower bounds are those
            of the budget in every stage, so that none takes away too much.

    Raises:
        ValueError: If the bounds do not fall from 1 to the budget.
    """
    if budget.limits:
        raise ValueError(f"Expected a budget of shares for stages, got {budget}.")
    name, (_, upper) = next(iter(budget.bounds.items()))
    if isinstance(stages, int):
        if not 1 <= stages <= MOST_STAGES:
            raise ValueError(f"Expected 1 to {MOST_STAGES} stages, got {stages}.")
        parts = [(k + 1) / stages for k in range(stages - 1)]
    else:
        shares = [share for share in stages if not math.isclose(share, upper)]
        if not all(a > b for a, b in zip([1.0, *shares], [*shares, upper], strict=True)):
            raise ValueError(
                f"Expected stages that fall from 1 to {name}={upper:g}, got "
                f"{','.join(f'{share:g}' for share in stages)}."
            )
        parts = [math.log(share) / math.log(upper) for share in shares]
    on_the_way = [
        Budget(**{n: (low, round(high**part, 4)) for n, (low, high) in budget.bounds.items()})
        for part in parts
    ]
    return [*on_the_way, budget]

"""Staged evaluation: a plan is measured on more samples only while it may still win.

Samples are in one random order, divided into :data:`GROUPS` groups of neighbours. A plan is
measured on the groups of the first stage, and compared with the best plan known when it was asked
for, on the same samples: the mean of the differences of their scores, group by group, and its
standard error. Where a one-sided Student interval of the mean ends below 0, the plan is stopped;
else it is measured on the groups of the next stage as well. That is a paired test at each stage but
the last: a plan that is as good as the best fails one with the probability ``risk``.

A plan that was stopped has the score of the best plus the mean difference, an estimate of its score
on all samples. It is below that of the best, so that such a plan never wins.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from amc_env.errors import ArgumentError
from amc_env.validation.checks import checked

GROUPS = 64
"""Groups of the samples; the shares of stages are multiples of one."""

ROUNDING = 1e-9
"""Of shares of evaluations that are added up."""

_LEAST = 4  # differences of which a standard error is taken

Scores = tuple[float | None, ...]
"""Of the groups that were measured, in their order; None where a group has no score."""


@checked
@dataclass(frozen=True)
class Stages:
    """When a plan is looked at, and how sure it must be that it loses.

    Args:
        shares: Of the samples, rising; the last one is 1.
        risk: Probability of stopping a plan at a look that is as good as the best.

    Raises:
        ArgumentError: If the shares do not rise to 1, or the risk is not in (0, 0.5).
    """

    shares: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    risk: float = 0.05

    def __post_init__(self) -> None:
        pairs = zip((0.0, *self.shares), self.shares, strict=False)
        if not self.shares or self.shares[-1] != 1.0 or any(a >= b for a, b in pairs):
            raise ArgumentError(f"Expected shares that rise to 1, got {self.shares}.")
        if not 0.0 < self.risk < 0.5:
            raise ArgumentError(f"Expected a risk between 0 and 0.5, got {self.risk}.")

    def ends(self, samples: int) -> tuple[int, ...]:
        """Returns after how many samples a plan is looked at; the last one is all of them."""
        found = (group_end(math.ceil(share * GROUPS), samples) for share in self.shares)
        return tuple(dict.fromkeys(end for end in found if end))


def group_end(groups: int, samples: int) -> int:
    """Returns how many samples the first so many groups have."""
    return groups * samples // GROUPS


@dataclass(frozen=True)
class Race:
    """What a plan is compared with.

    Args:
        score: Of the best plan known, on all samples.
        groups: Its scores on the groups.
    """

    score: float
    groups: Scores

    def is_lost(self, groups: Scores, risk: float) -> bool:
        """Whether a plan with these scores on the first groups is worse, at this risk."""
        from scipy.special import stdtrit  # here, as SciPy is slow to import

        differences = self._differences(groups)
        if len(differences) < _LEAST:
            return False
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        reach = -float(stdtrit(len(differences) - 1, risk)) * error
        return statistics.fmean(differences) + reach < 0.0

    def estimate(self, groups: Scores) -> float:
        """Returns the score on all samples of a plan that has lost, from that of the best."""
        return self.score + statistics.fmean(self._differences(groups))

    def _differences(self, groups: Scores) -> list[float]:
        pairs = zip(groups, self.groups, strict=False)
        return [ours - best for ours, best in pairs if ours is not None and best is not None]


@dataclass(frozen=True)
class Measured:
    """What a staged evaluation found.

    Args:
        score: On all samples; an estimate of it where the plan was stopped.
        share: Of the samples that it was measured on.
        samples: How many these are; 0 where it is not known.
        stage: At which stage it ended, from 1 on; 0 for none.
        groups: Scores on the groups, where the plan was not stopped.
    """

    score: float
    share: float = 1.0
    samples: int = 0
    stage: int = 0
    groups: Scores = ()


def best_race(known: Sequence[Measured]) -> Race | None:
    """Returns the race against the best of some plans; None if none was measured in groups."""
    whole = [found for found in known if found.groups]
    if not whole:
        return None
    best = max(whole, key=lambda found: found.score)  # the earliest of equals
    return Race(best.score, best.groups)

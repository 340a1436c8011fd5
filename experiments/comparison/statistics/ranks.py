"""Ranks of agents, task by task, as in Balaji & Allen 2018 (1808.06492)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import scipy.stats

from amc_compress.comparison.statistics.scores import FloatArray, Sample
from amc_compress.comparison.statistics.statistics import improvement

# Means of equal rewards may differ in their last bits, which must not break a tie.
_DECIMALS = 12


@dataclass(frozen=True)
class Wins:
    """Wins of one agent over another, seed by seed, on all shared tasks.

    Args:
        won: Pairs in which its reward was higher.
        tied: Pairs of equal rewards.
        pairs: Number of pairs.
    """

    won: int
    tied: int
    pairs: int

    @property
    def share(self) -> float:
        """Share of the pairs that it won, ties counting half."""
        return (self.won + self.tied / 2) / self.pairs


def ranks_of_means(samples: Mapping[str, Sample]) -> dict[str, float]:
    """Returns the rank of every agent's mean reward on a task: 1 is best, ties share a rank."""
    means = np.round([sample.mean for sample in samples.values()], _DECIMALS)
    return dict(zip(samples, scipy.stats.rankdata(-means).tolist(), strict=True))


def expected_ranks(samples: Mapping[str, Sample]) -> dict[str, float]:
    """Returns the mean rank on a task if one search of every agent is drawn at random.

    Unlike ranks seed by seed, it does not depend on which seed of one agent happens to meet which
    of another: 1 + the sum over the other agents of the probability that theirs is better, ties
    counting half.
    """
    return {
        agent: 1.0
        + sum(
            improvement(other.rewards[:, None], sample.rewards[:, None])
            for name, other in samples.items()
            if name != agent
        )
        for agent, sample in samples.items()
    }


def pairwise_wins(tasks: Iterable[Mapping[str, Sample]]) -> dict[tuple[str, str], Wins]:
    """Returns (X, Y) -> wins of X over Y on the tasks that both searched, same seed against same.

    A deterministic agent that was run once meets every seed of the other. A pair of agents
    without a common seed is left out.

    Args:
        tasks: Agent -> sample, of each task.
    """
    totals: dict[tuple[str, str], FloatArray] = {}
    for samples in tasks:
        for first, second in permutations(samples, 2):
            counts = _meetings(samples[first], samples[second])
            totals[first, second] = totals.get((first, second), np.zeros(3)) + counts
    return {
        pair: Wins(*(int(count) for count in counts))
        for pair, counts in totals.items()
        if counts[2]
    }


def balaji_allen_scores(tasks: Iterable[Mapping[str, Sample]]) -> dict[str, float]:
    """Returns Balaji and Allen's statistic: mean over tasks of the mean scaled reward.

    Per task the rewards of all agents and seeds are scaled to [0, 1]: the worst search of all is
    0, the best 1. (The paper makes them z-scores before that, which scaling undoes.) Tasks on which
    all rewards are equal are left out; an agent that searched no other is missing from the answer.

    Args:
        tasks: Agent -> sample, of each task.
    """
    scaled: dict[str, list[float]] = {}
    for samples in tasks:
        everything = np.concatenate([sample.rewards for sample in samples.values()])
        low, high = everything.min(), everything.max()
        if low == high:
            continue
        for agent, sample in samples.items():
            scaled.setdefault(agent, []).append(float(np.mean(sample.rewards - low)) / (high - low))
    return {agent: float(np.mean(values)) for agent, values in scaled.items()}


def _meetings(first: Sample, second: Sample) -> FloatArray:
    """Wins, ties and number of the pairs of searches with the same seed."""
    x, y = _by_seed(first, second), _by_seed(second, first)
    common = sorted(x.keys() & y.keys())
    differences = np.array([x[seed] - y[seed] for seed in common])
    return np.array([(differences > 0).sum(), (differences == 0).sum(), len(common)], dtype=float)


def _by_seed(sample: Sample, other: Sample) -> dict[int, float]:
    seeds = other.seeds if sample.is_fixed and len(sample.rewards) == 1 else sample.seeds
    return dict(zip(seeds, np.resize(sample.rewards, len(seeds)).tolist(), strict=True))

"""A task that costs nothing and counts its evaluations, and plans of it that were evaluated."""

from __future__ import annotations

import numpy as np

from amc_compress.comparison.recording.recording import latin_hypercube
from amc_env import CompressionEnv
from amc_env.recorded_tasks.synthetic import SyntheticLearner


class CountingLearner(SyntheticLearner):
    calls = 0

    def evaluate(self, plan):
        self.calls += 1
        return super().evaluate(plan)


def make_env(budget="macs=0.5", n_layers=4):
    return CompressionEnv(CountingLearner(n_layers, seed=3), budget)


def evaluated_hypercube(n, n_layers=4):
    env = make_env(n_layers=n_layers)
    plans = latin_hypercube(env, n, seed=1)
    accuracies = np.array([env.evaluate(plan).score for plan in plans])
    return env, np.array([plan.choices_for(env.decisions) for plan in plans]), accuracies

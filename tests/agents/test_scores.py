"""Agents search for any finite score: its size and its sign change nothing."""

import numpy as np
import pytest

from amc_compress.agents import (
    CMAES,
    DDPG,
    NSGA2,
    TPE,
    EpisodeLogger,
    Evolution,
    GaussianProcess,
    LocalSearch,
    OnePolicy,
    Sensitivity,
)
from amc_compress.agents.actor_critic.one_policy import _discounted
from amc_compress.agents.curves.sensitivity import _damage
from amc_compress.agents.samplers.shared_study import _fingerprint
from amc_env import CompressionEnv
from amc_env.recorded_tasks.synthetic import SyntheticLearner
from tests.support.selection import quick

EPISODES = 14
QUICK = {"warmup_episodes": 3, "hidden": 32, "updates_per_episode": 1, "elite_share": 0.3}


class Scaled(SyntheticLearner):
    """An accuracy times a power of two, plus a number."""

    def __init__(self, factor=1.0, offset=0.0):
        super().__init__(4, seed=3)
        self.metric, self.best_score = "usefulness", None
        self._factor, self._offset = factor, offset
        self.original_score = self._of(self.original_score)

    def _of(self, accuracy):
        return self._factor * accuracy + self._offset

    def evaluate(self, plan):
        return self._of(super().evaluate(plan))


class Failing(Scaled):
    """Some plans are beyond all measure bad, as perplexities are."""

    def evaluate(self, plan):
        score = super().evaluate(plan)
        return score if score > -1.25 else -1e30


MAKERS = {
    "ddpg": lambda: DDPG(**QUICK),
    "ddpg-one-shot": lambda: DDPG(one_shot=True, **QUICK),
    "tpe": TPE,
    "gp": GaussianProcess,
    "cmaes": CMAES,
    "nsga2": NSGA2,
    "evolution": lambda: Evolution(population=4, tournament=2),
    "local": LocalSearch,
    "sensitivity": Sensitivity,
}


def plans_of(name, learner):
    env = CompressionEnv(learner, "macs=0.5")
    result = MAKERS[name]().search(env, EPISODES, seed=1)
    return [trial.plan for trial in result.trials], result


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**12])
@pytest.mark.parametrize("name", quick(MAKERS, "ddpg-one-shot", "tpe", "sensitivity"))
def test_the_unit_of_a_score_changes_no_plan(name, factor):
    expected, _ = plans_of(name, Scaled())
    found, _ = plans_of(name, Scaled(factor))
    assert found == expected


@pytest.mark.parametrize("name", quick(MAKERS, "ddpg", "gp", "sensitivity"))
def test_negative_scores_are_searched_and_the_worst_of_them_break_nothing(name):
    _, result = plans_of(name, Failing(offset=-2.0))
    rewards = [trial.reward for trial in result.trials if trial.within_budget]
    assert result.reward == max(rewards) > -1.25
    assert min(trial.score for trial in result.trials) == -1e30


def test_the_damage_of_a_decision_falls_with_its_score_whatever_the_sign():
    for offset, factor in ((0.0, 1.0), (-0.92, 1.0), (-30.0, 20.0), (5.0, -0.5)):
        learner = Scaled(factor, offset)
        env = CompressionEnv(learner, "macs=0.5")
        scores = env.original_score - abs(factor) * np.array([0.0, 1e-3, 0.02, 0.3])
        damages = [_damage(env, score) for score in scores]
        assert damages[0] == 0.0
        assert damages == sorted(set(damages))


def test_one_policy_prefers_plans_that_cost_less_than_the_budget_whatever_the_sign():
    assert _discounted(0.8, 0.5) < _discounted(0.8, 1.0)
    assert _discounted(-0.8, 0.5) < _discounted(-0.8, 1.0)
    env = CompressionEnv(Scaled(offset=-2.0), "macs=0.5")
    front = OnePolicy(**QUICK).search(env, ["macs=0.4", "macs=0.6"], 8, seed=0)
    assert all(trial.score < -1.0 for trial in front.best.values())


def test_a_study_knows_another_metric(tmp_path):
    one, other = (CompressionEnv(learner, "macs=0.5") for learner in (Scaled(), SyntheticLearner()))
    assert _fingerprint(one)["metric"] == "usefulness"
    assert "metric" not in _fingerprint(other)


def test_the_log_names_the_metric(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EpisodeLogger(tmp_path, picture_every=0) as logger:
        env = CompressionEnv(Scaled(offset=-2.0), "macs=0.5")
        LocalSearch().search(env, 2, seed=0, logger=logger)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"info/score", "info/usefulness", "final/score", "final/usefulness"} <= tags
    assert not any("accuracy" in tag for tag in tags)

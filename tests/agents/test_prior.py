"""What a learner expects of plans chooses among them, less the more was evaluated."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from amc_compress.agents import OneShotDDPG
from amc_compress.agents.actor_critic.exploration import Exploration, Proposals
from amc_compress.agents.curves.prior import prior_of, read_curves, standardised
from amc_compress.agents.rollout import Search
from amc_compress.agents.trials import AgentError


@pytest.fixture
def env():
    return gymnasium.make("amc_env:amc/synthetic-v0", n_layers=4).unwrapped


def scores_of(env):
    return read_curves(env, "gradient_scores")


def plans_of(env, count):
    rng = np.random.default_rng(0)
    drawn = (rng.random(env.n_decisions, dtype=np.float32) for _ in range(count))
    return [env.decode(actions) for actions in drawn]


def test_the_prior_is_minus_the_sum_of_what_the_curves_give_to_the_choices(env):
    plans = plans_of(env, 5)
    curves = env.learner.gradient_scores()
    for plan, value in zip(plans, prior_of(env, scores_of(env))(plans), strict=True):
        damage = 0.0
        for decision in env.decisions:
            place = decision.choices.index(plan[decision.key])
            damage += curves[decision.key][place] - curves[decision.key][-1]
        assert value == pytest.approx(-damage)


def test_without_curves_there_is_no_prior_and_the_search_goes_on(env, monkeypatch):
    assert read_curves(env, "none") is None
    monkeypatch.delattr(type(env.learner), "gradient_scores")
    assert scores_of(env) is None
    assert len(OneShotDDPG().search(env, 12, seed=0).trials) == 12


def test_curves_of_another_length_are_rejected(env, monkeypatch):
    monkeypatch.setattr(type(env.learner), "gradient_scores", lambda _: {"conv0:keep_ratio": [1]})
    with pytest.raises(AgentError, match="gradient_scores"):
        OneShotDDPG().search(env, 12, seed=0)


def test_draws_of_the_warm_up_are_better_by_the_prior_than_single_ones(env):
    prior = prior_of(env, scores_of(env))

    def drawn(curves):
        with Search(env, 30, 0, None, None, False) as search:
            search.uniform()
            settings = Exploration(screen=16, warmup_episodes=20)
            proposals = Proposals(search, settings, one_shot=True, curves=curves)
            return [proposals._warmup() for _ in range(20)]

    assert prior(drawn(scores_of(env))).mean() > prior(drawn(None)).mean()


def test_critics_that_have_learned_nothing_have_no_say_in_the_warm_up(env):
    def drawn(score):
        with Search(env, 30, 0, None, None, False) as search:
            search.uniform()
            settings = Exploration(screen=16, warmup_episodes=20)
            proposals = Proposals(search, settings, one_shot=True, curves=scores_of(env))
            proposals.score = score
            return [proposals._warmup() for _ in range(20)]

    untrained = np.random.default_rng(0)
    assert drawn(None) == drawn(lambda plans: untrained.random((1, len(plans))))


def test_the_critics_take_over_from_the_prior(env):
    plans = plans_of(env, 8)
    prior = prior_of(env, scores_of(env))(plans)
    with Search(env, 100, 0, None, None, False) as search:
        search.uniform()
        settings = Exploration(prior_half_life=0.5)
        proposals = Proposals(search, settings, one_shot=True, curves=scores_of(env))
        proposals.score = lambda found: -prior[[plans.index(p) for p in found]][None]
        # One evaluation: the prior weighs 2 / 4 relative to the critics.
        assert proposals._preferred(plans) == plans[int(np.argmin(prior))]
        settings = Exploration(prior_half_life=100.0)
        early = Proposals(search, settings, one_shot=True, curves=scores_of(env))
        early.score = proposals.score
        assert early._preferred(plans) == plans[int(np.argmax(prior))]
        assert settings.prior_weight == 2.0


def test_equal_values_are_standardised_to_zeros():
    assert standardised(np.full(3, 0.3)).tolist() == [0.0, 0.0, 0.0]
    assert standardised(np.array([1.0, 3.0])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    "options", [{"prior": "scores"}, {"prior_weight": -1.0}, {"prior_half_life": 0.0}]
)
def test_options_without_meaning_are_rejected(options):
    with pytest.raises(ValueError, match="prior"):
        Exploration(**options)

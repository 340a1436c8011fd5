"""Several plans under way at a time: the order of results, and what is not evaluated twice."""

from __future__ import annotations

import pytest

from amc_compress.agents import AgentError, make_agent
from amc_compress.agents.rollout import Search
from amc_compress.agents.testing.contract import make_env, watch
from amc_env import EvaluationError


@pytest.fixture
def env():
    return make_env()


def test_results_come_in_the_order_of_submission(env):
    with Search(env, 6, 0, parallel=3) as search:
        plans = [env.decode([a] * env.n_decisions) for a in (0.2, 0.5, 0.9)]
        for plan in plans:
            assert search.has_room
            search.submit(plan, "test")
        assert not search.has_room
        assert search.remaining == 3
        assert search.pending == tuple(plans)
        assert [trial.plan for trial in search.results()] == plans


def test_an_equal_plan_under_way_is_evaluated_once(env):
    service = watch(env)
    with Search(env, 4, 0, parallel=4) as search:
        plan = env.uniform_plan()
        for _ in range(3):
            search.submit(plan, "test")
        assert len({trial.score for trial in search.results()}) == 1
    assert service.asked == [plan]


def test_nothing_is_proposed_beyond_the_evaluations(env):
    with Search(env, 1, 0, parallel=4) as search:
        search.submit(env.uniform_plan(), "test")
        with pytest.raises(AgentError, match="more than its 1"):
            search.submit(env.uniform_plan(), "test")
        with pytest.raises(AgentError, match="under way"):
            search.evaluate(env.uniform_plan(), "test")


@pytest.mark.parametrize("name", ["random", "local", "evolution", "evopress", "tpe", "nsga2"])
def test_an_agent_keeps_as_many_under_way_as_it_may(env, name):
    service = watch(env)
    result = make_agent(name, finalists=0).search(env, 30, 0, parallel=4)
    assert len(result.trials) == 30
    assert service.most == 4


def test_a_plan_that_cannot_be_evaluated_is_a_failed_trial(env):
    plan = env.uniform_plan()
    watch(env, failing=[plan])
    with Search(env, 2, 0) as search:
        trial = search.evaluate(plan, "test")
        assert trial.failure == "The worker was killed 3 times."
        assert not trial.within_budget
        assert trial.score == 0.0
        assert search.best is None


@pytest.mark.parametrize(
    "name", ["local", "evolution", "evopress", "tpe", "ddpg-one-shot", "sensitivity"]
)
@pytest.mark.parametrize("parallel", [1, 4])
def test_plans_that_cannot_be_evaluated_are_learned_from_and_never_win(name, parallel):
    env = make_env()
    asked = watch(env).asked
    agent = make_agent(name, finalists=0)
    agent.search(env, 24, 0, parallel=parallel)
    failing = [plan for plan in asked[1:9] if plan != env.uniform_plan()]
    env = make_env()
    watch(env, failing=failing)
    result = agent.search(env, 24, 0, parallel=parallel)
    assert any(trial.failure for trial in result.trials)
    assert not result.best_trial.failure
    assert result.plan not in failing
    env = make_env()
    watch(env, failing=[env.uniform_plan()])
    with pytest.raises(EvaluationError, match="uniform plan could not be evaluated"):
        agent.search(env, 24, 0, parallel=parallel)


def test_a_search_in_which_every_plan_failed_says_why(env):
    watch(env, failing=Everything())
    with pytest.raises(EvaluationError, match=r"none of 4 could be\. The last one: The worker"):
        make_agent("random").search(env, 4, 0, parallel=2)


class Everything:
    def __contains__(self, plan):
        return True

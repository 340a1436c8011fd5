"""Several plans under way at a time: the order of results, and what is not evaluated twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from amc_compress.agents import AgentError, make_agent
from amc_compress.agents.rollout import Search
from amc_compress.agents.testing.contract import make_env
from amc_env import CompressionPlan, Evaluation
from amc_env.scores.evaluations import InProcess


class Watched(InProcess):
    """Counts what is under way, and fails for some plans."""

    def __init__(self, learner: Any, failing: Sequence[CompressionPlan] = ()) -> None:
        super().__init__(learner)
        self.most = 0
        self.asked: list[CompressionPlan] = []
        self.failing = failing

    def submit(self, plans: Sequence[CompressionPlan], *, whole_split: bool = False) -> None:
        super().submit(plans, whole_split=whole_split)
        self.asked += plans
        self.most = max(self.most, self.pending)

    def result(self) -> Evaluation:
        found = super().result()
        if found.plan in self.failing:
            return Evaluation(found.plan, None, failure="The worker was killed 3 times.")
        return found


@pytest.fixture
def env():
    return make_env()


def watch(env, failing=()):
    env.scores.service = service = Watched(env.learner, failing)
    return service


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


@pytest.mark.parametrize("name", ["random", "local"])
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

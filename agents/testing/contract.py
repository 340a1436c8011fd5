"""What every agent must keep; an agent's test class inherits this and builds the agent."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch

from amc_compress.agents import Agent, LocalSearch, SearchResult, Trial
from amc_env import CompressionEnv, CompressionPlan, EvaluationError, PlanMismatchError
from amc_env.recorded_tasks.synthetic import SyntheticLearner
from amc_env.scores.evaluations import Evaluation, InProcess

EPISODES = 7
PARALLEL = 3


class CountingLearner(SyntheticLearner):
    """Counts its evaluations, and moves every global generator while it evaluates."""

    calls = 0

    def evaluate(self, plan: CompressionPlan) -> float:
        self.calls += 1
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        return super().evaluate(plan)


class NanLearner(SyntheticLearner):
    """Evaluates to no number."""

    def evaluate(self, plan: CompressionPlan) -> float:
        return float("nan")


class FullEvaluation(SyntheticLearner):
    """The whole validation split prefers the plan that keeps most of the first layer."""

    def evaluate_full(self, plan: CompressionPlan) -> float:
        return float(plan[self.decisions[0].key])


class WatchedEvaluations(InProcess):
    """Counts what is under way; evaluates the newest plan first if asked to.

    Args:
        learner: Evaluates.
        backwards: Whether all that is under way is evaluated at once, the last one first, as
            workers of unequal speed might.
        failing: Plans that cannot be evaluated.

    Attributes:
        most: How many were under way at a time, at most.
        asked: Every plan, in the order of submission.
    """

    def __init__(
        self,
        learner: Any,
        *,
        backwards: bool = False,
        failing: Sequence[CompressionPlan] = (),
    ) -> None:
        super().__init__(learner)
        self._learner = learner
        self._backwards = backwards
        self._failing = failing
        self._early: dict[CompressionPlan, float] = {}
        self.most = 0
        self.asked: list[CompressionPlan] = []

    def submit(self, plans: Sequence[CompressionPlan], *, whole_split: bool = False) -> None:
        super().submit(plans, whole_split=whole_split)
        self.asked += plans
        self.most = max(self.most, self.pending)

    def result(self) -> Evaluation:
        if self._backwards and not self._early:
            for plan, _ in reversed(self._waiting):
                self._early[plan] = self._learner.evaluate(plan)
        found = super().result()
        if found.plan in self._failing:
            return Evaluation(found.plan, None, failure="The worker was killed 3 times.")
        early = self._early.pop(found.plan, found.score)
        return Evaluation(found.plan, early)


def watch(env: CompressionEnv, **options: Any) -> WatchedEvaluations:
    """Return the service that evaluates for an environment from now on."""
    env.scores.service = service = WatchedEvaluations(env.learner, **options)
    return service


def make_env(n_layers: int = 4, budget: str = "macs=0.5", **options: Any) -> CompressionEnv:
    """Return an environment with a :class:`CountingLearner`."""
    return CompressionEnv(CountingLearner(n_layers, seed=3), budget, **options)


def calls_of(env: CompressionEnv) -> int:
    """Return how often the learner of :func:`make_env` has evaluated."""
    assert isinstance(env.learner, CountingLearner)
    return env.learner.calls


def facts(trials: tuple[Trial, ...]) -> list[Any]:
    """Return everything of trials but the time they took."""
    return [(t.episode, dict(t.plan), t.score, t.reward, t.cost_ratio, t.source) for t in trials]


@functools.cache
def _prior(episodes: int) -> tuple[Trial, ...]:
    """The trials of another search in an environment of six layers."""
    return LocalSearch().search(make_env(6), episodes, seed=9).trials


class AgentContract:
    """Inherit, name the class ``Test...`` and define :meth:`make`."""

    def make(self, **options: Any) -> Agent:
        """Return the agent.

        Args:
            **options: ``finalists``, as :class:`~amc_compress.agents.Agent` takes it.
        """
        raise NotImplementedError

    _searched: ClassVar[dict[tuple[type, int], SearchResult]] = {}

    def searched(self, seed: int) -> SearchResult:
        """Return the result of a search in :func:`make_env`, made once for all tests."""
        key = (type(self), seed)
        if key not in self._searched:
            self._searched[key] = self.make().search(make_env(), EPISODES, seed=seed)
        return self._searched[key]

    def test_every_plan_meets_the_budget_above_and_below(self) -> None:
        env = make_env(6, "macs=0.4:0.5,params=0.6")
        result = self.make().search(env, EPISODES, seed=0)
        for trial in result.trials:
            assert trial.within_budget == env.budget.is_met(env.cost_ratio(trial.plan))
        assert env.budget.is_met(env.cost_ratio(result.plan))

    def test_spends_no_more_than_its_episodes_and_reports_each_once_in_order(self) -> None:
        reported: list[Trial] = []
        result = self.make().search(make_env(), EPISODES, seed=0, on_trial=reported.append)
        assert 1 <= len(result.trials) <= EPISODES
        assert tuple(reported) == result.trials
        assert [t.episode for t in result.trials] == list(range(len(result.trials)))

    def test_returns_the_best_of_its_trials(self) -> None:
        result = self.searched(5)
        assert result.reward == max(t.reward for t in result.trials if t.within_budget)
        assert result.best_trial.reward == result.reward
        assert result.plan == result.best_trial.plan

    def test_never_ends_below_the_uniform_plan_unless_it_never_tried_it(self) -> None:
        env, result = make_env(), self.searched(5)
        if any(trial.source == "uniform" for trial in result.trials):
            assert result.reward >= env.evaluate(env.uniform_plan()).reward

    def test_same_seed_gives_the_same_trials(self) -> None:
        again = self.make().search(make_env(), EPISODES, seed=5)
        assert facts(again.trials) == facts(self.searched(5).trials)

    def test_asks_for_several_plans_at_a_time_and_no_order_of_work_changes_the_trials(self) -> None:
        runs = []
        for backwards in (False, True):
            env = make_env()
            service = watch(env, backwards=backwards)
            runs.append(self.make().search(env, EPISODES, seed=5, parallel=PARALLEL))
            assert service.most <= PARALLEL
        assert facts(runs[0].trials) == facts(runs[1].trials)
        spent, serially = len(runs[0].trials), len(self.searched(5).trials)
        assert spent == EPISODES if serially == EPISODES else 1 <= spent <= EPISODES

    def test_another_seed_changes_nothing_for_agents_that_say_so(self) -> None:
        one, two = self.searched(5), self.searched(6)
        if self.make().deterministic:
            assert facts(one.trials) == facts(two.trials)
        else:
            assert facts(one.trials) != facts(two.trials)

    def test_an_agent_can_search_twice(self) -> None:
        agent = self.make()
        for seed in (6, 5):
            again = agent.search(make_env(), EPISODES, seed=seed)
            assert facts(again.trials) == facts(self.searched(seed).trials)

    def test_a_killed_search_replays_from_its_record_without_evaluating_again(self) -> None:
        whole = self.searched(5)
        env = make_env()
        for trial in whole.trials[:4]:
            env.remember(trial.plan, trial.score)
        resumed = self.make().search(env, EPISODES, seed=5)
        assert facts(resumed.trials) == facts(whole.trials)
        distinct = {trial.plan for trial in whole.trials}
        remembered = {trial.plan for trial in whole.trials[:4]}
        assert calls_of(env) == len(distinct - remembered)

    def test_a_warm_start_costs_no_evaluation_and_changes_no_repeatability(self) -> None:
        prior = _prior(5)
        runs = []
        for _ in range(2):
            env = make_env(6)
            runs.append(self.make().search(env, EPISODES, seed=1, warm_start=prior))
            mine = {trial.plan for trial in runs[-1].trials}
            assert calls_of(env) == len(mine - {trial.plan for trial in prior})
        assert facts(runs[0].trials) == facts(runs[1].trials)

    @pytest.mark.parametrize("episodes", [1, 4])
    def test_a_warm_start_is_the_result_where_nothing_better_is_found(self, episodes: int) -> None:
        env = make_env(6)
        prior = _prior(40)
        result = self.make().search(env, episodes, seed=1, warm_start=prior)
        known = [*prior, *result.trials]
        assert result.reward == max(trial.reward for trial in known if trial.within_budget)
        assert result.best_trial.reward == result.reward

    def test_a_warm_start_of_another_network_is_rejected(self) -> None:
        prior = LocalSearch().search(make_env(3), 2, seed=0).trials
        with pytest.raises(PlanMismatchError):
            self.make().search(make_env(4), EPISODES, seed=0, warm_start=prior)

    def test_leaves_the_global_generators_and_the_thread_count_alone(self) -> None:
        threads = torch.get_num_threads()
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        self.make().search(make_env(), EPISODES, seed=0)
        after = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        assert after == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
        assert torch.get_num_threads() == threads

    @pytest.mark.parametrize("episodes", [1, 2])
    def test_tiny_searches_work(self, episodes: int) -> None:
        result = self.make().search(make_env(), episodes, seed=0)
        assert 1 <= len(result.trials) <= episodes

    def test_one_decision_is_enough(self) -> None:
        assert self.make().search(make_env(1), EPISODES, seed=0).trials

    def test_another_reward_is_what_counts(self) -> None:
        env = make_env(reward=lambda result: -100.0 * result.cost_ratio["params"])
        result = self.make().search(env, EPISODES, seed=0)
        within = [trial for trial in result.trials if trial.within_budget]
        expected = max(-100.0 * trial.cost_ratio["params"] for trial in within)
        assert result.reward == pytest.approx(expected)

    def test_takes_the_environment_as_gymnasium_makes_it(self) -> None:
        env = gym.make("amc_env:amc/synthetic-v0", n_layers=3)
        assert self.make().search(env, 3, seed=0).trials

    @pytest.mark.parametrize("episodes", [0, -1, 2.5, True])
    def test_rejects_a_senseless_number_of_episodes(self, episodes: Any) -> None:
        with pytest.raises(ValueError, match="whole number"):
            self.make().search(make_env(), episodes, seed=0)

    def test_rejects_what_is_no_compression_environment(self) -> None:
        with pytest.raises(TypeError, match="CompressionEnv"):
            self.make().search(gym.make("Pendulum-v1"), 3, seed=0)

    def test_rejects_an_evaluation_that_is_no_number(self) -> None:
        env = CompressionEnv(NanLearner(3), "macs=0.5")
        with pytest.raises(EvaluationError, match="finite"):
            self.make().search(env, 3, seed=0)

    def test_the_best_few_are_evaluated_again_on_everything(self) -> None:
        env = CompressionEnv(FullEvaluation(4, seed=3), "macs=0.5")
        result = self.make(finalists=3).search(env, EPISODES, seed=0)
        assert 1 <= len(result.finalist_rewards) <= 3
        first = env.decisions[0].key
        finalists = [result.trials[episode].plan for episode in result.finalist_rewards]
        assert result.plan[first] == max(plan[first] for plan in finalists)
        assert result.reward == max(result.finalist_rewards.values()) == result.plan[first]

    def test_settings_are_plain_values(self) -> None:
        for value in self.make().hyperparameters().values():
            assert isinstance(value, bool | int | float | str)

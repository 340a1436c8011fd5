import numpy as np
import pytest

from amc_compress.agents import (
    AGENTS,
    TPE,
    Agent,
    AgentError,
    LocalSearch,
    RandomSearch,
    Uniform,
    is_deterministic,
    make_agent,
)
from amc_compress.agents.heuristics.local_search import neighbour
from amc_compress.agents.testing.contract import make_env
from amc_env import CompressionPlan, MissingDependencyError, PlanMismatchError
from amc_env.recorded_tasks.synthetic import make_synthetic


class Scripted(Agent):
    """Runs any function as an agent."""

    name = "scripted"

    def __init__(self, script):
        super().__init__()
        self._script = script

    def run(self, search):
        self._script(search)


@pytest.mark.parametrize(
    "action",
    [
        np.array([np.nan]),
        np.array([1.5]),
        np.array([0.5, 0.5]),
        0.5,
        "half",
        None,
        np.array([-0.1]),
    ],
)
def test_a_senseless_action_ends_with_a_clear_sentence(action):
    agent = Scripted(lambda search: search.play(lambda *_: action, "bad"))
    with pytest.raises(AgentError, match=r"shape \(1,\) in \[0, 1\]"):
        agent.search(make_env(), 3, seed=0)


def test_a_plan_outside_the_budget_is_rejected_before_it_is_evaluated():
    env = make_env()
    full = CompressionPlan.full(env.decisions)
    agent = Scripted(lambda search: search.evaluate(full, "greedy"))
    with pytest.raises(AgentError, match="outside the budget"):
        agent.search(env, 3, seed=0)
    assert env.learner.calls == 0


def test_a_plan_of_another_network_is_rejected():
    agent = Scripted(lambda search: search.evaluate(make_env(2).uniform_plan(), "other"))
    with pytest.raises(PlanMismatchError):
        agent.search(make_env(4), 3, seed=0)


def test_an_agent_cannot_spend_more_than_its_episodes():
    def spend(search):
        for _ in range(3):
            search.evaluate(search.env.uniform_plan(), "again")

    with pytest.raises(AgentError, match="more than its 2"):
        Scripted(spend).search(make_env(), 2, seed=0)


def test_an_agent_that_proposes_nothing_is_rejected():
    with pytest.raises(AgentError, match="no plan"):
        Scripted(lambda _: None).search(make_env(), 2, seed=0)


def test_playing_the_encoded_actions_of_a_plan_evaluates_that_plan():
    plans = []

    def play(search):
        plan = search.env.uniform_plan()
        actions = iter(search.env.encode(plan))
        plans.append((plan, search.play(lambda *_: np.array([next(actions)]), "script").plan))

    Scripted(play).search(make_env(), 1, seed=0)
    assert plans[0][0] == plans[0][1]


def test_seconds_of_the_trials_sum_to_the_search(capfd):
    result = RandomSearch().search(make_env(), 5, seed=0, progress=True)
    assert sum(t.seconds for t in result.trials) <= result.seconds
    assert "search" in capfd.readouterr().err


def test_uniform_is_the_environments_uniform_plan_evaluated_once():
    env = make_env()
    result = Uniform().search(env, 50, seed=0)
    assert [t.plan for t in result.trials] == [env.uniform_plan()]


class TestLocalSearch:
    @pytest.mark.parametrize("budget", ["macs=0.3", "macs=0.45:0.5", "macs=0.5,bytes=0.4"])
    def test_no_neighbour_leaves_the_budget(self, budget):
        env = make_synthetic(6, 2, budget=budget)
        rng = np.random.default_rng(0)
        plan = env.uniform_plan()
        for _ in range(60):
            plan = neighbour(env, plan, rng, 0.5)
            assert env.budget.is_met(env.cost_ratio(plan))

    def test_a_neighbour_leaves_no_room_for_one_more_step_of_the_others(self):
        env = make_synthetic(6, 2)
        rng = np.random.default_rng(0)
        start = env.uniform_plan()
        for _ in range(20):
            plan = neighbour(env, start, rng, 0.35)
            values = plan.values_for(env.decisions)
            raisable = []
            for i, decision in enumerate(env.decisions):
                higher = [c for c in decision.choices if c > values[i]]
                if higher:
                    one_up = CompressionPlan.from_values(
                        env.decisions, [*values[:i], higher[0], *values[i + 1 :]]
                    )
                    if env.budget.is_met(env.cost_ratio(one_up)):
                        raisable.append(i)
            # The moved decisions (at most two) stay where they were put; all others are full.
            assert len(raisable) <= 2

    def test_never_accepts_a_worse_plan(self):
        result = LocalSearch().search(make_env(6), 40, seed=0)
        best = np.maximum.accumulate([t.reward for t in result.trials])
        assert result.reward == best[-1] > best[0]

    def test_finds_the_optimum_of_a_problem_small_enough_to_enumerate(self):
        from itertools import product

        env = make_synthetic(3, 1)
        cost, limit = env.costs["macs"], 0.5 * env.original_cost["macs"]
        plans = [
            CompressionPlan.from_values(env.decisions, values)
            for values in product(*(d.choices for d in env.decisions))
            if cost(values) <= limit
        ]
        optimum = max(env.learner.evaluate(plan) for plan in plans)
        assert LocalSearch().search(env, 80, seed=0).reward == pytest.approx(optimum, abs=2e-3)

    def test_a_senseless_step_is_rejected(self):
        with pytest.raises(ValueError, match="max_step"):
            LocalSearch(max_step=0.0)


class TestRegistry:
    def test_a_misspelt_agent_is_named_with_the_nearest(self):
        with pytest.raises(ValueError, match=r"did you mean 'ddpg'.*local, .*uniform"):
            make_agent("dpg")

    def test_an_unknown_option_is_named(self):
        with pytest.raises(ValueError, match="learning_rat"):
            make_agent("ddpg", learning_rat=0.1)
        with pytest.raises(ValueError, match="speed"):
            make_agent("local", speed=1)

    @pytest.mark.parametrize("name", sorted(AGENTS))
    def test_every_name_builds_an_agent_of_that_name(self, name):
        assert make_agent(name, finalists=2).name == name

    def test_the_deterministic_ones_are_known_by_their_labels(self):
        assert {name for name in AGENTS if is_deterministic(name)} == {
            "uniform", "deep-heavy", "shallow-heavy", "sensitivity", "sensitivity-threshold",
            "gradient", "layer-errors",
        }  # fmt: skip
        assert is_deterministic("sensitivity:points=3,env.budget=macs=0.3")
        assert not is_deterministic("nobody")

    def test_nothing_is_built_to_know_it(self, monkeypatch):
        def missing(*_arguments, **_options):
            raise MissingDependencyError("pip install it")

        monkeypatch.setattr(TPE, "__init__", missing)
        monkeypatch.setattr(Uniform, "__init__", missing)
        assert not is_deterministic("tpe:storage=x")
        assert is_deterministic("uniform")

    def test_a_negative_number_of_finalists_is_rejected(self):
        with pytest.raises(ValueError, match="finalists"):
            make_agent("uniform", finalists=-1)

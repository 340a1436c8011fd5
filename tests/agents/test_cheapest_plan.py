"""The cheapest plan that keeps a score, against all plans of small spaces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from amc_compress.agents import LocalSearch, make_agent
from amc_compress.agents.floors.cheapest import FloorSearch
from amc_compress.agents.logging import EpisodeLogger
from amc_compress.agents.testing.contract import watch
from amc_compress.agents.trials import AgentError, SearchStopped
from amc_env import Budget, CompressionEnv, CompressionPlan, InfeasibleBudgetError
from amc_env.recorded_tasks.synthetic import SyntheticLearner, make_synthetic


def small_env(seed: int = 0, budget: str = "macs=1.0") -> CompressionEnv:
    return CompressionEnv(SyntheticLearner(4, seed=seed, round_to=16), budget)


def all_plans(env: CompressionEnv) -> list[CompressionPlan]:
    grids = itertools.product(*(d.choices for d in env.decisions))
    return [CompressionPlan.from_values(env.decisions, values) for values in grids]


def cheapest(env: CompressionEnv, floor: float, cost: str) -> float:
    """By looking at every plan."""
    met = [p for p in all_plans(env) if env.budget.is_met(env.cost_ratio(p))]
    return min(env.cost_ratio(p)[cost] for p in met if env.learner.evaluate(p) >= floor)


@pytest.mark.parametrize(("seed", "cost"), [(0, "macs"), (1, "params"), (2, "bytes")])
def test_it_is_the_cheapest_of_all_plans(seed: int, cost: str):
    env = small_env(seed)
    floor = env.learner.original_score - 0.05
    found = FloorSearch(env, LocalSearch, 120, seed, floor=floor, cost=cost).run()
    assert env.learner.evaluate(found.plan) >= floor
    assert env.cost_ratio(found.plan)[cost] <= cheapest(env, floor, cost) * 1.03 + 1e-12
    assert len(found.trials) <= 120
    assert [t.episode for t in found.trials] == list(range(len(found.trials)))
    assert env.budget == Budget(macs=1.0)  # as before


def test_several_plans_at_a_time_keep_the_floor_in_any_order_of_work():
    found = []
    for backwards in (False, True):
        env = small_env(0)
        floor = env.learner.original_score - 0.05
        service = watch(env, backwards=backwards)
        search = FloorSearch(env, LocalSearch, 40, 0, floor=floor, cost="macs", parallel=4)
        found.append(search.run())
        assert service.most == 4
        assert service.pending == 0
    assert [t.plan for t in found[0].trials] == [t.plan for t in found[1].trials]
    assert len(found[0].trials) <= 40
    assert env.learner.evaluate(found[0].plan) >= floor
    levels = [env.cost_ratio(level.plan)["macs"] for level in found[0].levels if level.kept]
    assert env.cost_ratio(found[0].plan)["macs"] <= min(levels)


def test_other_bounds_hold_and_equal_seeds_find_the_same():
    env = small_env(1, "params=0.2:0.8,macs=0.9")
    floor = env.learner.original_score - 0.06
    found, again = (
        FloorSearch(
            env, lambda: make_agent("tpe"), 40, 3, floor=floor, cost="macs", descent=0.5
        ).run()
        for _ in range(2)
    )
    assert [t.plan for t in found.trials] == [t.plan for t in again.trials]
    assert found.plan == again.plan
    assert env.budget.is_met(env.cost_ratio(found.plan))
    best = cheapest(env, floor, "macs")
    assert best <= env.cost_ratio(found.plan)["macs"] <= 1.2 * best


def test_what_follows_a_level_decides():
    env = small_env(0)

    def after(plan: CompressionPlan) -> float:  # it recovers half of what was lost
        return (env.learner.evaluate(plan) + env.learner.original_score) / 2

    floor = env.learner.original_score - 0.05
    found = FloorSearch(
        env, LocalSearch, 120, 0, floor=floor, cost="macs", after=after, levels=6
    ).run()
    assert after(found.plan) >= floor > env.learner.evaluate(found.plan)
    assert len(found.levels) <= 6
    best = min(env.cost_ratio(p)["macs"] for p in all_plans(env) if after(p) >= floor)
    assert best <= env.cost_ratio(found.plan)["macs"] <= 1.25 * best
    kept = [level for level in found.levels if level.kept]
    assert kept[-1].plan == found.plan
    assert kept[-1].final_score >= floor


def test_a_plan_that_the_whole_validation_split_rejects_is_none():
    class Optimist(SyntheticLearner):
        def evaluate_full(self, plan: CompressionPlan) -> float:
            return self.evaluate(plan) - 0.02

    env = CompressionEnv(Optimist(4, seed=0, round_to=16), "macs=1.0")
    floor = env.learner.original_score - 0.05
    found = FloorSearch(env, LocalSearch, 80, 0, floor=floor, cost="macs").run()
    assert env.learner.evaluate_full(found.plan) >= floor or found.plan == CompressionPlan.full(
        env.decisions
    )


def test_a_floor_that_nothing_keeps_is_an_error_with_the_best_score():
    env = small_env(0, "macs=0.3")
    with pytest.raises(InfeasibleBudgetError, match=r"No plan within macs=0\.3 .* best has 0\."):
        FloorSearch(env, LocalSearch, 30, 0, floor=0.919, cost="macs").run()
    assert env.budget == Budget(macs=0.3)
    roomy = small_env(0)
    with pytest.raises(InfeasibleBudgetError, match=r"best has 0\.92"):
        FloorSearch(roomy, LocalSearch, 1, 0, floor=0.95, cost="macs").run()
    few = FloorSearch(roomy, LocalSearch, 3, 0, floor=0.8, cost="macs").run()
    assert len(few.trials) == 3
    with pytest.raises(ValueError, match="No cost named 'energy'"):
        FloorSearch(env, LocalSearch, 30, 0, floor=0.5, cost="energy").run()


def test_a_search_that_is_stopped_has_what_it_found():
    env = small_env(0)
    floor = env.learner.original_score - 0.05
    seen = []

    def stop(trial):
        seen.append(trial)
        if len(seen) == 10:
            raise SearchStopped

    found = FloorSearch(env, LocalSearch, 100, 0, floor=floor, cost="macs", on_trial=stop).run()
    assert len(found.trials) == len(seen) == 10
    assert env.learner.evaluate(found.plan) >= floor


@pytest.mark.parametrize("name", ["local", "tpe", "ddpg-one-shot", "ddpg"])
def test_every_agent_ends_where_it_is_stopped(name: str):
    env = make_synthetic(n_layers=4, budget="macs=0.5")
    stopped = []

    def stop(trial):
        stopped.append(trial)
        if len(stopped) == 5:
            raise SearchStopped

    result = make_agent(name).search(env, 50, seed=0, on_trial=stop)
    assert len(result.trials) == 5
    assert result.reward == max(t.reward for t in result.trials)
    assert np.isfinite(result.reward)


def test_nothing_found_before_the_stop_is_said():
    env = small_env(0, "macs=0.3")

    def stop(trial):
        raise SearchStopped

    with pytest.raises(AgentError, match="stopped before any plan"):
        FloorSearch(env, LocalSearch, 30, 0, floor=0.919, cost="macs", on_trial=stop).run()


def test_a_warm_start_is_where_the_bisection_begins():
    env = small_env(0)
    floor = env.learner.original_score - 0.05
    first = FloorSearch(env, LocalSearch, 120, 0, floor=floor, cost="macs").run()
    again = FloorSearch(
        env, LocalSearch, 12, 1, floor=floor, cost="macs", warm_start=first.trials
    ).run()
    assert env.cost_ratio(again.plan)["macs"] <= env.cost_ratio(first.plan)["macs"]
    assert len(again.trials) <= 12
    known = {trial.plan for trial in first.trials}
    assert all(trial.plan not in known for trial in again.trials if trial.source == "descent")


def test_scores_of_the_whole_validation_split_have_a_floor_of_their_own():
    class Harder(SyntheticLearner):  # for the original as well
        def evaluate_full(self, plan: CompressionPlan) -> float:
            return self.evaluate(plan) - 0.1

    env = CompressionEnv(Harder(4, seed=0, round_to=16), "macs=1.0")
    floor = env.learner.original_score - 0.05
    plain = FloorSearch(small_env(0), LocalSearch, 80, 0, floor=floor, cost="macs").run()
    found = FloorSearch(
        env, LocalSearch, 80, 0, floor=floor, cost="macs", full_floor=floor - 0.1
    ).run()
    assert found.plan == plain.plan
    nothing = FloorSearch(env, LocalSearch, 80, 0, floor=floor, cost="macs")
    with pytest.raises(InfeasibleBudgetError):
        nothing.run()


def test_every_trial_is_logged_and_the_best_is_the_cheapest_that_keeps_the_floor():
    env, rows, ends = small_env(0), [], []
    floor = env.learner.original_score - 0.05

    class Logger(EpisodeLogger):
        def __init__(self) -> None:
            pass

        def start(self, env, agent, settings):
            assert "cheapest plan" in agent

        def log(self, trial, best, scalars):
            rows.append((trial, best))

        def finish(self, best):
            ends.append(best)

    found = FloorSearch(env, LocalSearch, 30, 0, floor=floor, cost="macs", logger=Logger()).run()
    assert [trial for trial, _ in rows] == list(found.trials)
    costs = [best.cost_ratio["macs"] for _, best in rows]
    assert costs == sorted(costs, reverse=True)
    assert [end.plan for end in ends] == [found.plan]

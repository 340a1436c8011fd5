"""Optuna's samplers as agents: what is asked, what is told, and studies that processes share."""

from __future__ import annotations

import builtins
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
from support.selection import quick

from amc_compress.agents import (
    CMAES,
    NSGA2,
    TPE,
    AgentError,
    GaussianProcess,
    LocalSearch,
    OptunaSearch,
    RandomSearch,
    Trial,
    make_agent,
    pareto_front,
)
from amc_compress.agents.samplers.space import RequestSpace
from amc_env import CompressionEnv, CompressionPlan
from amc_env.errors import MissingDependencyError
from amc_env.recorded_tasks.synthetic import SyntheticLearner, make_synthetic


class TestRequestSpace:
    @pytest.mark.parametrize("spend", [True, False])
    def test_the_middle_of_the_box_is_the_centre(self, spend):
        env = make_synthetic(n_layers=6, seed=3)
        centre = LocalSearch().search(env, 30, seed=0).plan
        space = RequestSpace(env, centre, spend)
        assert space.plan(np.full(6, 0.5)) == centre

    @pytest.mark.parametrize("spend", [True, False])
    def test_parameters_of_a_plan_mean_that_plan(self, spend):
        env = make_synthetic(kind="joint", n_layers=4, seed=1)
        space = RequestSpace(env, env.uniform_plan(), spend)
        rng = np.random.default_rng(0)
        for _ in range(20):
            plan = space.plan(rng.random(env.n_decisions))
            assert space.plan(space.parameters(plan)) == plan

    def test_projected_requests_may_leave_budget_unspent(self):
        env = make_synthetic(n_layers=6, seed=3)
        space = RequestSpace(env, env.uniform_plan(), spend=False)
        assert env.cost_ratio(space.plan(np.full(6, 0.1)))["macs"] < 0.2


class TestSearching:
    @pytest.mark.parametrize(
        "agent",
        [
            TPE(),
            CMAES(),
            pytest.param(GaussianProcess(), marks=pytest.mark.slow),
            OptunaSearch("random"),
        ],
    )
    def test_no_evaluation_is_spent_on_a_plan_twice_while_there_are_others(self, agent):
        env = make_synthetic(n_layers=5, seed=3)
        result = agent.search(env, 25, seed=0)
        assert len({trial.plan for trial in result.trials}) == 25

    @pytest.mark.parametrize("agent", [pytest.param(TPE(), marks=pytest.mark.slow), CMAES()])
    def test_samplers_beat_random_search_of_equal_length(self, agent):
        gains = []
        for instance in (3, 4):
            env = make_synthetic(10, instance)
            random = RandomSearch().search(env, 80, 0).reward
            gains.append(agent.search(env, 80, 0).reward - random)
        assert np.mean(gains) > 0.02

    def test_a_warm_start_is_the_initial_mean(self):
        env = make_synthetic(n_layers=10, seed=3)
        found = LocalSearch().search(env, 150, seed=1)
        cold = CMAES().search(env, 12, seed=0)
        warm = CMAES().search(env, 12, seed=0, warm_start=found.trials)
        assert np.mean([t.reward for t in warm.trials]) > np.mean([t.reward for t in cold.trials])

    def test_nsga2_finds_a_front_below_the_budget(self):
        env = make_synthetic(n_layers=8, seed=3, budget="macs=0.6")
        result = NSGA2().search(env, 150, seed=0)
        front = pareto_front(result.trials, ["macs"])
        costs = [trial.cost_ratio["macs"] for trial in front]
        rewards = [trial.reward for trial in front]
        assert len(front) >= 5
        assert costs == sorted(costs)
        assert rewards == sorted(rewards)
        assert costs[0] < 0.45 < costs[-1] <= 0.6

    def test_objectives_may_be_named(self):
        env = make_synthetic(n_layers=4, seed=3)
        result = TPE(objectives="macs, bytes").search(env, 15, seed=0)
        assert len(result.trials) == 15

    def test_an_unknown_objective_is_rejected_with_what_there_is(self):
        with pytest.raises(AgentError, match=r"speed.*macs"):
            TPE(objectives="speed").search(make_synthetic(4), 5, seed=0)

    def test_samplers_of_one_objective_reject_more(self):
        with pytest.raises(ValueError, match="one objective"):
            CMAES(objectives="macs")

    def test_unknown_samplers_are_rejected_with_those_there_are(self):
        with pytest.raises(ValueError, match=r"bayes.*tpe, gp"):
            OptunaSearch("bayes")

    @pytest.mark.parametrize(("name", "package"), [("tpe", "optuna"), ("cmaes", "cmaes")])
    def test_a_missing_package_is_said_with_the_line_that_installs_it(
        self, name, package, monkeypatch
    ):
        real = builtins.__import__

        def without(module, *arguments, **keywords):
            if module == package:
                raise ImportError(module)
            return real(module, *arguments, **keywords)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(MissingDependencyError, match=r"pip install .*\[optuna\]"):
            make_agent(name)


def trial(reward: float, macs: float, size: float) -> Trial:
    plan = CompressionPlan({"a:keep_ratio": macs})
    return Trial(0, plan, reward, reward, {"macs": macs, "bytes": size}, 0.0, "x")


class TestParetoFront:
    def test_is_what_no_other_beats(self):
        good, cheap, beaten = trial(0.9, 0.5, 0.4), trial(0.7, 0.2, 0.4), trial(0.6, 0.3, 0.4)
        assert pareto_front([beaten, good, cheap]) == [cheap, good]

    def test_equal_trials_are_there_once(self):
        assert len(pareto_front([trial(0.9, 0.5, 0.4), trial(0.9, 0.5, 0.4)])) == 1

    def test_only_the_named_costs_count(self):
        small, large = trial(0.9, 0.5, 0.1), trial(0.8, 0.5, 0.05)
        assert pareto_front([small, large], ["macs"]) == [small]
        assert len(pareto_front([small, large])) == 2

    def test_of_nothing_is_nothing(self):
        assert pareto_front([]) == []


def _work(storage: str, seed: int, episodes: int) -> None:
    TPE(storage=storage).search(make_synthetic(5, 3), episodes, seed)


class TestSharedStudy:
    def storage(self, tmp_path: Path, kind: str) -> str:
        return f"{'journal:' if kind == 'journal' else 'sqlite:///'}{tmp_path / 'study.file'}"

    def rewards(self, storage: str) -> list[float]:
        import optuna

        from amc_compress.agents.samplers.shared_study import _open_storage

        study = optuna.load_study(study_name="amc", storage=_open_storage(storage))
        return [t.values[0] for t in study.get_trials(deepcopy=False) if t.values]

    @pytest.mark.parametrize("kind", quick(["journal", "sqlite"], "journal"))
    def test_workers_see_each_others_evaluations(self, tmp_path, kind):
        storage, env = self.storage(tmp_path, kind), make_synthetic(5, 3)
        one = TPE(storage=storage).search(env, 12, seed=0)
        two = TPE(storage=storage).search(make_synthetic(5, 3), 12, seed=1)
        assert len(one.trials) == len(two.trials) == 12
        assert len(self.rewards(storage)) >= 22
        # The last evaluation goes to the best plan of all, unless it is one's own.
        assert two.reward >= one.reward

    @pytest.mark.slow
    def test_processes_at_the_same_time_lose_no_evaluation(self, tmp_path):
        storage = self.storage(tmp_path, "journal")
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_work, args=(storage, s, 8)) for s in (1, 2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert len(self.rewards(storage)) >= 14  # 2 x 8, but for what is evaluated last

    def test_a_killed_worker_goes_on_without_evaluating_again(self, tmp_path):
        storage = self.storage(tmp_path, "journal")

        class KilledError(Exception):
            pass

        def kill(found: Trial) -> None:
            if found.episode == 6:
                raise KilledError

        with pytest.raises(KilledError):
            TPE(storage=storage).search(make_synthetic(5, 3), 12, 0, on_trial=kill)
        before = len(self.rewards(storage))
        env = make_synthetic(5, 3)
        result = TPE(storage=storage).search(env, 12, 0)
        assert before == 6  # the seventh was evaluated, and never told
        assert len(result.trials) == 12
        assert env.n_evaluations == 12
        fresh = {t.plan for t in result.trials[before:]}
        assert not fresh & {t.plan for t in result.trials[:before]}

    def test_a_study_of_another_problem_is_rejected(self, tmp_path):
        storage = self.storage(tmp_path, "journal")
        TPE(storage=storage).search(make_synthetic(5, 3), 3, 0)
        dearer = CompressionEnv(
            SyntheticLearner(5, 3), "macs=0.5", cost_models={"bytes": lambda values: 9.0}
        )
        with pytest.raises(AgentError, match="another network, budget"):
            TPE(storage=storage).search(make_synthetic(5, 4), 3, 0)
        with pytest.raises(AgentError, match="another network, budget"):
            NSGA2(storage=storage).search(make_synthetic(5, 3), 3, 0)
        with pytest.raises(AgentError, match="another network, budget, reward"):
            TPE(storage=storage).search(make_synthetic(5, 3, reward="haq"), 3, 0)
        with pytest.raises(AgentError, match="another network, budget, reward"):
            TPE(storage=storage).search(dearer, 3, 0)
        TPE(storage=storage).search(make_synthetic(5, 3, action="absolute"), 3, 1)
        other = TPE(storage=storage, study="other").search(make_synthetic(5, 4), 3, 0)
        assert len(other.trials) == 3

    def test_a_storage_that_vanishes_ends_with_one_sentence(self, tmp_path):
        storage = self.storage(tmp_path, "journal")
        evaluated = []

        def vanish(found: Trial) -> None:
            evaluated.append(found)
            if found.episode == 4:
                (tmp_path / "study.file").unlink()
                (tmp_path / "study.file").mkdir()  # so that it cannot come back by itself

        with pytest.raises(AgentError, match=r"storage .* cannot be used any more: ") as caught:
            TPE(storage=storage).search(make_synthetic(5, 3), 12, 0, on_trial=vanish)
        assert len(evaluated) == 5
        assert "kept" not in str(caught.value)

    @pytest.mark.parametrize("kind", ["journal", "sqlite"])
    def test_nothing_is_said_to_be_kept_in_a_storage_that_was_deleted(self, tmp_path, kind):
        def delete(found: Trial) -> None:
            if found.episode == 4:
                (tmp_path / "study.file").unlink()

        storage = self.storage(tmp_path, kind)
        with pytest.raises(AgentError, match="remain in the trials of its run folder") as caught:
            TPE(storage=storage).search(make_synthetic(5, 3), 12, 0, on_trial=delete)
        assert re.search(
            r"study.file (is gone|does not hold the study any more) \(", str(caught.value)
        )
        assert "kept" not in str(caught.value)

    def test_evaluations_of_a_storage_that_can_be_read_are_said_to_be_kept(
        self, tmp_path, monkeypatch
    ):
        import optuna

        def full(*_arguments, **_options):
            raise OSError("No space left on device")

        def fill(found: Trial) -> None:
            if found.episode == 4:
                monkeypatch.setattr(optuna.Study, "tell", full)

        storage = self.storage(tmp_path, "journal")
        with pytest.raises(AgentError, match=r"No space left.*Its evaluations are kept"):
            TPE(storage=storage).search(make_synthetic(5, 3), 12, 0, on_trial=fill)
        assert len(self.rewards(storage)) == 4

    def test_a_storage_that_cannot_be_opened_is_said(self, tmp_path):
        missing = tmp_path / "nowhere" / "study.log"
        with pytest.raises(AgentError, match=r"cannot be used: .* Name another one"):
            TPE(storage=f"journal:{missing}").search(make_synthetic(5, 3), 3, 0)

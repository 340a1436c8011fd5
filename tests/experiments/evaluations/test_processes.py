"""Plans evaluated by processes: the same search, and processes that are killed or hang."""

from __future__ import annotations

import pytest
from support.accidents import Accident

from amc_compress.agents import make_agent
from amc_compress.agents.testing.contract import make_env
from amc_compress.evaluations import ray_workers
from amc_compress.evaluations.dispatcher import Dispatcher
from amc_compress.evaluations.payload import Payload
from amc_compress.evaluations.plans import PlanEvaluator, RemoteEvaluations
from amc_compress.evaluations.processes import Processes
from amc_compress.evaluations.where import Where
from amc_env import EvaluationError, InputDataError
from amc_env.errors import MissingDependencyError


def searched(env, workers: int, **options):
    backend = Processes(Payload.of(PlanEvaluator(env.learner)), workers)
    with RemoteEvaluations(lambda: Dispatcher(backend, **options), env.learner) as service:
        env.scores.service = service
        return make_agent("local").search(env, 12, 0, parallel=4)


def seen(result):
    return [(trial.plan, trial.score, trial.failure) for trial in result.trials]


@pytest.fixture(scope="module")
def in_process():
    return make_agent("local").search(make_env(), 12, 0, parallel=4)


@pytest.mark.parametrize("kind", ["kill", pytest.param("hang", marks=pytest.mark.slow)])
def test_accidents_change_nothing(tmp_path, in_process, kind):
    env = make_env()
    env.learner = Accident(env.learner, tmp_path, kind, times=2)
    result = searched(env, 2, timeout=None if kind == "kill" else 1.0)
    assert len([*tmp_path.iterdir()]) >= len(set(seen(result))) + 2  # they did happen
    assert seen(result) == seen(in_process)
    assert result.plan == in_process.plan


def test_nothing_is_prepared_for_workers_that_no_plan_needs(in_process, monkeypatch):
    def fails(*_):
        raise AssertionError("it was not needed")

    monkeypatch.setattr(Payload, "of", fails)
    env = make_env()
    for trial in in_process.trials:
        env.remember(trial.plan, trial.score)
    with Where(workers=2).evaluations(env.learner) as service:
        env.scores.service = service
        agent = make_agent("local")
        agent.finalists = 0  # which are evaluated on all images
        replayed = agent.search(env, 12, 0, parallel=4)
        assert seen(replayed) == seen(in_process)
        service.cancel()
        with pytest.raises(EvaluationError, match="Expected a plan before its score"):
            service.result()
        with pytest.raises(AssertionError, match="not needed"):
            service.submit([in_process.plan])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(in_process, workers):
    result = searched(make_env(), workers)
    assert seen(result) == seen(in_process)
    assert result.finalist_rewards == in_process.finalist_rewards


@pytest.mark.slow
def test_a_plan_that_kills_every_process_is_recorded_as_failed(tmp_path):
    env = make_env()
    env.learner = Accident(env.learner, tmp_path, "kill", times=3)
    result = searched(env, 1)
    failed = [trial for trial in result.trials if trial.failure]
    assert len(failed) == 1
    assert "killed" in failed[0].failure
    assert not failed[0].within_budget
    assert len(result.trials) == 12


class WithoutLoader:
    """Evaluates all images here alone: the loader does not travel."""

    def __init__(self, learner, here: bool = True) -> None:
        self._learner, self._here = learner, here

    def __getattr__(self, name):
        return getattr(self.__dict__["_learner"], name)

    def __reduce__(self):
        return WithoutLoader, (self._learner, False)

    def evaluate_full(self, plan):
        if not self._here:
            raise InputDataError("Expected the loader of the validation images.")
        return 0.5 + 0.1 * self._learner.evaluate(plan)


@pytest.mark.slow
def test_finalists_are_evaluated_here_where_their_loader_stays(in_process):
    env = make_env()
    env.learner = WithoutLoader(env.learner)
    result = searched(env, 1)
    assert seen(result) == seen(in_process)
    assert len(result.finalist_rewards) == 5


def test_without_ray_the_line_that_installs_it_is_said(monkeypatch):
    monkeypatch.setattr(ray_workers, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'amc-compress\[ray\]'"):
        ray_workers.RayWorkers(Payload.of(len), address="local")

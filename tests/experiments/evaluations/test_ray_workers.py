"""Plans evaluated by a cluster of Ray on this machine, parts of which are killed under way."""

from __future__ import annotations

import contextlib
import socket
from types import SimpleNamespace

import pytest
from support.accidents import Accident, node_of

from amc_compress.agents import make_agent
from amc_compress.agents.testing.contract import make_env
from amc_compress.comparison.searches.jobs import Job, carried_out
from amc_compress.comparison.tasks import Places
from amc_compress.evaluations.dispatcher import Dispatcher
from amc_compress.evaluations.payload import Payload
from amc_compress.evaluations.plans import PlanEvaluator, RemoteEvaluations
from amc_compress.evaluations.ray_workers import RayWorkers
from amc_compress.evaluations.where import Where
from amc_env import ArgumentError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'amc-compress[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
EVALUATIONS = 12
RECORDED = "digits-channels-recorded"


class Nodes:
    """A cluster whose head does no work."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.cluster = Cluster()
        self.add_head()
        for _ in range(count):
            self.add()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_head(self) -> None:
        options = {**NODE, "num_cpus": 0, "include_dashboard": False}
        self.cluster.add_node(**options, gcs_server_port=self._port)

    def add(self):
        return self.cluster.add_node(**NODE)

    def kill(self, node) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def kill_all(self) -> None:
        for node in [self.cluster.head_node, *self.cluster.worker_nodes]:
            self.kill(node)


@contextlib.contextmanager
def nodes(count: int):
    made = Nodes(count)
    try:
        yield made
    finally:
        made.kill_all()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Who has lost the head gives up after seconds rather than a minute."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")


@pytest.fixture(scope="module")
def in_process():
    return make_agent("local").search(make_env(), EVALUATIONS, 0, parallel=4)


@pytest.fixture(scope="module")
def cluster():
    with nodes(3) as made:
        yield made


def searched(env, address: str, workers: int | None, at=None, **options):
    """Searches; ``at`` maps the number of a trial to what is done when it was told."""
    backend = RayWorkers(Payload.of(PlanEvaluator(env.learner)), workers, 1, address)
    deeds = dict(at or {})

    def on_trial(trial) -> None:
        deeds.pop(trial.episode, lambda: None)()

    with RemoteEvaluations(lambda: Dispatcher(backend, **options), env.learner) as service:
        env.scores.service = service
        return make_agent("local").search(env, EVALUATIONS, 0, parallel=4, on_trial=on_trial)


def slow_env(place, **options):
    env = make_env()
    env.learner = Accident(env.learner, place, **options)
    return env


def seen(result):
    return [(trial.plan, trial.score, trial.failure) for trial in result.trials]


@pytest.mark.parametrize("workers", [1, 3, None])
def test_the_number_of_workers_changes_nothing(cluster, in_process, workers):
    result = searched(make_env(), cluster.address, workers)
    assert seen(result) == seen(in_process)
    assert result.finalist_rewards == in_process.finalist_rewards


def test_ray_is_started_where_there_is_none(in_process):
    assert seen(searched(make_env(), "local", 2)) == seen(in_process)


@pytest.mark.parametrize("kind", ["kill", "hang", "memory"])
def test_accidents_change_nothing(cluster, tmp_path, in_process, kind):
    env = slow_env(tmp_path, kind=kind, times=2)
    result = searched(env, cluster.address, 2, timeout=3.0 if kind == "hang" else None)
    assert len([*tmp_path.iterdir()]) >= len(set(seen(result))) + 2  # they did happen
    assert seen(result) == seen(in_process)


def test_a_plan_that_kills_every_process_is_recorded_as_failed(cluster, tmp_path):
    result = searched(slow_env(tmp_path, kind="kill", times=3), cluster.address, 1)
    failed = [trial for trial in result.trials if trial.failure]
    assert len(failed) == 1
    assert "killed" in failed[0].failure
    assert len(result.trials) == EVALUATIONS


def test_a_node_that_goes_and_one_that_comes_change_nothing(tmp_path, in_process):
    with nodes(1) as few:
        lost = next(iter(few.cluster.worker_nodes))
        at = {2: few.add, 4: lambda: few.kill(lost)}
        result = searched(slow_env(tmp_path, seconds=0.5), few.address, 3, at)
    assert seen(result) == seen(in_process)


def test_a_head_that_is_restarted_at_its_address_changes_nothing(tmp_path, in_process, capsys):
    with nodes(2) as some:

        def restart() -> None:
            some.kill_all()
            some.add_head()
            some.add()

        result = searched(slow_env(tmp_path, seconds=0.2), some.address, 2, {4: restart})
    assert seen(result) == seen(in_process)
    said = capsys.readouterr().err
    assert "the cluster is gone; trying to reach it" in said
    assert "the cluster is there again" in said


def test_every_node_has_one_worker_that_takes_it_whole(cluster):
    backend = RayWorkers(Payload.of(node_of), address=cluster.address, whole_nodes=True)
    with Dispatcher(backend) as dispatcher:
        dispatcher.submit([1.0] * 12)
        found = [dispatcher.result().value for _ in range(12)]
        assert backend.count == len(set(found)) == 3


def test_whole_searches_of_a_comparison(cluster, tmp_path):
    def outcomes(place, where):
        todo = [Job(RECORDED, "local", seed, 6, Places(), place) for seed in range(3)]
        return {
            record.key: (record.error, [(t.plan, t.reward) for t in record.trials])
            for _, record in carried_out(todo, where)
        }

    here = outcomes(tmp_path / "here", Where())
    assert outcomes(tmp_path / "there", Where(2, ray=cluster.address)) == here
    assert len(here) == 3


def test_a_cluster_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(ArgumentError, match="Expected a cluster of Ray for --ray 127"):
        RayWorkers(Payload.of(SimpleNamespace), 1, 1, "127.0.0.1:1")

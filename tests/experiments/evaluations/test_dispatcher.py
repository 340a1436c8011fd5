"""The dispatcher over workers without processes: order, attempts, timeouts, a backend that goes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from amc_compress.evaluations.dispatcher import Dispatcher
from amc_compress.evaluations.worker import Backend, BackendLostError, Worker, WorkerLostError
from amc_env import EvaluationError


class Scripted(Worker):
    """Does to a request what the script says; what it says nothing about is answered at once."""

    def __init__(self, backend: Stage) -> None:
        self._backend = backend

    def begin(self, request: Any) -> Future[Any]:
        self._backend.begun.append(request)
        self._backend.workers.setdefault(request, []).append(self)
        future: Future[Any] = Future()
        plans = self._backend.script.get(request, [])
        deed = plans.pop(0) if plans else None
        if isinstance(deed, Exception):
            future.set_exception(deed)
        elif deed == "hang":
            pass
        elif deed == "slow":
            threading.Timer(0.05, future.set_result, (10 * request,)).start()
        else:
            future.set_result(10 * request)
        return future

    def stop(self) -> None:
        self._backend.stopped += 1


class Stage(Backend):
    name = "the stage"

    def __init__(self, count: int, script: dict[Any, list[Any]]) -> None:
        self.count = count
        self.script = script
        self.begun: list[Any] = []
        self.workers: dict[Any, list[Worker]] = {}
        self.stopped = 0
        self.reconnections = 0

    def start(self) -> Worker:
        return Scripted(self)

    def reconnect(self) -> None:
        self.reconnections += 1


def lost() -> WorkerLostError:
    return WorkerLostError("its process was killed.")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_answers_come_in_the_order_of_submission(count):
    with Dispatcher(Stage(count, {0: ["slow"], 3: ["slow"]})) as dispatcher:
        dispatcher.submit(range(6))
        assert [dispatcher.result().value for _ in range(6)] == [0, 10, 20, 30, 40, 50]
        assert dispatcher.pending == 0


def test_what_ends_first_can_be_told_first():
    with Dispatcher(Stage(2, {0: ["slow"]})) as dispatcher:
        dispatcher.submit([0, 1])
        assert [dispatcher.finished()[0] for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("accident", [lost(), ValueError("no memory")])
def test_an_accident_costs_an_attempt_and_no_request(accident):
    stage = Stage(2, {1: [accident, accident]})
    with Dispatcher(stage) as dispatcher:
        dispatcher.submit([0, 1, 2])
        answers = [dispatcher.result() for _ in range(3)]
    assert [answer.value for answer in answers] == [0, 10, 20]
    assert [answer.attempts for answer in answers] == [1, 3, 1]


def test_a_request_that_fails_three_times_has_failed_and_the_others_go_on():
    with Dispatcher(Stage(1, {1: [lost(), lost(), lost()]})) as dispatcher:
        dispatcher.submit([0, 1, 2])
        answers = [dispatcher.result() for _ in range(3)]
    assert answers[1].failure == "It failed 3 times, the last time: its process was killed."
    assert [answer.value for answer in answers] == [0, None, 20]


def test_a_request_whose_node_went_keeps_its_attempts():
    gone = WorkerLostError("its node is gone.", blameless=True)
    with Dispatcher(Stage(1, {1: [gone] * 5})) as dispatcher:
        dispatcher.submit([0, 1])
        assert [dispatcher.result().value for _ in range(2)] == [0, 10]


def test_a_worker_that_hangs_is_stopped_and_its_request_tried_again():
    stage = Stage(1, {1: ["hang"]})
    with Dispatcher(stage, timeout=0.05, startup=0.0) as dispatcher:
        dispatcher.submit([0, 1, 2])
        assert [dispatcher.result().value for _ in range(3)] == [0, 10, 20]
        assert stage.stopped == 1


def test_a_request_that_failed_goes_to_another_worker_where_there_is_one():
    # One worker is to be started, then one is at work, and at last there are two that failed.
    stage = Stage(2, {0: ["slow", "slow"], 1: [ValueError("no memory")] * 3, 2: ["slow"]})
    with Dispatcher(stage) as dispatcher:
        dispatcher.submit([0, 1, 2])
        answers = [dispatcher.result() for _ in range(3)]
    assert [answer.value for answer in answers] == [0, None, 20]
    first, second, third = stage.workers[1]
    assert first is not second
    assert third in (first, second)
    alone = Stage(1, {1: [ValueError("no memory")]})
    with Dispatcher(alone) as dispatcher:
        dispatcher.submit([0, 1])
        assert [dispatcher.result().value for _ in range(2)] == [0, 10]


def test_where_nothing_succeeds_the_reason_is_said():
    script = {request: [ValueError("no such data")] * 3 for request in range(3)}
    with Dispatcher(Stage(1, script)) as dispatcher:
        dispatcher.submit(range(3))
        with pytest.raises(EvaluationError, match=r"first 3 requests to the stage failed.*no such"):
            dispatcher.result()


def test_a_backend_that_comes_back_loses_nothing():
    stage = Stage(2, {1: [BackendLostError("gone")] * 4, 2: [BackendLostError("gone")]})
    with Dispatcher(stage) as dispatcher:
        dispatcher.submit([0, 1, 2, 3])
        assert [dispatcher.result().value for _ in range(4)] == [0, 10, 20, 30]
    assert stage.reconnections >= 4


def test_a_backend_that_stays_away_ends_with_a_sentence():
    stage = Stage(1, {0: [BackendLostError("gone")]})
    stage.reconnect = lambda: Backend.reconnect(stage)
    with Dispatcher(stage) as dispatcher:
        dispatcher.submit([0])
        with pytest.raises(EvaluationError, match="resume the search when it can"):
            dispatcher.result()


def test_what_was_cancelled_is_not_told():
    with Dispatcher(Stage(1, {0: ["hang"]})) as dispatcher:
        dispatcher.submit([0, 1])
        dispatcher.cancel()
        dispatcher.submit([2])
        assert dispatcher.result().value == 20
        with pytest.raises(EvaluationError, match="Expected a request"):
            dispatcher.result()


def test_the_start_of_a_worker_is_not_a_part_of_the_time_of_its_request():
    stage = Stage(1, {0: ["hang"]})

    class Starting(Scripted):
        def __init__(self, backend: Stage) -> None:
            super().__init__(backend)
            self.ready = Future()
            threading.Timer(0.3, self.ready.set_result, (None,)).start()

    stage.start = lambda: Starting(stage)
    began = time.monotonic()
    with Dispatcher(stage, timeout=0.1, startup=60.0) as dispatcher:
        dispatcher.submit([0])
        assert dispatcher.result().attempts == 2
    assert 0.4 < time.monotonic() - began < 10.0

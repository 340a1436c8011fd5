"""How many workers a search keeps busy: a simulation, and two real processes.

In the simulation the workers are timers: an evaluation takes its second, and no work is done. What
is measured is what the search itself needs: the service that hands plans out and tells results, and
the agent, that thinks about each. Efficiency is ``evaluations x seconds / (workers x wall time)``.

    python -m amc_compress.benchmarks.speed.scaling --part service
    python -m amc_compress.benchmarks.speed.scaling --part agents
    python -m amc_compress.benchmarks.speed.scaling --part processes
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Annotated, Any

import numpy as np
import typer

from amc_compress.agents import make_agent
from amc_compress.benchmarks.bench import markdown, start
from amc_compress.comparison.tasks import Places, build_env, find_task
from amc_compress.evaluations.dispatcher import Dispatcher
from amc_compress.evaluations.payload import Payload
from amc_compress.evaluations.plans import PlanEvaluator, RemoteEvaluations, Request
from amc_compress.evaluations.processes import Processes
from amc_compress.evaluations.worker import Backend, Worker
from amc_env import CompressionPlan

AGENTS = ("random", "local", "evolution", "tpe", "ddpg-one-shot")
WORKERS = (1, 8, 64, 256, 1000)
FACTORS = (1, 2, 4)
"""Plans under way for each worker."""

VARIATION = 0.3
"""Coefficient of variation of times that are drawn."""

_ROUNDS = 10  # evaluations of each worker


class Clock:
    """Calls functions when their time has come, in one thread, however many wait."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        threading.Thread(target=self._run, daemon=True).start()

    def call(self, seconds: float, function: Callable[[], None]) -> None:
        """Calls a function so many seconds from now."""
        with self._wake:
            due = time.perf_counter() + seconds
            heapq.heappush(self._waiting, (due, next(self._numbers), function))
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting or self._waiting[0][0] > time.perf_counter():
                    pause = self._waiting[0][0] - time.perf_counter() if self._waiting else None
                    self._wake.wait(pause)
                function = heapq.heappop(self._waiting)[2]
            function()


class Timer(Worker):
    """Answers a request after a time, as if it had worked.

    Args:
        timers: Draw the times.
        clock: Tells when they are over.
    """

    def __init__(self, timers: Timers, clock: Clock) -> None:
        self._timers, self._clock = timers, clock

    def begin(self, request: Request) -> Future[Any]:  # noqa: D102
        future: Future[Any] = Future()
        seconds = self._timers.take()
        self._clock.call(seconds, lambda: future.set_result((_score(request), seconds, "timer")))
        return future

    def stop(self) -> None:  # noqa: D102
        pass


class Timers(Backend):
    """Timers in place of processes.

    Args:
        count: How many.
        seconds: Of every evaluation, on average.
        variation: Coefficient of variation of a lognormal distribution; 0 for equal times.

    Attributes:
        worked: Seconds of all evaluations.
    """

    name = "the timers"

    def __init__(self, count: int, seconds: float, variation: float) -> None:
        self.count = count
        self.worked = 0.0
        self._clock = Clock()
        self._seconds = drawn(seconds, variation)

    def take(self) -> float:
        """Draws the time of an evaluation that begins."""
        seconds = next(self._seconds)
        self.worked += seconds
        return seconds

    def start(self) -> Worker:  # noqa: D102
        return Timer(self, self._clock)


def drawn(mean: float, variation: float) -> Iterator[float]:
    """Yields times of a lognormal distribution."""
    rng, variance = np.random.default_rng(0), np.log1p(variation**2)
    while True:
        yield float(mean * rng.lognormal(-variance / 2, np.sqrt(variance)))


def _score(request: Request) -> float:
    """Any score that costs nothing: the mean root of the plan's values."""
    values = CompressionPlan.from_json(request[0]).values()
    return float(np.mean(np.sqrt([*values])))


def of_service(workers: int, ahead: int, seconds: float, variation: float) -> float:
    """Returns the efficiency of the service for a search that does not think.

    Args:
        workers: How many.
        ahead: Plans under way at a time.
        seconds: Of an evaluation.
        variation: Of these.
    """
    env = build_env(find_task("digits-channels-recorded"), Places(None, {}))
    plan, n = env.uniform_plan(), _ROUNDS * workers
    timers = Timers(workers, seconds, variation)
    with RemoteEvaluations(lambda: Dispatcher(timers), env.learner) as service:
        began = time.perf_counter()
        service.submit([plan] * min(ahead, n))
        for told in range(n):
            service.result()
            if told + ahead < n:
                service.submit([plan])
        return timers.worked / (workers * (time.perf_counter() - began))


def of_agent(
    name: str, workers: int, ahead: int, seconds: float, variation: float
) -> tuple[float, float]:
    """Returns the efficiency of a search, and the agent's processor seconds for each trial."""
    env = build_env(find_task("digits-channels-recorded"), Places(None, {}))
    n = _ROUNDS * workers
    timers = Timers(workers, seconds, variation)
    with RemoteEvaluations(lambda: Dispatcher(timers), env.learner) as service:
        env.scores.service = service
        began, worked = time.perf_counter(), time.thread_time()
        make_agent(name).search(env, n, 0, parallel=ahead)
        wall = time.perf_counter() - began
        return timers.worked / (workers * wall), (time.thread_time() - worked) / n


def of_processes(workers: int, n: int) -> tuple[float, float]:
    """Returns wall and processor seconds of random plans evaluated by real processes on digits."""
    env = build_env(find_task("digits-channels"), Places(None, {}))
    rng = np.random.default_rng(0)
    plans = [env.decode(rng.random(env.n_decisions)) for _ in range(n + workers)]
    backend = Processes(Payload.of(PlanEvaluator(env.learner)), workers)
    with RemoteEvaluations(lambda: Dispatcher(backend), env.learner) as service:
        service.submit(plans[:workers])  # every process is there before the clock is read
        for _ in range(workers):
            service.result()
        began, spent = time.perf_counter(), 0.0
        service.submit(plans[workers:])
        for _ in range(n):
            spent += service.result().cpu_seconds
        return time.perf_counter() - began, spent


def _print_service(seconds: float) -> None:
    rows = []
    for workers in WORKERS:
        row = [f"{workers:,}"]
        for variation in (0.0, VARIATION):
            for factor in FACTORS:
                row.append(f"{of_service(workers, factor * workers, seconds, variation):.3f}")
        rows.append(row)
    header = ["workers"]
    for times in ("equal times", f"lognormal, CV {VARIATION}"):
        header += [f"{times}, K = {factor} x workers" for factor in FACTORS]
    print(markdown(header, rows))


def _print_agents(seconds: float, names: tuple[str, ...], most: int) -> None:
    rows = []
    for name in names:
        row, thinks = [name], 0.0
        for workers in (w for w in WORKERS if 1 < w <= most):
            for variation in (0.0, VARIATION):
                efficiency, thinks = of_agent(name, workers, 2 * workers, seconds, variation)
                row.append(f"{efficiency:.3f}")
        rows.append([*row, f"{1000 * thinks:.1f} ms", f"{seconds / thinks:,.0f}"])
    header = ["agent (K = 2 x workers)"]
    for workers in (w for w in WORKERS if 1 < w <= most):
        header += [f"{workers}, equal times", f"{workers}, CV {VARIATION}"]
    print(markdown([*header, "thinks per trial", "workers it can feed"], rows))


def _print_processes(n: int) -> None:
    rows, first = [], 0.0
    for workers in range(1, (os.cpu_count() or 1) + 1):
        wall, spent = of_processes(workers, n)
        first = first or wall
        rows.append([workers, n, f"{wall:.1f} s", f"{spent:.1f} s", f"{first / wall:.2f}"])
    print(markdown(["workers", "evaluations", "wall", "CPU", "throughput / that of one"], rows))


def main(
    part: Annotated[str, typer.Option(help="service, agents or processes.")] = "service",
    seconds: Annotated[float, typer.Option(help="Of a simulated evaluation.")] = 1.0,
    agent: Annotated[str, typer.Option(help="Names, with commas.")] = ",".join(AGENTS),
    most: Annotated[int, typer.Option(help="Workers of the agents, at most.")] = 64,
    evaluations: Annotated[int, typer.Option(help="Of real processes.")] = 200,
) -> None:
    """Prints a table."""
    if part == "service":
        _print_service(seconds)
    elif part == "agents":
        _print_agents(seconds, tuple(agent.split(",")), most)
    elif part == "processes":
        _print_processes(evaluations)
    else:
        raise typer.BadParameter(f"Expected service, agents or processes, got {part!r}.")


if __name__ == "__main__":
    start(main)

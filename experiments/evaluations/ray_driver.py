"""The process that speaks to Ray for a search.

Ray ends the process that uses it once the node under it is gone. So this is one of its own, and the
search that started it goes on: it starts another one as soon as there is a cluster again. Messages
are tuples over a pipe; when it is closed, Ray ends this process's actors with it.
"""

from __future__ import annotations

import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from amc_compress.evaluations.payload import Function, Payload, RequestError, built, told
from amc_compress.evaluations.ray_order import Order, versions
from amc_env.validation.sentences import first_line

GRACE = 10.0
"""Seconds that Ray is given to notice that the node of a worker that is gone is gone as well."""

_TICK = 1.0  # seconds between two looks at the cluster
_STORE = 100 << 20  # bytes of the object store besides the payload: requests and scores are small
_RETRY = 10.0  # seconds after which a worker that could not start is started again

Message = tuple[Any, ...]


class Evaluator:
    """Answers requests in a process of the cluster."""

    _function: Function

    def prepare(self, data: Any, order: Order) -> str:
        """Builds what answers.

        Args:
            data: The payload's bytes, of dtype uint8; in the memory that the node's workers share.
            order: Of the search; its payload's bytes did not come along.

        Returns:
            The node's ID.

        Raises:
            RequestError: If the node cannot give the same scores.
        """
        if versions() != order.versions:
            raise RequestError(f"Expected {order.versions} on every node, got {versions()}")
        sys.path += [path for path in order.paths if path not in sys.path]
        self._function = built(order.payload.key, lambda: memoryview(data), order.threads)
        return str(ray.get_runtime_context().get_node_id())

    def answer(self, request: Any) -> Any:
        """Answers one request."""
        return told(self._function, request)


@dataclass
class _Actor:
    handle: Any
    place: str = ""  # the node that it is to run on; any if empty
    node: str = ""  # the one that it runs on, since it is prepared


class Driver:
    """Keeps as many actors as are wanted, and passes requests and answers on.

    Args:
        channel: To the search.
        order: What it wants.
    """

    def __init__(self, channel: Connection, order: Order) -> None:
        self._channel = channel
        self._order = order
        self._small = replace(order, payload=Payload(b"", order.payload.key))
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._actors: dict[int, _Actor] = {}
        self._suspects: list[tuple[float, str, Callable[[bool], None]]] = []
        self._numbers = 0
        self._not_before = 0.0
        self._short_since = math.inf
        self._told = -1
        self._data: Any = None
        self._is_open = True

    def connect(self) -> None:
        """Starts or joins the cluster, and puts the payload."""
        order = self._order
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if order.address == "local":
            options |= {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": len(order.payload.data) + _STORE,
            }
            if order.count is not None:
                options["num_cpus"] = order.count * order.threads
        else:
            options["address"] = order.address
        ray.init(**options)
        self._data = ray.put(np.frombuffer(order.payload.data, dtype=np.uint8))

    def serve(self) -> None:
        """Works until the search closes the channel."""
        threading.Thread(target=self._listen, daemon=True).start()
        looked = -math.inf
        while self._is_open:
            if time.monotonic() - looked > _TICK:
                looked = time.monotonic()
                self._look()
            try:
                event = self._events.get(timeout=_TICK)
            except queue.Empty:
                continue
            event()

    def _listen(self) -> None:
        """Queues what the search says; all else happens in one thread."""
        while True:
            try:
                message = self._channel.recv()
            except (EOFError, OSError):
                self._events.put(self._close)
                return
            self._events.put(lambda message=message: self._hear(message))  # type: ignore[misc]

    def _close(self) -> None:
        self._is_open = False

    def _say(self, *message: Any) -> None:
        try:
            self._channel.send(message)
        except OSError:  # the search is gone
            self._is_open = False

    def _hear(self, message: Message) -> None:
        kind, number, *rest = message
        actor = self._actors.get(number)
        if kind == "stop":
            if actor is not None:
                self._end(number)
            return
        ticket, request = rest
        if actor is None:  # it was found to be gone meanwhile
            self._say("lost", ticket, "its process is gone", False)
            return
        future = actor.handle.answer.remote(request).future()
        future.add_done_callback(
            lambda done: self._events.put(lambda: self._answered(number, ticket, done))
        )

    def _answered(self, number: int, ticket: int, done: Any) -> None:
        error = done.exception()
        if error is None:
            self._say("answer", ticket, done.result())
        elif isinstance(error, ray.exceptions.RayTaskError):
            self._say("raised", ticket, first_line(error.cause))
        else:
            reason = _reason(error)
            # Of a node that goes one hears first that its workers do not answer.
            grace = GRACE if isinstance(error, ray.exceptions.ActorUnavailableError) else 0.0
            self._suspect(number, grace, lambda by_node: self._say("lost", ticket, reason, by_node))

    def _suspect(self, number: int, grace: float, tell: Callable[[bool], None]) -> None:
        """Ends an actor, and tells, as soon as that is known, whether its node is gone as well."""
        actor = self._actors.get(number)
        node = actor.node if actor is not None else ""
        self._end(number)
        self._suspects.append((time.monotonic() + grace, node, tell))
        self._look()

    def _end(self, number: int) -> None:
        actor = self._actors.pop(number, None)
        if actor is not None:
            ray.kill(actor.handle, no_restart=True)

    def _look(self) -> None:
        """Starts actors that are missing; tells of those that are gone if their node is, too."""
        nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
        now = time.monotonic()
        waiting, self._suspects = self._suspects, []
        for suspect in waiting:
            until, node, tell = suspect
            if node not in nodes or now >= until:
                tell(node not in nodes)
            else:
                self._suspects.append(suspect)
        missing = self._missing(nodes)
        wanted = len(self._actors) + len(missing)
        if now >= self._not_before:
            for place in missing:
                self._begin(place, int(nodes[place]["Resources"]["CPU"]) if place else 0)
        ready = sum(bool(actor.node) for actor in self._actors.values())
        self._tell_shortage(now, ready, wanted)

    def _missing(self, nodes: Mapping[str, Any]) -> list[str]:
        """Returns where actors are missing: nodes, or an empty text for anywhere."""
        room = {
            node: int(facts["Resources"].get("CPU", 0) // self._order.threads)
            for node, facts in nodes.items()
        }
        if self._order.whole_nodes:
            taken = {actor.place for actor in self._actors.values()}
            return [node for node, workers in room.items() if workers and node not in taken]
        # One that is gone is replaced when it is known why: its request is the first to be tried.
        wanted = self._order.count or sum(room.values())
        return [""] * (wanted - len(self._actors) - len(self._suspects))

    def _tell_shortage(self, now: float, ready: int, wanted: int) -> None:
        """Says once, and after a moment, that there are fewer workers than were asked for."""
        if ready >= wanted or ready != self._told:
            self._short_since, self._told = now, ready
        elif now - self._short_since > GRACE:
            self._short_since = math.inf
            self._say("workers", ready, wanted)

    def _begin(self, place: str, processors: int) -> None:
        """Starts an actor; on a node that is named it takes all of its processors."""
        self._numbers += 1
        number, processors = self._numbers, processors or self._order.threads
        options: dict[str, Any] = {"num_cpus": processors, "max_restarts": 0}
        if place:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place, soft=False)
        handle = ray.remote(Evaluator).options(**options).remote()
        self._actors[number] = _Actor(handle, place)
        future = handle.prepare.remote(self._data, self._small).future()
        future.add_done_callback(
            lambda done: self._events.put(lambda: self._prepared(number, done))
        )

    def _prepared(self, number: int, done: Any) -> None:
        if number not in self._actors:  # ended meanwhile
            return
        error = done.exception()
        if error is None:
            self._actors[number].node = done.result()
            self._say("worker", number)
            return
        self._end(number)
        self._not_before = time.monotonic() + _RETRY
        self._say("broken", first_line(getattr(error, "cause", error)))


def _reason(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "low on memory" in text:
        return "its process was ended for want of memory"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "its process does not answer any more"
    return "its process was killed; is there enough memory?"


def main() -> None:
    """Serves the search at the other end of the pipe that the first argument numbers."""
    channel = Connection(int(sys.argv[1]))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    driver = Driver(channel, channel.recv())
    try:
        driver.connect()
    except Exception as error:
        channel.send(("unreachable", first_line(error)))
        return
    channel.send(("connected",))
    driver.serve()
    ray.shutdown()

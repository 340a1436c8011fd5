"""Times an ONNX model and attributes the time to its layers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from amc_compress.learners.export.runtime import open_session, time_in_turns
from amc_compress.learners.latency.networks import RECURRENT, LatencyError, marked_layer

Array = npt.NDArray[np.float64]

# Whatever else the machine does makes a call slower, never faster.
QUANTILE = 0.2
_NOTHING = "amc_nothing"
_WARM_UP = 5
_LEAST_ROUNDS = 20
_PRODUCTS = ("Conv", "Gemm", "MatMul", *RECURRENT)
_LEAST_SHARE = 0.05  # of a microsecond, for a node faster than the profiler can see


Feed: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Input -> what a session is called with."""


def empty_model(feed: Feed) -> Any:
    """Returns a model that hands back one number: what calling a session costs."""
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feed.items()
    ]
    name, first = next(iter(feed.items()))
    graph = helper.make_graph(
        [helper.make_node("Shape", [name], [_NOTHING])],
        "empty",
        inputs,
        [helper.make_tensor_value_info(_NOTHING, TensorProto.INT64, [first.ndim])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def time_together(sessions: Sequence[Any], feed: Feed, seconds: float) -> list[float]:
    """Times sessions in turns.

    Args:
        sessions: Opened models.
        feed: What each is called with.
        seconds: About how many processor seconds to measure.

    Returns:
        Milliseconds per call of each: a low quantile of all rounds.
    """
    calls = [partial(session.run, None, feed) for session in sessions]
    times = np.array(time_in_turns(calls, seconds, least=_LEAST_ROUNDS))
    return [float(quantile) for quantile in np.quantile(times, QUANTILE, axis=1)]


def layer_times(model: Any, feed: Feed, total: float, n_layers: int, runs: int) -> Array:
    """Splits the time of a network among its layers.

    A layer has the time of its own node and of everything since the layer before it: activations,
    sums, changes of layout, quantization; the last layer has everything behind it too. The
    profiler makes every node slower by about the same time, which is taken off so that the layers
    add up to ``total``.

    Args:
        model: A model with marked layers.
        feed: What it is called with.
        total: Milliseconds that the layers add up to.
        n_layers: How many there are.
        runs: Calls under the profiler.

    Returns:
        Milliseconds of each layer, shape ``(n_layers,)``.

    Raises:
        LatencyError: If a layer does not show up in the profile.
    """
    nodes = _profile(model, feed, runs)
    durations = np.array([duration for _, _, duration in nodes])
    excess = (durations.sum() - 1000.0 * total) / len(nodes)
    shares = np.maximum(durations - max(excess, 0.0), _LEAST_SHARE)
    shares *= total / shares.sum()
    times = np.zeros(n_layers)
    seen: list[int] = []
    waiting = 0.0
    for (name, operator, _), share in zip(nodes, shares.tolist(), strict=True):
        waiting += share
        number = marked_layer(name)
        if number is not None and any(kind in operator for kind in _PRODUCTS):
            times[number] += waiting
            waiting = 0.0
            seen.append(number)
    if len(set(seen)) < n_layers:
        raise LatencyError(
            f"ONNX Runtime merged or removed {n_layers - len(set(seen))} of the {n_layers} layers; "
            f"they cannot be measured one by one."
        )
    times[seen[-1]] += waiting
    return times


def _profile(model: Any, feed: Feed, runs: int) -> list[tuple[str, str, float]]:
    """Returns (name, operator, microseconds) of every node in the order they run."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            model, enable_profiling=True, profile_file_prefix=str(Path(folder) / "profile")
        )
        for _ in range(_WARM_UP + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    order: dict[str, tuple[str, list[int]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            order.setdefault(name, (event["args"]["op_name"], []))[1].append(event["dur"])
    # The profiler rounds down to whole microseconds; the mean of the faster half sees below that.
    return [
        (name, operator, 0.5 + float(np.mean(sorted(times[_WARM_UP:])[: max(runs // 2, 1)])))
        for name, (operator, times) in order.items()
    ]

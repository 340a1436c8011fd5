"""What quantizing one layer costs, all others float: errors of its output, and gradient scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.gradient_scores import (
    Scores,
    curvature_root,
    falling,
    main_output,
    output_rows,
    rise_from_covariance,
)
from amc_compress.learners.layers.bit_layers import BitLayer, bit_layer, channel_axis
from amc_compress.learners.layers.quantized import with_input
from amc_compress.learners.layers.substitution import substituted
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import (
    Call,
    Inputs,
    Split,
    ask,
    counted_rows,
    hooked,
    mask_of,
    rows,
)
from amc_compress.learners.tasks.task import Task
from amc_env.plan import Decision, DecisionKind

_ERROR_IMAGES = 32
_SCORE_IMAGES = 64

Rounded = Callable[[Tensor], Tensor]
"""What becomes of a layer's weights, or of its input; a quantizer for example."""

See = Callable[[Decision, int, nn.Module, Tensor, Tensor], None]
"""``(decision, index of the choice, layer, its output in float, change of the output)``."""


def layer_errors(
    network: nn.Module,
    inputs: Inputs,
    decisions: Sequence[Decision],
    quantizers: Mapping[str, Sequence[Rounded | None]],
) -> dict[str, np.ndarray]:
    """Returns squared error over squared output for every choice of every decision.

    Means over images and positions do not count: biases repair them.

    Args:
        network: The folded float network in ``eval`` mode.
        inputs: Of calibration; the first 32 samples are used.
        decisions: What is decided.
        quantizers: Decision key -> quantizer per choice; ``None`` leaves the tensor in float.
    """
    curves = {d.key: np.zeros(len(d.choices)) for d in decisions}

    def measure(
        decision: Decision, index: int, layer: nn.Module, outputs: Tensor, change: Tensor
    ) -> None:
        energy = _energy(outputs, layer, mask)
        lost = _energy(change, layer, mask) / energy if energy > 0.0 else 0.0
        curves[decision.key][index] = lost

    few = rows(inputs, slice(0, _ERROR_IMAGES))
    mask = mask_of(few)
    watch_changes(network, few, decisions, quantizers, measure)
    return curves


@torch.no_grad()
def watch_changes(
    network: nn.Module,
    inputs: Inputs,
    decisions: Sequence[Decision],
    quantizers: Mapping[str, Sequence[Rounded | None]],
    see: See,
) -> None:
    """Shows what every choice changes of its layer's output, while the float network runs.

    Args:
        network: The folded float network in ``eval`` mode.
        inputs: One batch.
        decisions: What is decided.
        quantizers: Decision key -> quantizer per choice; choices of ``None`` change nothing, and
            are not shown.
        see: Called for every choice at every call of its layer.
    """

    def show(layer: nn.Module, call: Call, outputs: Any, name: str) -> None:
        before = main_output(layer, outputs)
        for d in decisions:
            if d.target != name:
                continue
            for index, quantizer in enumerate(quantizers[d.key]):
                if quantizer is not None:
                    found = _quantized(layer, places[name], call, d.kind, quantizer)
                    see(d, index, layer, before, main_output(layer, found) - before)

    handles = []
    places = _places(network, decisions)
    for name, place in places.items():
        handles.append(
            network.get_submodule(place.module).register_forward_hook(
                lambda layer, args, kwargs, outputs, name=name: show(
                    layer, Call(args, kwargs), outputs, name
                ),
                with_kwargs=True,
            )
        )
    with hooked(handles):
        ask(network, inputs)


def _places(network: nn.Module, decisions: Sequence[Decision]) -> dict[str, BitLayer]:
    """Returns where the weights of the decided layers are."""
    found = {}
    for name in dict.fromkeys(d.target for d in decisions):
        place = bit_layer(network, name)
        assert place is not None
        found[name] = place
    return found


def _quantized(
    layer: nn.Module, place: BitLayer, call: Call, kind: DecisionKind, quantizer: Rounded
) -> Any:
    """Returns what a layer makes of quantized weights, or of a quantized input.

    Its forward alone, around all hooks: this is called by one.
    """
    args, kwargs, used = call.args, dict(call.kwargs), {}
    if kind is DecisionKind.WEIGHT_BITS:
        used[place.parameter] = quantizer(layer.get_parameter(place.parameter))
    else:
        args, kwargs = with_input(args, kwargs, quantizer)
    with substituted(layer, used):
        return layer.forward(*args, **kwargs)


def _energy(outputs: Tensor, layer: nn.Module, mask: Tensor | None) -> float:
    axis = channel_axis(layer, outputs)
    if mask is not None:
        outputs, axis = counted_rows(outputs.movedim(axis, -1), mask), 1
    others = [d for d in range(outputs.dim()) if d != axis]
    return float((outputs - outputs.mean(others, keepdim=True)).double().square().sum())


def gradient_scores(
    network: nn.Module,
    inputs: Inputs,
    targets: Any,
    decisions: Sequence[Decision],
    quantizers: Mapping[str, Sequence[Rounded | None]],
    matched: Collection[str],
    task: Task = CLASSIFICATION,
) -> Scores:
    """Returns decision key -> the estimated rise of the loss for every choice, in nats.

    By equation (1) of ``gradient_scores`` with what really changes of the outputs of 64
    images, by the weights or by the inputs. 0 for layers without a gradient: nothing of
    them reaches the loss.

    Args:
        network: The folded float network in ``eval`` mode.
        inputs: Of calibration, on its device.
        targets: Theirs.
        decisions: What is decided.
        quantizers: Decision key -> quantizer per choice; ``None`` leaves the tensor in float.
        matched: Layers whose outputs get the float network's means back, where they have a bias.
        task: Whose loss it is.
    """
    modules = {name: place.module for name, place in _places(network, decisions).items()}
    by_module = curvature_root(
        network, [Split(inputs, targets)], dict.fromkeys(modules.values()), task
    )
    roots = {name: by_module[place] for name, place in modules.items() if place in by_module}
    changes: dict[tuple[str, int], _Moments] = {}

    def measure(
        d: Decision, index: int, layer: nn.Module, _outputs: Tensor, change: Tensor
    ) -> None:
        moments = changes.setdefault((d.key, index), _Moments())
        moments.add(counted_rows(output_rows(layer, change.float()), mask))

    few = rows(inputs, slice(0, _SCORE_IMAGES))
    mask = mask_of(few)
    watch_changes(network, few, decisions, quantizers, measure)
    curves = {d.key: np.zeros(len(d.choices)) for d in decisions}
    for d in decisions:
        centred = d.target in matched and network.get_submodule(d.target).bias is not None
        for index in range(len(d.choices)):
            if (d.key, index) in changes and d.target in roots:
                covariance = changes[d.key, index].covariance(centred)
                curves[d.key][index] = rise_from_covariance(roots[d.target], covariance)
    return {key: falling(curve) for key, curve in curves.items()}


class _Moments:
    """Sums over rows of their outer products and of themselves."""

    def __init__(self) -> None:
        self._rows = 0
        self._products: Tensor | float = 0.0
        self._sums: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """Adds rows, shape (n, outputs)."""
        self._rows += len(rows)
        self._products = self._products + (rows.T @ rows).double()
        self._sums = self._sums + rows.double().sum(0)

    def covariance(self, centred: bool) -> Tensor:
        """Returns the mean outer product, of the rows minus their mean if ``centred``."""
        assert isinstance(self._products, Tensor)
        assert isinstance(self._sums, Tensor)
        second, mean = self._products / self._rows, self._sums / self._rows
        return second - torch.outer(mean, mean) if centred else second

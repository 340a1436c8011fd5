"""What quantizing one layer costs its output, while all else is float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_env.plan import Decision, DecisionKind
from learners.masking import mask_of
from learners.quantization.quantizer import Quantizer

_IMAGES = 32


@torch.no_grad()
def layer_errors(
    network: nn.Module,
    images: Tensor,
    decisions: Sequence[Decision],
    quantizers: Mapping[str, Sequence[Quantizer | None]],
) -> dict[str, np.ndarray]:
    """Returns squared error over squared output for every choice of every decision.

    Means over images and positions do not count: biases repair them.

    Args:
        network: The folded float network in ``eval`` mode.
        images: Calibration images; the first 32 are used.
        decisions: What is decided.
        quantizers: Decision key -> quantizer per choice; ``None`` leaves the tensor in float.
    """
    curves = {d.key: np.zeros(len(d.choices)) for d in decisions}

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor, name: str) -> None:
        for d in decisions:
            if d.target == name:
                curves[d.key] = _curve(layer, inputs[0], outputs, d.kind, quantizers[d.key])

    handles = []
    for name in dict.fromkeys(d.target for d in decisions):
        handles.append(
            network.get_submodule(name).register_forward_hook(
                lambda layer, inputs, outputs, name=name: measure(layer, inputs, outputs, name)
            )
        )
    try:
        network(images[:_IMAGES])
    finally:
        for handle in handles:
            handle.remove()
    return curves


def _curve(
    layer: nn.Module,
    x: Tensor,
    outputs: Tensor,
    kind: DecisionKind,
    quantizers: Sequence[Quantizer | None],
) -> np.ndarray:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    energy = _energy(outputs, layer)
    curve = np.zeros(len(quantizers))
    if energy <= 0.0:
        return curve
    for index, quantizer in enumerate(quantizers):
        if quantizer is None:
            continue
        if kind is DecisionKind.WEIGHT_BITS:
            found = _apply(layer, x, _masked(layer, quantizer(layer.weight)))
        else:
            found = _apply(layer, quantizer(x), _masked(layer, layer.weight))
        curve[index] = _energy(found - outputs, layer) / energy
    return curve


def _masked(layer: nn.Module, weight: Tensor) -> Tensor:
    mask = mask_of(layer)
    return weight if mask is None else weight * mask


def _apply(layer: nn.Conv2d | nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        result: Tensor = layer._conv_forward(x, weight, layer.bias)
        return result
    return F.linear(x, weight, layer.bias)


def _energy(outputs: Tensor, layer: nn.Module) -> float:
    axis = 1 if isinstance(layer, nn.Conv2d) else outputs.dim() - 1
    others = [d for d in range(outputs.dim()) if d != axis]
    return float((outputs - outputs.mean(others, keepdim=True)).double().square().sum())

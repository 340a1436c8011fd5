"""Small quantized networks and their ONNX files, for the tests of the export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.export.integers.onnx_quantized import export_quantized
from amc_compress.learners.layers.structure import fold_norms, quantize_layer, replace_module
from amc_compress.learners.quantization.uniform.quantizer import (
    UniformQuantizer,
    affine_parameters,
    split_buckets,
)
from amc_compress.learners.testing.networks import EXAMPLE, make_data

CALIBRATION = torch.cat([images for images, _ in make_data(96, 2)])
IMAGES = torch.cat([images for images, _ in make_data(200, 3)])


def quantized(
    model: nn.Module,
    weight_bits: int | None = 8,
    activation_bits: int | None = 8,
    *,
    symmetric: bool = True,
    granularity: str = "channel",
    clip: float = 1.0,
) -> nn.Module:
    """Folds and quantizes a network by hand: ranges are the extremes, times ``clip``."""
    model = copy.deepcopy(model).eval()
    fold_norms(model)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def watch(name: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].min() * clip, inputs[0].max() * clip

        return note

    hooks = [m.register_forward_pre_hook(watch(n)) for n, m in layers.items()]
    with torch.no_grad():
        model(CALIBRATION)
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        weights = inputs = None
        if weight_bits is not None:
            rows = layer.weight.detach().flatten(1)
            if granularity != "channel":
                rows = split_buckets(rows, 9) if granularity == "split" else rows.view(1, -1)
            steps = affine_parameters(rows.amin(1), rows.amax(1), weight_bits, symmetric)
            weights = UniformQuantizer(
                weight_bits, *steps, symmetric=symmetric, granularity=granularity, bucket_size=9
            )
        if activation_bits is not None:
            low, high = seen[name]
            steps = affine_parameters(low.view(1), high.view(1), activation_bits, False)
            inputs = UniformQuantizer(activation_bits, *steps, symmetric=False)
        replace_module(model, name, quantize_layer(layer, weights, inputs))
    return model


def export(network: nn.Module, path: Path, **options: Any) -> Any:
    return export_quantized(
        network, EXAMPLE, path, calibration=CALIBRATION, images=IMAGES, **options
    )

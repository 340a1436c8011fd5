"""The size that costs promise of a sparse network is the size of the file, within 3%."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks.sparse_networks import layer_names, measured_points, sparsified
from torch import nn

from amc_compress.learners.layers.structure import fold_norms, quantize_layers
from amc_compress.learners.packing.format import PREFIX
from amc_compress.learners.packing.packed_file import packed_bytes
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import load_weights, make_model
from amc_env import CompressionPlan
from amc_env.costs.costs import BytesCost
from amc_env.costs.storage import StorageFormat
from amc_env.plan import Decision, DecisionKind

CHECKPOINT = Path("checkpoints") / "resnet20_cifar10.safetensors"
GRID = tuple((k + 1) / 200 for k in range(200))


def resnet(weights: Path | None) -> nn.Module:
    """With the weights of a file, or with Laplacian ones."""
    network = make_model("resnet20", in_channels=3).eval()
    if weights is not None:
        load_weights(network, weights)
        return network
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name in layer_names(network):
            layer = network.get_submodule(name)
            draw = rng.laplace(scale=0.05, size=tuple(layer.weight.shape))
            layer.weight.copy_(torch.from_numpy(draw))
    return network


def decisions_of(network: nn.Module) -> tuple[Decision, ...]:
    return tuple(
        Decision(n, DecisionKind.DENSITY, GRID, network.get_submodule(n).weight.numel())
        for n in layer_names(network)
    )


class Sizes:
    """Sizes of the files of one network, and what costs say before one is written."""

    def __init__(self, network: nn.Module, change=lambda network: network, **form) -> None:
        self.network, self.change = network, change
        self.decisions = decisions_of(network)
        typical = self.file(dict.fromkeys(layer_names(network), 0.25))
        header = PREFIX.size + PREFIX.unpack_from(typical)[2]
        storage = StorageFormat(fixed_bytes=header, **form)
        graph = trace(network, torch.zeros(1, 3, 32, 32)).graph
        self.cost = BytesCost(graph, self.decisions, storage)

    def file(self, densities: dict[str, float]) -> bytes:
        plan = CompressionPlan({f"{name}:density": d for name, d in densities.items()})
        return packed_bytes(self.change(sparsified(self.network, densities)), plan=plan)

    def errors(self, densities: dict[str, float]) -> tuple[float, float]:
        """Of the prediction, and of what budgets count."""
        size, values = len(self.file(densities)), list(densities.values())
        return self.cost.predict(values) / size - 1, self.cost(values) / size - 1


def check_floats(weights: Path | None) -> None:
    network = resnet(weights)
    sizes = Sizes(network)
    names = layer_names(network)
    rng = np.random.default_rng(1)
    for densities in (
        *(dict.fromkeys(names, d) for d in (0.02, 0.05, 0.2, 0.5, 0.9, 1.0)),
        {n: float(rng.choice(GRID[3:])) for n in names},
    ):
        for error in sizes.errors(densities):
            assert abs(error) < 0.03, (densities, error)


@pytest.mark.slow
def test_floats_that_were_not_measured():
    check_floats(None)


@pytest.mark.data
def test_trained_floats_that_were_not_measured(shared_data):
    check_floats(shared_data / CHECKPOINT)


def with_codes(network: nn.Module, kind: str, bits: int) -> nn.Module:
    network = copy.deepcopy(network)
    fold_norms(network)
    made = {}
    for name in layer_names(network):
        layer = network.get_submodule(name)
        if kind == "codebook":
            quantizer = CodebookQuantizer.fit(
                layer.weight, bits, init="quantile", mask=layer.weight_mask
            )
        else:
            scale = layer.masked_weight().detach().abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
            quantizer = UniformQuantizer(bits, scale.clamp(min=1e-6), granularity="channel")
        made[name] = (quantizer, None)
    return quantize_layers(network, made)


def check_codes(weights: Path | None, kind: str, bits: int) -> None:
    network = resnet(weights)
    names = layer_names(network)
    points: dict[str, dict[int, list[tuple[float, float]]]] = {n: {bits: []} for n in names}
    for density in (0.02, 0.1, 0.3, 0.6, 1.0):
        quantized = with_codes(sparsified(network, density), kind, bits)
        for name, (_, found, of_value) in measured_points(quantized).items():
            points[name][bits].append((found, of_value))
    sizes = Sizes(
        network,
        lambda sparse: with_codes(sparse, kind, bits),
        weight_bits=dict.fromkeys(names, float(bits)),
        granularity="tensor" if kind == "codebook" else "channel",
        bytes_per_bucket=0.0 if kind == "codebook" else 4.0,
        codebook=kind == "codebook",
        folded=fold_norms(copy.deepcopy(network)),
        value_bits=points,
    )
    full = dict.fromkeys(names, 1.0)
    for density in (0.02, 0.06, 0.2, 0.45, 1.0):
        error, counted = sizes.errors(dict.fromkeys(names, density))
        assert abs(error) < 0.03, (density, error)
        assert counted >= error - 1e-12
    # What budgets count beyond it is bounded, see SparseForm.
    weights_alone = sum(d.size for d in sizes.decisions) * math.log2(1 + 2.0**-bits) / 8
    assert sizes.cost(list(full.values())) < 1.1 * (
        sizes.cost.predict(list(full.values())) + weights_alone
    )


@pytest.mark.slow
def test_three_bit_codebooks():
    check_codes(None, "codebook", 3)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_codebooks(bits):
    check_codes(None, "codebook", bits)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_uniform_codes(bits):
    check_codes(None, "uniform", bits)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_trained_codebooks(bits, shared_data):
    check_codes(shared_data / CHECKPOINT, "codebook", bits)

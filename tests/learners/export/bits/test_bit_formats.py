"""Bits per layer in other libraries' words, read by those libraries where they are installed."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.libraries import installed
from torch import Tensor, nn

from amc_compress.learners import CodebookQuantization, UniformQuantization
from amc_compress.learners.export import bits as formats
from amc_compress.learners.export.bits import WeightScheme, llama_cpp
from amc_env import CompressionPlan, InputDataError, MissingDependencyError

SCHEMES = {
    "model.layers.0.self_attn.q_proj": WeightScheme(4, 16),
    "model.layers.0.mlp.down_proj": WeightScheme(3, None, symmetric=False),
    "model.layers.1.self_attn.q_proj": WeightScheme(4, 16),
    "model.layers.1.mlp.down_proj": None,
    "lm_head": WeightScheme(8, 16, symmetric=False),
}


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.q_proj = nn.Linear(32, 32)
        self.mlp.down_proj = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.mlp.down_proj(torch.relu(self.self_attn.q_proj(x)))
        return x + hidden


class Decoder(nn.Module):
    """Linear layers under the names that language models have."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Half(), Half()])
        self.lm_head = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.model.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(x)
        return logits


@pytest.fixture
def network() -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder().eval()


def learner(kind: type, network: nn.Module, **options: Any) -> Any:
    batches = [(torch.linspace(-1, 1, 4 * 32).view(4, 32), torch.arange(4))]
    return kind(network, batches[0][0], batches, batches, proxy="none", **options)


def rounded(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """Affine rounding from the least to the largest of a group, 0 among the values."""
    groups = weight.view(-1, scheme.group_size or weight.shape[1])
    low, high = (getattr(groups, name)(1, keepdim=True).values for name in ("min", "max"))
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (2**scheme.bits - 1)
    zero = (-low / scale).round()
    steps = ((groups / scale).round() + zero).clamp(0, 2**scheme.bits - 1)
    return ((steps - zero) * scale).view_as(weight)


def test_plans_and_networks_have_the_same_schemes(network):
    made = learner(UniformQuantization, network, granularity="group", group_size=16)
    plan = made.fixed_plan(4)
    planned = formats.plan_schemes(plan, group_size=16)
    assert planned
    assert set(planned.values()) == {WeightScheme(4, 16)}
    found = formats.network_schemes(made.compress(plan))
    assert found.keys() == SCHEMES.keys()  # those that are not decided as well
    assert planned.items() <= found.items()
    assert found["lm_head"] == WeightScheme(8, 16)


def test_groups_are_given_where_they_divide_the_inputs(network):
    made = learner(UniformQuantization, network, symmetric=False)
    small = made.compress(made.fixed_plan(3))
    name = "model.layers.1.self_attn.q_proj"
    for size, expected in ((None, None), (16, 16), (24, None)):
        scheme = formats.network_schemes(small, group_size=size)[name]
        assert scheme == WeightScheme(3, expected, symmetric=False)


@pytest.mark.parametrize("size", [24, 128])
def test_groups_of_a_network_that_do_not_divide_its_inputs_are_not_handed_on(network, size):
    made = learner(UniformQuantization, network, granularity="group", group_size=size)
    found = formats.network_schemes(made.compress(made.fixed_plan(4)))
    assert {scheme.group_size for scheme in found.values()} == {None}


def test_what_no_library_reads_is_said(network):
    made = learner(CodebookQuantization, network)
    with pytest.raises(InputDataError, match=r"equally spaced values in .* got a codebook"):
        formats.network_schemes(made.compress(made.fixed_plan(3)))
    with pytest.raises(InputDataError, match="a network with quantized weights"):
        formats.network_schemes(network)
    with pytest.raises(InputDataError, match="a plan that decides bits"):
        formats.plan_schemes({"layer:density": 0.5})
    with pytest.raises(ValueError, match="2 to 8 bits, got 9"):
        formats.plan_schemes({"layer:weight_bits": 9})
    assert formats.plan_schemes(CompressionPlan({"layer:weight_bits": 32})) == {"layer": None}


def test_dictionaries_are_plain_json():
    for made in (
        formats.compressed_tensors_config,
        formats.auto_round_config,
        formats.gptqmodel_config,
        formats.torchao_config,
    ):
        assert json.loads(json.dumps(made(SCHEMES))) == made(SCHEMES)


def test_gptqmodel_reads_patterns_of_whole_names():
    """As its ``dynamic_get`` does: the first pattern that matches from the start decides."""
    dynamic = formats.gptqmodel_config(SCHEMES)

    def read(name: str) -> Any:
        for pattern, overrides in dynamic.items():
            if re.match(pattern[2:], name):
                return overrides if pattern.startswith("+:") else False
        return None

    assert read("model.layers.0.self_attn.q_proj") == {"bits": 4, "group_size": 16, "sym": True}
    assert read("model.layers.0.mlp.down_proj") == {"bits": 3, "group_size": -1, "sym": False}
    assert read("model.layers.1.mlp.down_proj") is False
    assert read("model.layers.0.mlp.down_proj_2") is None


def test_compressed_tensors_rounds_as_planned(network):
    installed("compressed_tensors", "quantization")
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    document = formats.compressed_tensors_config(SCHEMES)
    config = QuantizationConfig.model_validate(document)
    assert config.ignore == ["model.layers.1.mlp.down_proj"]
    apply_quantization_config(network, config)
    seen = {}
    for name in SCHEMES:
        layer = network.get_submodule(name)
        scheme = getattr(layer, "quantization_scheme", None)
        seen[name] = None if scheme is None else WeightScheme(
            scheme.weights.num_bits, scheme.weights.group_size, scheme.weights.symmetric
        )  # fmt: skip
        if scheme is None or scheme.weights.symmetric:
            continue
        groups = layer.weight.detach().view(len(layer.weight), -1, seen[name].group_size or 32)
        low, high = groups.amin(2), groups.amax(2)
        scale, zero = calculate_qparams(low, high, scheme.weights)
        found = fake_quantize(layer.weight.detach(), scale, zero, scheme.weights)
        torch.testing.assert_close(found, rounded(layer.weight.detach(), seen[name]))
    assert seen == SCHEMES


def test_torchao_rounds_as_our_quantizer_does(network):
    installed("torchao", "quantization", "core.config")
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    made = learner(
        UniformQuantization, network, granularity="group", group_size=16, symmetric=False,
        weight_range="minmax", scale_type="float32",
    )  # fmt: skip
    small = made.compress(made.fixed_plan(3))
    schemes = formats.network_schemes(small)
    config = config_from_dict(formats.torchao_config(schemes))
    quantize_(network, config, filter_fn=None)
    for name in SCHEMES:
        theirs = network.get_submodule(name).weight
        assert type(theirs).__name__ == "IntxUnpackedToInt8Tensor"
        ours = small.get_submodule(name).quantized_weight()
        torch.testing.assert_close(theirs.dequantize(), ours, rtol=0, atol=1e-6)


def test_torchao_leaves_float_layers(network):
    installed("torchao", "quantization", "core.config")
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    config = config_from_dict(formats.torchao_config(SCHEMES))
    before = network.model.layers[1].mlp.down_proj.weight.clone()
    rough = rounded(
        network.model.layers[0].mlp.down_proj.weight, SCHEMES["model.layers.0.mlp.down_proj"]
    )
    quantize_(network, config, filter_fn=None)
    assert torch.equal(network.model.layers[1].mlp.down_proj.weight, before)
    third = network.model.layers[0].mlp.down_proj.weight
    assert third.target_dtype == torch.int3
    torch.testing.assert_close(third.dequantize(), rough.detach())


def test_auto_round_resolves_every_layer(network):
    installed("auto_round", "compressors.utils")
    from auto_round.compressors.utils import set_layer_config

    network.config = SimpleNamespace(tie_word_embeddings=False)
    found, *_ = set_layer_config(
        network, formats.auto_round_config(SCHEMES), "W4A16", torch.float32, (nn.Linear,), (),
        quant_block_list=[["model.layers.0", "model.layers.1"]],
    )  # fmt: skip
    for name, scheme in SCHEMES.items():
        got = found[name]
        assert got["bits"] == (16 if scheme is None else scheme.bits)
        if scheme is not None:
            assert got["group_size"] == (scheme.group_size or -1)
            assert got["sym"] is (scheme.symmetric or scheme.bits == 8)


def test_llama_cpp_gets_the_least_type_with_enough_bits():
    names = {name: f"tensor.{i}" for i, name in enumerate(SCHEMES)}.get
    schemes = {**SCHEMES, "model.layers.1.mlp.down_proj": WeightScheme(7)}
    assert formats.tensor_types(schemes, names) == [
        "--tensor-type ^tensor\\.0\\.weight$=q4_k",
        "--tensor-type ^tensor\\.1\\.weight$=q3_k",
        "--tensor-type ^tensor\\.2\\.weight$=q4_k",
        "--tensor-type ^tensor\\.3\\.weight$=q8_0",
        "--tensor-type ^tensor\\.4\\.weight$=q8_0",
    ]
    with pytest.raises(InputDataError, match=r"a tensor of model\.layers\.0"):
        formats.tensor_types(SCHEMES, {}.get)


def test_llama_cpp_knows_the_names_and_types():
    gguf = installed("gguf")
    names = llama_cpp.gguf_names("llama", 2)
    arguments = formats.tensor_types(SCHEMES, names)
    assert arguments[:2] == [
        "--tensor-type ^blk\\.0\\.attn_q\\.weight$=q4_k",
        "--tensor-type ^blk\\.0\\.ffn_down\\.weight$=q3_k",
    ]
    assert arguments[-1] == "--tensor-type ^output\\.weight$=q8_0"
    for least, name in llama_cpp.TYPES.items():
        kind = gguf.GGMLQuantizationType[name.upper()]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        assert least <= 8 * size / block < least + 1.5
    assert llama_cpp.gguf_names("qwen2", 2)("model.layers.1.self_attn.o_proj") == (
        "blk.1.attn_output"
    )
    with pytest.raises(InputDataError, match=r"an architecture that llama\.cpp knows"):
        llama_cpp.gguf_names("resnet", 2)


def test_without_gguf_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match="pip install gguf"):
        llama_cpp.gguf_names("llama", 2)

"""Networks with adapters or packed weights, as other libraries leave them, are rejected by name."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from amc_compress import compress
from amc_compress.learners.networks.intake import take_in
from amc_env.errors import UntraceableModelError


class LoraLinear(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.merged_adapters = base, list[str]()
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class OwnLora(nn.Linear):
    """As loralib and many a script do it: matrices of the layer itself."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.lora_A = nn.Parameter(torch.zeros(2, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, 2))


class OtherAdapter(nn.Module):
    """Any other adapter of peft."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.merged_adapters = base, list[str]()


class Linear8bit(nn.Linear):
    """As those of bitsandbytes: the weight itself is packed."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        packed = torch.zeros(base.weight.shape, dtype=torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)


class Linear4bit(nn.Linear):
    """Of which the weight has yet to be packed."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.weight.quant_state = None  # type: ignore[attr-defined]


class QuantLinear(nn.Module):
    """As GPTQ and AWQ store a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        for name in ("qweight", "qzeros", "g_idx"):
            self.register_buffer(name, torch.zeros(4, 4, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(4))


class CompressedLinear(nn.Module):
    """As compressed-tensors stores a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        packed = torch.zeros(4, 4, dtype=torch.int32)
        self.weight_packed = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.ones(4))


class HQQLinear(nn.Module):
    """As HQQ stores a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.W_q = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)


ADAPTERS = (LoraLinear, OwnLora, OtherAdapter)
PACKED = (Linear8bit, Linear4bit, QuantLinear, CompressedLinear, HQQLinear)


@pytest.mark.parametrize("kind", [*ADAPTERS, *PACKED])
def test_the_sentence_names_the_layer_and_the_way_out(kind: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), kind(nn.Linear(4, 4)))  # type: ignore[call-arg]
    with pytest.raises(UntraceableModelError) as caught:
        take_in(net)
    text = str(caught.value)
    assert re.fullmatch(r"Expected [^\n]*\.", text)
    assert f"{kind.__name__} as '2'" in text
    if kind in ADAPTERS:
        assert "merge it first, model = model.merge_and_unload()" in text
    else:
        assert "load the float network that was quantized, or dequantize it first" in text


def test_the_front_door_says_it_before_it_asks_for_data() -> None:
    with pytest.raises(UntraceableModelError, match="merge_and_unload"):
        compress(nn.Sequential(LoraLinear(nn.Linear(4, 4))), [], [])


def test_other_integers_and_names_are_taken() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].register_buffer("scales", torch.ones(4))
    net.W_q = nn.Linear(2, 2)
    net.register_buffer("weight", torch.arange(3))
    assert take_in(net).network[0].weight.shape == (4, 4)

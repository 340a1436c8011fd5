"""Every kind of layer in few bits, against slow references by hand; files and notes of them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.packed_reader import reader
from torch import Tensor, nn

from amc_compress.learners.layers.bit_layers import bit_layer, bit_layers
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.quantized import quantized_layers, quantized_weights
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.structure import fold_norms, layer_weights, quantize_layers
from amc_compress.learners.packing.packed_file import load_packed, packed_bytes, save_packed
from amc_compress.learners.quantization import CodebookQuantization, UniformQuantization
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.quantization.uniform.scales import weight_scales
from amc_compress.learners.tracing.traced_model import trace


class Padded(nn.Conv2d):
    """A convolution that pads its input itself, as those of TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


def seeded(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IDS = torch.arange(12).view(2, 6) % 7
LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), seeded((2, 4, 9)), 0),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), seeded((2, 2, 4, 5, 4)), 0),
    "padded": (lambda: Padded(3, 4, 2, stride=2), seeded((2, 3, 6, 6)), 0),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), seeded((2, 4, 5)), 1),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, 2, 2, groups=2), seeded((2, 4, 5, 3)), 1,
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 3, 2), seeded((2, 4, 3, 2, 3)), 1),
    "depthwise transposed": (
        lambda: nn.ConvTranspose2d(4, 8, 3, groups=4), seeded((2, 4, 5, 3)), 0,
    ),
    "embedding": (lambda: nn.Embedding(7, 5), IDS, 1),
}  # fmt: skip
RECURRENT = {
    "lstm": lambda: nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(5, 4, batch_first=True),
    "rnn": lambda: nn.RNN(5, 4),
}


def made(build) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(build()).eval()


def by_hand(weight: Tensor, axis: int, bits: int = 4) -> tuple[Tensor, Tensor]:
    """Rounds channel by channel, each to its own largest number; returns the scales too."""
    rounded, scales = weight.clone(), []
    for channel in range(weight.shape[axis]):
        numbers = weight.select(axis, channel)
        step = numbers.abs().max() / (2 ** (bits - 1) - 1)
        rounded.select(axis, channel).copy_((numbers / step).round() * step)
        scales.append(step)
    return rounded, torch.stack(scales)


def quantizer(weight: Tensor, axis: int, bits: int = 4) -> UniformQuantizer:
    shared = {"symmetric": True, "granularity": "channel", "bucket_size": 256, "axis": axis}
    scale, zero = weight_scales(weight, bits, "minmax", **shared)
    return UniformQuantizer(bits, scale, zero, **shared)


def in_few_bits(network: nn.Module, inputs: Quantizer | None = None) -> nn.Module:
    graph = trace(network, IDS if "Embedding" in repr(network) else EXAMPLES[id(network)]).graph
    chosen = {}
    for name, place in bit_layers(network, graph, ()).layers.items():
        weight, _ = layer_weights(network, name)
        chosen[name] = (quantizer(weight, place.axis), inputs if place.has_input else None)
    return quantize_layers(copy.deepcopy(network), chosen)


EXAMPLES: dict[int, Tensor] = {}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_computes_what_rounding_by_hand_does(kind):
    build, x, axis = LAYERS[kind]
    network = made(build)
    EXAMPLES[id(network)] = x
    inputs = None
    if x.is_floating_point():
        inputs = UniformQuantizer(8, torch.tensor([0.05]), torch.tensor([128]), symmetric=False)
    quantized = in_few_bits(network, inputs)
    reference = copy.deepcopy(network)
    rounded, scales = by_hand(network[0].weight.detach(), axis)
    with torch.no_grad():
        reference[0].weight.copy_(rounded)
        read = x if inputs is None else ((x / 0.05).round().clamp(-128, 127) * 0.05)
        torch.testing.assert_close(quantized(x), reference(read))
        torch.testing.assert_close(finalise(quantized, quantized=True)(x), quantized(x))
    (weight,) = quantized_weights(quantized).values()
    torch.testing.assert_close(weight.quantizer.scale, scales)


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_multiply_rounded_weights(kind):
    network, x = made(RECURRENT[kind]), seeded((3, 6, 5))
    EXAMPLES[id(network)] = x
    quantized, reference = in_few_bits(network), copy.deepcopy(network)
    names = [n for n, p in network[0].named_parameters() if n.startswith("weight")]
    with torch.no_grad():
        for name in names:
            weight = reference[0].get_parameter(name)
            weight.copy_(by_hand(weight, 0)[0])
        for _ in range(2):  # nothing of the first call stays
            torch.testing.assert_close(quantized(x)[0], reference(x)[0])
    assert list(quantized_weights(quantized)) == [f"0.{name}" for name in names]
    copied = pickle.loads(pickle.dumps(copy.deepcopy(quantized)))
    assert torch.equal(copied(x)[0], quantized(x)[0])
    quantized(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in quantized.parameters())


def test_an_lstm_step_by_step():
    network, x = made(lambda: nn.LSTM(5, 4, batch_first=True)), seeded((3, 6, 5))
    EXAMPLES[id(network)] = x
    found = in_few_bits(network)(x)[0]
    lstm = network[0]
    of_inputs, of_states = (
        by_hand(w.detach(), 0)[0] for w in (lstm.weight_ih_l0, lstm.weight_hh_l0)
    )
    state = cell = torch.zeros(3, 4)
    for step in range(6):
        gates = x[:, step] @ of_inputs.T + lstm.bias_ih_l0 + state @ of_states.T + lstm.bias_hh_l0
        let_in, keep, new, out = gates.chunk(4, 1)
        cell = keep.sigmoid() * cell + let_in.sigmoid() * new.tanh()
        state = out.sigmoid() * cell.tanh()
        torch.testing.assert_close(found[:, step], state)


@pytest.mark.parametrize("kind", [*LAYERS, *RECURRENT])
def test_files_hold_codes_and_give_the_same_network(kind, tmp_path):
    build, x, _ = LAYERS.get(kind, (RECURRENT.get(kind), seeded((3, 6, 5)), 0))
    network = made(build)
    EXAMPLES[id(network)] = x
    quantized = in_few_bits(network)
    save_packed(quantized, tmp_path / "net.packed")
    loaded = load_packed(tmp_path / "net.packed", network)
    for found, expected in zip(_tensors(loaded(x)), _tensors(quantized(x)), strict=True):
        assert torch.equal(found, expected)
    scope = reader()
    header, arrays, masks = scope["read"](tmp_path / "net.packed")
    for name, weight in quantized_weights(quantized).items():
        assert torch.equal(weight.used(), quantized_weights(loaded)[name].used())
        stored = scope["weights"](header, arrays, masks, "0", weight.parameter)
        assert np.array_equal(stored, weight.used().detach().numpy()), name


@pytest.mark.parametrize("granularity", ["tensor", "channel", "split"])
def test_a_codebook_of_a_transposed_convolution_is_in_its_file(granularity, tmp_path):
    network = made(LAYERS["transposed 1d"][0])
    shared = {"granularity": granularity, "channel_scales": granularity == "tensor"}
    codes = CodebookQuantizer.fit(network[0].weight, 3, axis=1, bucket_size=7, **shared)
    quantized = quantize_layers(copy.deepcopy(network), {"0": (codes, None)})
    save_packed(quantized, tmp_path / "net.packed")
    used = quantized[0].quantized_weight().detach()
    assert torch.equal(load_packed(tmp_path / "net.packed", network)[0].quantized_weight(), used)
    scope = reader()
    assert np.array_equal(
        scope["weights"](*scope["read"](tmp_path / "net.packed"), "0"), used.numpy()
    )


def _tensors(answer) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else [answer[0]]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_codebook_along_axis_1_is_that_of_the_turned_weight(granularity):
    weight = seeded((5, 6, 3))
    options = {"granularity": granularity, "channel_scales": granularity == "tensor"}
    found = CodebookQuantizer.fit(weight, 2, axis=1, **options)
    expected = CodebookQuantizer.fit(weight.movedim(1, 0), 2, **options)
    assert torch.equal(found(weight), expected(weight.movedim(1, 0)).movedim(0, 1))
    assert torch.equal(found.decode(found.encode(weight)), found(weight).detach())
    assert torch.equal(
        Quantizer.from_description(found.describe()).codebook * 0, found.codebook * 0
    )
    assert Quantizer.from_description(found.describe()).axis == 1


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), seeded((2, 3, 8))),
        (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), seeded((2, 2, 3, 3, 3))),
        (Padded(3, 4, 2), nn.BatchNorm2d(4), seeded((2, 3, 5, 5))),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6), seeded((2, 4, 3, 3))),
    ],
)
def test_norms_fold_into_every_kind_of_convolution(layer, norm, x):
    norm.running_mean.copy_(seeded((len(norm.running_mean),), 1))
    norm.running_var.copy_(seeded((len(norm.running_mean),), 2).square() + 0.5)
    network = nn.Sequential(layer, norm).eval()
    expected = network(x)
    assert fold_norms(network) == {"1": "0"}
    torch.testing.assert_close(network(x), expected)


class Unusual(nn.Module):
    """Layers that get no bits, and a table whose weight a linear layer has too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.changing = nn.Embedding(7, 4, max_norm=1.0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.products = nn.Bilinear(4, 4, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.changing(ids)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.products(x, x))


def test_what_stays_in_float_is_named_with_its_reason():
    network = Unusual().eval()
    found = bit_layers(network, trace(network, IDS).graph, ())
    assert not {"table", "changing", "attention.out_proj", "products"} & found.layers.keys()
    assert "changes as it is read" in found.left["changing"]
    assert "reads its weight" in found.left["attention.out_proj"]
    assert "Bilinear is no layer that gets bits" in found.left["products.weight"]
    assert "table" in found.left
    notes = " ".join(found.notes())
    assert all(name in notes for name in found.left)


def test_bits_of_recurrent_layers_and_tables_are_those_of_weights_alone():
    network = nn.Sequential(nn.Embedding(7, 5), nn.LSTM(5, 4)).eval()
    found = bit_layers(network, trace(network, IDS).graph, ())
    assert list(found.layers) == ["0", "1.weight_ih_l0", "1.weight_hh_l0"]
    assert not any(layer.has_input for layer in found.layers.values())
    assert "1.weight_hh_l0" in found.notes()[0]
    assert bit_layer(network, "1.bias_ih_l0") is not None  # it is for the caller to ask for weights


class Mixed(nn.Module):
    """Two layers that get bits, and one that stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.convolution = nn.Embedding(7, 4), nn.Conv1d(4, 4, 3)
        self.products = nn.Bilinear(4, 4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.convolution(self.table(ids).transpose(1, 2)).mean(2)
        return self.products(x, x)


@pytest.mark.parametrize("kind", [UniformQuantization, CodebookQuantization])
def test_a_learner_says_what_stays_in_float_and_counts_the_file(kind):
    torch.manual_seed(0)
    network = Mixed()
    data = [(IDS.repeat(4, 1), torch.arange(8) % 3)] * 2
    learner = kind(network, IDS, data, data, precision="fp32", first_last_bits=None)
    assert learner.layers == ("table", "convolution")
    assert list(learner.left_float) == ["products.weight"]
    assert any("products.weight" in note for note in learner.notes)
    space = kind.decide(learner.traced, learner.options)
    assert space.decisions == learner.decisions
    assert set(space.notes) <= set(learner.notes)
    plan = learner.fixed_plan(4)
    values = plan.values_for(learner.decisions)
    size = len(packed_bytes(learner.compress(plan), plan=plan))
    assert learner.cost_models["bytes"](values) == pytest.approx(size, abs=8)
    for curves in (learner.layer_errors(), learner.gradient_scores()):
        assert all(curve[0] > curve[-1] for curve in curves.values())


def test_a_table_is_decided_even_as_the_first_layer():
    network = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 6), nn.Linear(6, 4)).eval()
    batches = [(IDS, IDS)]
    learner = UniformQuantization(network, IDS, batches, batches, task="agreement")
    assert {d.target for d in learner.decisions} == {"0", "1"}
    small = learner.compress(learner.fixed_plan(2))
    assert [layer.weight_quantizer.bits for layer in quantized_layers(small).values()] == [2, 2, 8]

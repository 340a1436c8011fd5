"""Layers that are too wide for a repair are named, not passed over in silence."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners import ChannelPruning, UniformQuantization, WeightSparsification
from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.moments.wide import WideLayer
from amc_compress.learners.candidates.reconstruction import prepare_reconstruction
from amc_compress.learners.layers.products import watching
from amc_compress.learners.layers.wide_layers import MAX_COLUMNS, wide_layers, wide_layers_note
from amc_compress.learners.testing.networks import EXAMPLE, make_data
from amc_env import CompressionPlan


def network(width: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(width * 64, 4)
        )


@pytest.mark.parametrize(("width", "is_wide"), [(78, False), (79, True)])
def test_a_layer_without_moments_is_named(width: int, is_wide: bool) -> None:
    learner = ChannelPruning(network(width), EXAMPLE, make_data(64, 1), make_data(64, 2))
    assert (width * 64 > MAX_COLUMNS) == is_wide
    assert wide_layers(learner.graph) == ({"3": width * 64} if is_wide else {})
    found = collect_statistics(network(width), [EXAMPLE], ["0", "3"])
    assert ("3" not in found) == is_wide
    said = [note for note in learner.notes if "inputs per output" in note]
    assert said == list(wide_layers_note(learner.graph, learner.by_channel))
    assert learner.by_channel == ({"3"} if is_wide else set())
    assert bool(said) == is_wide
    if is_wide:
        assert "3 (5,056)" in said[0]
        assert "channel by channel" in said[0]
        assert "without a repair" in wide_layers_note(learner.graph)[0]


LAYERS: dict[str, tuple[nn.Module, torch.Size]] = {
    "convolution": (nn.Conv2d(6, 5, 3, padding=1), torch.Size((40, 6, 7, 7))),
    "no bias": (nn.Conv2d(6, 5, 3, padding=1, bias=False), torch.Size((40, 6, 7, 7))),
    "flattened": (nn.Linear(6 * 4, 5), torch.Size((200, 6, 4))),
}


def seen(name: str, places: int, *, takes_shift: bool = False) -> tuple[WideLayer, Tensor]:
    """Returns the moments of a layer whose input channel 1 is made of channels 0 and 2."""
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1.0
    x[:, 1] = 0.5 * x[:, 0] - 2.0 * x[:, 2]
    x = x.flatten(1) if isinstance(layer, nn.Linear) else x
    wide = WideLayer(layer, places, len(x), 0, takes_shift=takes_shift)
    with watching({layer: wide}), torch.no_grad():
        layer(x)
    return wide, x


@pytest.mark.parametrize(("name", "places"), [("convolution", 9), ("no bias", 9), ("flattened", 4)])
def test_what_other_channels_tell_is_restored_at_every_place(name: str, places: int) -> None:
    wide, x = seen(name, places)
    per_channel = 4 if name == "flattened" else 1
    stay = torch.tensor([0, 2, 3, 5])
    inputs = (stay[:, None] * per_channel + torch.arange(per_channel)).flatten()
    outputs = torch.tensor([0, 2, 3])
    weight, bias = wide.solve(inputs, outputs)
    whole = wide.weight[outputs].clone()
    is_gone = torch.ones(wide.weight.shape[1], dtype=torch.bool)
    is_gone[inputs] = False
    # Channel 4 has nothing to do with the others: what it adds is lost but for its mean.
    alone = wide.weight[outputs][:, 4 * per_channel : 5 * per_channel].flatten(1)
    function = F.linear if name == "flattened" else partial(F.conv2d, padding=1)
    expected = function(x, whole, None if wide.bias is None else wide.bias[outputs])
    only = function(x[:, 4 * per_channel : 5 * per_channel],
                    whole[:, 4 * per_channel : 5 * per_channel])  # fmt: skip
    found = function(x[:, inputs], weight, bias)
    assert (bias is None) == (wide.bias is None)
    error, lost = found - expected, only - only.mean(0, keepdim=True)
    assert alone.shape == (3, places)
    if name == "flattened":
        assert error.square().mean() < 1.05 * lost.square().mean()
        assert error.mean(0).abs().max() < 1e-4
    unrepaired = function(
        x[:, inputs], whole[:, inputs], None if bias is None else wide.bias[outputs]
    )
    assert error.square().mean() < 0.3 * (unrepaired - expected).square().mean()


def test_one_place_is_least_squares() -> None:
    layer = nn.Linear(24, 5)
    x = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)) @ torch.randn(24, 24) + 1
    wide = WideLayer(layer, 1, 300, 0, takes_shift=False)
    with watching({layer: wide}), torch.no_grad():
        layer(x)
    moments = collect_statistics(layer, [x], [""], positions=1)
    usual = prepare_reconstruction(layer, moments)[""]
    inputs, outputs = torch.arange(0, 24, 2), torch.tensor([1, 4])
    for ours, expected in zip(
        wide.solve(inputs, outputs), usual.solve(inputs, outputs), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


def test_a_wide_layer_is_repaired_in_a_plan_and_travels() -> None:
    learner = ChannelPruning(network(79), EXAMPLE, make_data(64, 1), make_data(64, 2))
    plan = CompressionPlan({d.key: d.nearest(0.5) for d in learner.decisions})
    repaired = learner.compress(plan).get_parameter("3.weight")
    plain = learner.traced.slice(learner.kept_units(plan)).get_parameter("3.weight")
    assert repaired.shape == plain.shape == (4, 40 * 64)
    assert not torch.equal(repaired, plain)
    again = pickle.loads(pickle.dumps(learner))
    assert torch.equal(again.compress(plan).get_parameter("3.weight"), repaired)


def test_learners_say_it_where_they_repair() -> None:
    data = make_data(64, 1)
    sparse = WeightSparsification(network(79), EXAMPLE, data, make_data(64, 2))
    assert any("without a repair" in note for note in sparse.notes)
    quantized = UniformQuantization(network(79), EXAMPLE, data, make_data(64, 2))
    assert not any("without a repair" in note for note in quantized.notes)


def test_memory_decides_which_layers_are_wide() -> None:
    given = network(8), EXAMPLE, make_data(64, 1), make_data(64, 2)
    # The linear layer reads 512 columns, which take a megabyte.
    learners = {memory: ChannelPruning(*given, memory=memory) for memory in (None, 2**20, 2**19)}
    assert [list(x.by_channel) for x in learners.values()] == [[], [], ["3"]]
    assert "3 (512)" in learners[2**19].notes[-1]
    with pytest.raises(ValueError, match="Expected memory in bytes"):
        ChannelPruning(*given, memory=0)

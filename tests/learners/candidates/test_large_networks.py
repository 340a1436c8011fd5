"""Networks whose preparation would take minutes are asked for less, by a rule of their work."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from amc_compress.learners import ChannelPruning
from amc_compress.learners.candidates.inference.batch_sizes import fitting, handful
from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.moments import effort
from amc_compress.learners.candidates.moments.effort import Effort, affordable, effort_for
from amc_compress.learners.candidates.moments.products import LowerTriangle, UpperHalf, blocks_of
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model
from amc_env.graph import LayerGraph


def working(macs: float) -> LayerGraph:
    layer = SimpleNamespace(macs=lambda _: macs)
    return cast(LayerGraph, SimpleNamespace(layers=(layer,), full=dict))


def test_fewer_samples_go_through_a_network_where_they_are_large() -> None:
    sizes = {side: fitting(torch.zeros(4, 3, side, side), 125) for side in (32, 64, 128, 224, 512)}
    assert sizes == {32: 125, 64: 125, 128: 31, 224: 10, 512: 8}
    assert fitting(torch.zeros(4, 3, 224, 224), 128, least=32) == 32
    assert [len(handful(torch.zeros(8, 3, side, side))) for side in (64, 65)] == [8, 2]  # type: ignore[arg-type]


def test_only_networks_with_much_work_are_asked_for_less() -> None:
    vgg16_on_cifar, resnet50 = working(3.1e8), working(4.1e9)
    assert affordable(vgg16_on_cifar, 512) == 512
    assert effort_for(vgg16_on_cifar, 512, torch.bfloat16) == Effort()
    assert affordable(resnet50, 256) == 73
    assert effort_for(resnet50, 256, torch.bfloat16) == Effort(73, 36, torch.bfloat16)
    assert affordable(working(1e12), 256) == 64
    assert affordable(working(1e12), 30) == 30


@pytest.mark.parametrize("width", [5, 512, 1100])
def test_half_of_the_products_is_all_of_them(width: int) -> None:
    rows = torch.randn(2, 40, width, generator=torch.Generator().manual_seed(0))
    half = UpperHalf.zeros(rows, 2, width)
    half.add_squares(rows[:, :15])
    half.add_squares(rows[:, 15:])
    total = half.whole()
    assert torch.equal(total, total.mT)
    blocks = [total[:, start:stop, start:] for start, stop in blocks_of(width)]
    assert torch.equal(UpperHalf(blocks).whole(), total)
    expected = rows[:, :15].mT @ rows[:, :15] + rows[:, 15:].mT @ rows[:, 15:]
    torch.testing.assert_close(total, expected)


def test_half_of_a_triangle_is_all_of_it() -> None:
    whole = torch.randn(1100, 1100, generator=torch.Generator().manual_seed(0)).tril()
    half = LowerTriangle(whole.mT.contiguous().mT)
    for size in (0, 3, 512, 700, 1100):
        assert torch.equal(half.leading(size), whole[:size, :size])
    index = torch.tensor([0, 511, 512, 1099])
    assert torch.equal(half.rows(index), whole[index])
    torch.testing.assert_close(half.transposed_times(whole[:, :3]), whole.mT @ whole[:, :3])


@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_of_a_large_network_is_held_in_halves(bias: bool) -> None:
    conv = torch.nn.Conv2d(130, 6, 3, bias=bias)
    images = torch.randn(40, 130, 5, 5, generator=torch.Generator().manual_seed(0))

    def layer(effort: Effort) -> LayerReconstruction:
        moments = collect_statistics(conv, [images], [""], positions=9, effort=effort)[""]
        return LayerReconstruction(conv.weight, conv.bias, moments)

    whole, half = layer(Effort()), layer(Effort(40))
    assert isinstance(half._gram, UpperHalf)
    assert torch.equal(half.gram, whole.gram)
    cuts = [torch.arange(70), torch.arange(60, 130)]
    for inputs in cuts:
        assert torch.equal(half.solve(inputs)[0], whole.solve(inputs)[0])
    assert len(pickle.dumps(half)) < 0.75 * 4 * 1170**2
    half.order = whole.order = torch.arange(130)
    assert half.energy == pytest.approx(whole.energy, rel=1e-4)
    for inputs in cuts:  # from here on by the factors
        torch.testing.assert_close(half.solve(inputs)[0], whole.solve(inputs)[0])
    chain = [torch.arange(100, 130), torch.arange(90, 100)]
    found = [x.nested_errors([chain], None) for x in (half, whole)]
    torch.testing.assert_close(*found)
    twin = pickle.loads(pickle.dumps(half))
    assert torch.equal(twin.solve(cuts[1])[0], half.solve(cuts[1])[0])
    assert len(pickle.dumps(half)) < 0.75 * 4 * 1170**2


def test_a_learner_asks_a_large_network_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    given = make_model("residual"), EXAMPLE, make_data(200, 1), make_data(120, 2)
    whole = ChannelPruning(*given)
    monkeypatch.setattr(effort, "LARGE", 1.0)
    few = ChannelPruning(*given)
    assert few.original_score == whole.original_score
    assert not whole.cautions
    assert "64 of 200 calibration samples" in few.cautions[0]
    rows = [{name: x.rows for name, x in learner._layers.items()} for learner in (few, whole)]
    assert rows[0].keys() == rows[1].keys()
    # 64 images at 32 positions instead of 200 at 10; some layers have fewer.
    few_outputs = {"conv3": 64 * 16, "head": 64}
    assert {name: n for name, n in rows[0].items() if n != 64 * 32} == few_outputs


def test_a_network_that_computes_in_bfloat16_has_moments_in_float32() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(20, 300), torch.nn.ReLU(), torch.nn.Linear(300, 4)
    )
    inputs = torch.randn(64, 20)
    found = collect_statistics(
        network.eval(), [inputs], ["2"], effort=Effort(dtype=torch.bfloat16), positions=10
    )["2"]
    values = torch.linalg.eigvalsh(found.gram[0].double())
    assert values.numel() == 300  # of 64 samples: all but 64 are zero
    assert values[0] > -1e-5 * values[-1]

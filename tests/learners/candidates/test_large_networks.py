"""Networks whose preparation would take minutes are asked for less, by a rule of their work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from amc_compress.learners import ChannelPruning
from amc_compress.learners.candidates.inference.batch_sizes import fitting, handful
from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.moments import effort
from amc_compress.learners.candidates.moments.effort import Effort, affordable, effort_for
from amc_compress.learners.candidates.moments.products import add_squares, mirror
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
    total = add_squares(add_squares(None, rows[:, :15]), rows[:, 15:])
    mirror(total)
    assert torch.equal(total, total.mT)
    expected = rows[:, :15].mT @ rows[:, :15] + rows[:, 15:].mT @ rows[:, 15:]
    torch.testing.assert_close(total, expected)


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

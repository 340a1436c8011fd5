"""Costs of traced networks against sums written out by hand and PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import make_model
from amc_env import keep_ratio_decision, make_cost


def costs_of(model, example, ratio=1.0, round_to=1):
    """All three costs with every group kept at (about) ``ratio``, and the kept counts."""
    graph = trace(model, example).graph
    decisions = [keep_ratio_decision(g.name, g.size, round_to) for g in graph.groups]
    values = [d.nearest(ratio) for d in decisions]
    return {name: make_cost(name, graph, decisions)(values) for name in ("macs", "params", "bytes")}


def counted_flops(model, example):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(example)
    return counter.get_total_flops()


def test_lenet_equals_the_sum_by_hand():
    costs = costs_of(make_model("lenet", n_classes=10, in_channels=1), torch.zeros(1, 1, 28, 28))
    macs = 28 * 28 * 25 * 6 + 10 * 10 * 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10
    params = (25 * 6 + 6) + (25 * 6 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + 850
    assert costs == {"macs": macs, "params": params, "bytes": 4 * params}


def test_half_of_lenet_equals_the_sum_by_hand():
    costs = costs_of(
        make_model("lenet", n_classes=10, in_channels=1), torch.zeros(1, 1, 28, 28), ratio=0.5
    )
    macs = 28 * 28 * 25 * 3 + 10 * 10 * 25 * 3 * 8 + 200 * 60 + 60 * 42 + 42 * 10
    params = (25 * 3 + 3) + (25 * 3 * 8 + 8) + (200 * 60 + 60) + (60 * 42 + 42) + 430
    assert costs == {"macs": macs, "params": params, "bytes": 4 * params}


STAGE = 6 * 32 * 32 * 9 * 16 * 16  # six equal convolutions; halved pixels undo doubled channels
DOWN = 16 * 16 * 9 * 16 * 32  # the first convolution of a later stage sees half the channels
RESNET20_MACS = 32 * 32 * 27 * 16 + STAGE + 2 * (DOWN + 5 * STAGE // 6) + 64 * 10


def test_resnet20_has_40_6_million_macs_with_parameter_free_shortcuts():
    costs = costs_of(make_model("resnet20", n_classes=10, in_channels=3), torch.zeros(1, 3, 32, 32))
    assert costs["macs"] == RESNET20_MACS == 40_551_040
    convolutions = 27 * 16 + 6 * 9 * 16 * 16 + 9 * (16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert costs["params"] == convolutions + norms + 650 == 269_722
    counters = 19 * 8  # one int64 number of batches per batch norm
    assert costs["bytes"] == 4 * (269_722 + norms) + counters


def test_resnet20_has_40_8_million_macs_with_convolutional_shortcuts():
    model = make_model("resnet20", n_classes=10, in_channels=3)
    for stage, width in ((model.layer2, 32), (model.layer3, 64)):
        stage[0].shortcut = nn.Conv2d(width // 2, width, 1, stride=2, bias=False)
    costs = costs_of(model, torch.zeros(1, 3, 32, 32))
    assert costs["macs"] == RESNET20_MACS + 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64 == 40_813_184


@pytest.mark.slow
def test_mobilenet_v1_equals_the_sum_by_hand():
    pairs = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5)
    macs, width, side = 32 * 32 * 27 * 32, 32, 32
    for out, stride in (*pairs, (1024, 2), (1024, 1)):
        side //= stride
        macs += side * side * (9 * width + width * out)
        width = out
    model = make_model("mobilenet_v1", n_classes=10, in_channels=3)
    assert costs_of(model, torch.zeros(1, 3, 32, 32))["macs"] == macs + 1024 * 10


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("digitsnet", (1, 1, 8, 8)),
        ("lenet", (1, 3, 32, 32)),
        pytest.param("plain20", (1, 3, 32, 32), marks=pytest.mark.slow),
        ("resnet20", (1, 3, 32, 32)),
        pytest.param("mobilenet_v2", (1, 3, 32, 32), marks=pytest.mark.slow),
        pytest.param("densenet40", (1, 3, 32, 32), marks=pytest.mark.slow),
    ],
)
def test_flops_are_twice_the_macs_by_pytorchs_own_counter(name, shape):
    model = make_model(name, n_classes=10, in_channels=shape[1])
    example = torch.zeros(shape)
    assert 2 * costs_of(model, example)["macs"] == counted_flops(model, example)

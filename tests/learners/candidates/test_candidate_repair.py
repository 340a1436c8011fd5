"""Recalibration and brief fine-tuning against direct computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from amc_compress.learners import (
    ChannelPruning,
    UniformQuantization,
    WeightSparsification,
    joint_compression,
)
from amc_compress.learners.candidates.proxy import (
    PROXIES,
    Proxy,
    finetune_briefly,
    recalibrate,
    sample_batches,
)
from amc_compress.learners.tasks.inputs import Split
from amc_compress.learners.testing.networks import CLASSES, EXAMPLE, make_data, make_model
from amc_env import CompressionPlan, DecisionKind
from amc_env.errors import TrainingDivergedError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).eval()


def images(n=64):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1


def test_recalibrated_statistics_are_those_of_the_candidates_own_activations():
    model, x = network(), images()
    recalibrate(model, [x], torch.float32)
    first = model[0](x)
    mean, var = first.mean((0, 2, 3)), first.var((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    scaled = (first - mean.view(1, -1, 1, 1)) / (
        first.var((0, 2, 3), correction=0).view(1, -1, 1, 1) + model[1].eps
    ).sqrt()
    second = model[4](scaled.relu())
    torch.testing.assert_close(model[5].running_mean, second.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_several_batches_are_averaged():
    model, x = network(), images()
    recalibrate(model, list(x.split(32)), torch.float32)
    first = model[0](x)
    torch.testing.assert_close(model[1].running_mean, first.mean((0, 2, 3)))


def test_recalibration_changes_statistics_and_nothing_else():
    model, x = network(), images()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recalibrate(model, [x], torch.float32)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"1.running_mean", "1.running_var", "5.running_mean", "5.running_var"}
    assert model[1].momentum == 0.1
    assert not any(m.training for m in model.modules())


def test_bf16_statistics_are_close_to_float32_ones():
    exact, rounded = network(), network()
    recalibrate(exact, [images()], torch.float32)
    recalibrate(rounded, [images()], torch.bfloat16)
    assert rounded[5].running_var.dtype == torch.float32
    torch.testing.assert_close(rounded[5].running_var, exact[5].running_var, rtol=0.05, atol=1e-3)


def test_brief_finetuning_is_deterministic_and_leaves_the_global_generator_alone():
    x = images()
    labels = (x.mean((1, 2, 3)) > 1).long()
    batches = list(zip(x.split(16), labels.split(16), strict=True))
    proxy = Proxy(finetune_steps=6, learning_rate=0.05)
    state = torch.get_rng_state()
    first, second = network(), network()
    torch.set_rng_state(state)
    finetune_briefly(first, batches, proxy, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    finetune_briefly(second, batches, proxy, torch.float32)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0].weight, network()[0].weight)
    assert not first.training


def test_diverging_finetuning_is_an_error():
    model = network()
    with torch.no_grad():
        model[7].bias[0] = float("inf")
    with pytest.raises(TrainingDivergedError, match="finite loss"):
        finetune_briefly(
            model,
            [(images(8), torch.ones(8, dtype=torch.int64))],
            Proxy(finetune_steps=1),
            torch.float32,
        )


def test_proxies_are_chosen_by_name():
    flags = {(Proxy.parse(n).reconstruct, Proxy.parse(n).recalibrate) for n in PROXIES}
    assert len(flags) == 4
    assert Proxy.parse("none") == Proxy(False, False, 0)
    with pytest.raises(ValueError, match="recalibration"):
        Proxy.parse("reconstruct")
    with pytest.raises(ValueError, match="finetune_steps >= 0"):
        Proxy.parse("none", -1)


def test_sample_batches_have_no_small_remainder():
    sizes = [
        len(b.inputs) for b in sample_batches([Split(images(130), None)], 64, torch.device("cpu"))
    ]
    assert sizes == [65, 65]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ChannelPruning, {DecisionKind.KEEP_RATIO: 0.5}),
        (WeightSparsification, {DecisionKind.DENSITY: 0.5}),
        pytest.param(UniformQuantization, {DecisionKind.WEIGHT_BITS: 4}, marks=pytest.mark.slow),
        pytest.param(
            joint_compression,
            {DecisionKind.KEEP_RATIO: 0.5, DecisionKind.WEIGHT_BITS: 4},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_brief_training_that_makes_a_candidate_worse_does_not_count(
    kind: Any, values: dict[DecisionKind, float]
) -> None:
    misleading = [(images, (labels + 1) % CLASSES) for images, labels in make_data(64, 1)]

    def prepared(**options: Any) -> Any:
        data = make_data(96, 2), make_data(200, 3)
        return kind(make_model("plain"), EXAMPLE, *data, precision="fp32", **options)

    untrained, trained = prepared(), prepared(train=misleading, finetune_steps=60)
    plan = CompressionPlan(
        {d.key: d.nearest(values.get(d.kind, d.choices[-1])) for d in trained.decisions}
    )
    assert trained.evaluate(plan) == untrained.evaluate(plan)
    assert trained.evaluate_full(plan) == untrained.evaluate_full(plan)
    candidate = trained._candidate(trained._read(plan), trained.seconds)
    assert trained.score(candidate) < untrained.evaluate(plan)

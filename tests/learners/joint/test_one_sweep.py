"""Zeros and bits in one sweep: what the plan says, better than one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amc_compress.learners.joint import learner as joint_learner
from amc_compress.learners.joint.one_sweep import sweeps_once
from amc_compress.learners.joint.prepare import joint_compression
from amc_compress.learners.layers.masked import mask_of
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.sparsification.learner import WeightSparsification
from amc_compress.learners.testing.networks import EXAMPLE, Residual, make_data
from amc_env.costs.storage import OFF_BITS
from amc_env.plan import CompressionPlan, DecisionKind


def prepared(pattern="unstructured", pruning=None, **options):
    train, validation = make_data(96, 0), make_data(64, 1)
    torch.manual_seed(0)
    return joint_compression(
        Residual().eval(), EXAMPLE, train, validation, pruning=pruning,
        sparsification={"repair": "sparsegpt", "pattern": pattern, "ignore": ("stem",)},
        quantization={"rounding": "gptq", "activation_bits": 16, "weight_bits": (3, 4, OFF_BITS),
                      "first_last_bits": None},
        **options,
    )  # fmt: skip


def plan_of(learner, bits=3, density=0.5, ratio=1.0):
    wanted = {DecisionKind.WEIGHT_BITS: bits, DecisionKind.DENSITY: density}
    return CompressionPlan({d.key: d.nearest(wanted.get(d.kind, ratio)) for d in learner.decisions})


def loss(learner, network):
    """Returns the squared error of the outputs over all validation samples."""
    errors = []
    with torch.no_grad():
        for images, _ in learner.validation:
            errors.append((network(images) - learner.original(images)).square().mean())
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("pattern", ["unstructured", pytest.param("2:4", marks=pytest.mark.slow)])
def test_one_sweep_loses_less_than_two_and_keeps_to_the_plan(pattern, monkeypatch, tmp_path):
    learner = prepared(pattern)
    plan = plan_of(learner)
    network = learner.compress(plan)
    layers = quantized_layers(network)
    for name in ("conv1", "conv2", "conv3", "head"):
        layer, mask = layers[name], mask_of(layers[name])
        assert int(mask.sum()) == mask.numel() // 2
        used = layer.quantized_weight()
        assert not used[~mask].any()
        torch.testing.assert_close(used[mask], layer.weight[mask])  # on its grid
        assert layer.weight[~mask].abs().min() > 0.0  # for a training
        if pattern == "2:4" and mask.dim() == 2:
            assert (mask.view(len(mask), -1, 4).sum(2) == 2).all()
    assert mask_of(layers["stem"]) is None
    same = learner.compress(plan).state_dict()
    assert all(torch.equal(x, same[key]) for key, x in network.state_dict().items())
    size = save_packed(network, tmp_path / "net.packed", plan=plan)
    assert abs(learner.cost_models["bytes"](plan.values_for(learner.decisions)) / size - 1) < 0.05
    with torch.no_grad():
        loaded = load_packed(tmp_path / "net.packed", learner.original)
        assert torch.equal(loaded(EXAMPLE), network(EXAMPLE))
    monkeypatch.setattr(joint_learner, "sweeps_once", lambda _: False)
    assert loss(learner, network) < loss(learner, learner.compress(plan))


@pytest.mark.slow
def test_layers_without_bits_are_pruned_alone_and_cut_networks_in_one_sweep():
    learner = prepared(pruning={"round_to": 4})
    plan = plan_of(learner, ratio=0.5)
    network = learner.compress(plan)
    assert network.get_submodule("conv1").weight.shape[0] == 8
    mask = mask_of(network.get_submodule("conv2"))
    assert int(mask.sum()) == mask.numel() // 2
    floats = learner.compress(plan_of(learner, bits=OFF_BITS))
    (densities,) = (x for x in learner.parts if isinstance(x, WeightSparsification))
    half = CompressionPlan({d.key: d.nearest(0.5) for d in densities.decisions})
    alone = densities.fitted.mask("conv2", densities.kept_weights(half)["conv2"])
    assert mask_of(floats.get_submodule("conv2")).sum() == alone.sum()
    dense = quantized_layers(learner.compress(plan_of(learner, density=1.0)))
    assert all(mask_of(layer).all() for name, layer in dense.items() if name != "stem")
    assert isinstance(learner.evaluate(plan), float)


def test_what_cannot_be_swept_at_once_is_pruned_and_then_rounded():
    learner = prepared("2:4", n_recalibration=16, n_calibration=16)
    densities, bits = learner.parts[-2:]
    assert sweeps_once(learner.parts)
    for part, other in ((bits, {"act_order": True}), (densities, {"repair": "least-squares"})):
        given, part.options = part.options, replace(part.options, **other)
        assert not sweeps_once(learner.parts)
        part.options = given
    assert not sweeps_once(learner.parts[:1])

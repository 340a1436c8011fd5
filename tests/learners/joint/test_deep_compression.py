"""Deep Compression: densities with codebook bits, the paper's order of training, the file."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files

import numpy as np
import pytest
import torch
from support.once import copies
from support.selection import quick
from torch import nn

from amc_compress.agents import make_agent
from amc_compress.data import load_data
from amc_compress.learners import CodebookQuantization
from amc_compress.learners.joint.deep import PACKED, TOLERANCE, compress_deeply, deep_compression
from amc_compress.learners.joint.prepare import joint_compression
from amc_compress.learners.layers.masked import mask_of, masked_layers
from amc_compress.learners.packing.packed_file import packed_bytes
from amc_compress.learners.packing.sizes import stored_bytes
from amc_compress.learners.quantization import load_packed, quantized_layers, save_packed
from amc_compress.learners.testing.networks import EXAMPLE, Interrupted, make_data, make_model
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.models import load_weights
from amc_compress.models import make_model as make_named
from amc_env import Budget, CompressionEnv, CompressionPlan, DecisionKind


@copies
def prepared(name="residual", **options):
    model = make_model(name).eval()
    options = {"weight_bits": (2, 4), "precision": "fp32", **options}
    return model, deep_compression(model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)


def plan_of(learner, density=0.3, bits=4, keep=1.0):
    asked = {DecisionKind.DENSITY: density, DecisionKind.KEEP_RATIO: keep}
    return CompressionPlan({d.key: d.nearest(asked.get(d.kind, bits)) for d in learner.decisions})


@pytest.fixture(scope="module")
def digits():
    splits = load_data("digits")
    model = make_named("digitsnet", in_channels=1)
    with as_file(files("amc_compress") / "weights/digitsnet.safetensors") as path:
        load_weights(model, path)
    learner = deep_compression(
        model.eval(),
        splits.calibration.images[:1],
        splits.calibration,
        splits.validation,
        weight_bits=(2, 3, 4, 5, 8),
    )
    return model, splits, learner


def test_densities_come_between_channels_and_bits_of_a_layer():
    _, learner = prepared(pruning={"round_to": 4})
    assert [part.name for part in learner.parts] == ["channels", "density", "bits"]
    keys = [d.key for d in learner.decisions]
    assert keys[:6] == [
        "stem:keep_ratio", "stem:density", "stem:weight_bits",
        "conv1:keep_ratio", "conv1:density", "conv1:weight_bits",
    ]  # fmt: skip
    curves = learner.layer_errors()
    assert list(curves) == keys
    for decision in learner.decisions:
        curve = curves[decision.key]
        assert len(curve) == len(decision.choices)
        assert curve[0] > curve[-1] >= 0.0


def test_budgets_over_all_three_kinds_hold_in_every_plan_and_network():
    model, learner = prepared(pruning={"round_to": 4})
    env = CompressionEnv(learner, Budget(macs=0.6, density=0.2, bytes=0.25))
    weights = sum(model.get_submodule(x.name).weight.numel() for x in learner.graph.layers)
    rng = np.random.default_rng(0)
    for index in range(12):
        plan = env.decode(rng.random(env.n_decisions))
        ratio = env.cost_ratio(plan)
        assert ratio["macs"] <= 0.6
        assert ratio["density"] <= 0.2
        assert ratio["bytes"] <= 0.25
        if index < 3:
            network = learner.compress(plan)
            counted = sum(
                int(x.weight.numel() if mask_of(x) is None else mask_of(x).sum())
                for x in quantized_layers(network).values()
            )
            # Parts of weights are rounded down where channels were cut: less than one per layer.
            promised = ratio["density"] * weights
            assert promised - len(quantized_layers(network)) < counted <= promised + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["random", "local"])
def test_agents_search_three_kinds(agent):
    _, learner = prepared("plain", pruning={})
    env = CompressionEnv(learner, "macs=0.7,density=0.2")
    found = make_agent(agent).search(env, episodes=5, seed=0)
    assert set(found.plan) == {d.key for d in learner.decisions}
    assert learner.evaluate(found.plan) > 0.5


def test_weights_of_a_cut_network_are_ranked_as_they_are_there():
    _, learner = prepared("plain", pruning={"round_to": 4}, proxy="none")
    plan = plan_of(learner, 0.25, keep=0.5)
    channels = learner.parts[0]
    cut = channels.apply(
        channels.original, CompressionPlan({d.key: plan[d.key] for d in channels.decisions})
    )
    network = learner.compress(plan)
    for name, layer in quantized_layers(network).items():
        weight = cut.get_submodule(name).weight
        mask = mask_of(layer)
        assert mask.shape == weight.shape
        assert int(mask.sum()) == int(plan[f"{name}:density"] * weight.numel() + 1e-6)
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


@pytest.mark.slow
def test_with_all_weights_it_is_codebook_quantization():
    model, learner = prepared(proxy="recalibration")
    alone = CodebookQuantization(
        model,
        EXAMPLE,
        make_data(96, 2),
        make_data(200, 3),
        weight_bits=(2, 4),
        activation_bits=16,
        first_last_bits=None,
        precision="fp32",
    )
    plan = plan_of(learner, 1.0, 2)
    bits = CompressionPlan({d.key: plan[d.key] for d in alone.decisions})
    images = make_data(64, 4)[0][0]
    with torch.no_grad():
        torch.testing.assert_close(
            learner.compress(plan)(images), alone.compress(bits)(images), atol=1e-5, rtol=1e-4
        )


@pytest.mark.slow
def test_what_codes_take_is_near_their_entropy():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(64, 64, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.distributions.Laplace(0.0, 1.0).icdf(
            torch.rand(layer.weight.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        ))  # fmt: skip

    def fit(name, weight, mask, bits):
        return learner._make_weight_quantizer(name, weight, mask, bits)

    _, deep = prepared("plain")
    learner = deep.parts[-1]
    found = stored_bytes(nn.Sequential(layer), {"0": (2, 4, 6)}, fit)["0"]
    for bits, taken in found.items():
        size = 8 * taken / layer.weight.numel()
        codes = fit("0", layer.weight.detach(), None, bits).encode(layer.weight.detach())
        share = torch.bincount(codes.flatten().long()).double() / codes.numel()
        entropy = float(-(share * share.clamp(min=1e-12).log2()).sum())
        assert entropy <= size < 1.03 * entropy + 0.02


def check_sizes(learner, model, example, plans, path):
    cost = learner.cost_models["bytes"]
    for index, plan in enumerate(plans):
        network = learner.compress(plan)
        kept = learner.kept_units(plan)
        size = save_packed(network, path, kept=kept, plan=plan, example_input=example)
        assert size == path.stat().st_size
        values = plan.values_for(learner.decisions)
        assert abs(cost.predict(values) / size - 1) < 0.03, (index, cost.predict(values), size)
        assert abs(cost(values) / size - 1) < 0.03, (index, cost(values), size)
    loaded = load_packed(path, model)
    images = torch.randn(4, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    assert masked_layers(loaded).keys() == masked_layers(network).keys()


@pytest.mark.slow
def test_the_file_has_the_size_that_was_promised(digits, tmp_path):
    model, splits, learner = digits
    part, bits = learner.parts[0], learner.parts[-1]
    plans = [
        CompressionPlan({**part.plan_for("global", density), **bits.fixed_plan(width)})
        for density, width in ((0.5, 3), (0.2, 2), (0.2, 5), (0.1, 4), (0.06, 8))
    ]
    check_sizes(learner, model, splits.calibration.images[:1], plans, tmp_path / "x.packed")
    rng = np.random.default_rng(0)
    plans = [
        CompressionPlan({d.key: d.choices[rng.integers(len(d.choices))] for d in learner.decisions})
        for _ in range(3)
    ]
    check_sizes(learner, model, splits.calibration.images[:1], plans, tmp_path / "x.packed")


@pytest.mark.data
@pytest.mark.slow
def test_the_size_of_a_resnet_is_promised_too(shared_data, tmp_path):
    splits = load_data(str(shared_data / "data/cifar10"))
    model = make_named("resnet20").eval()
    load_weights(model, shared_data / "checkpoints/resnet20_cifar10.safetensors")
    example = splits.calibration.images[:1]
    learner = deep_compression(
        model,
        example,
        [(splits.calibration.images[:128], splits.calibration.labels[:128])],
        [(splits.validation.images[:128], splits.validation.labels[:128])],
        weight_bits=(2, 4, 5),
        pruning={},
        n_calibration=128,
        n_recalibration=64,
    )
    plans = [
        plan_of(learner, density, bits, keep)
        for density, bits, keep in (
            (0.35, 2, 1.0),
            (0.1, 4, 1.0),
            (0.05, 5, 1.0),
            (0.3, 4, 0.5),
            (0.1, 5, 0.5),
        )
    ]
    check_sizes(learner, model, example, plans, tmp_path / "x.packed")


def brief(learner, epochs=1):
    return {
        "retraining": TrainingConfig(epochs=epochs, learning_rate=0.02, precision="fp32"),
        "finetuning": replace(learner.training_defaults(), epochs=epochs, precision="fp32"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("density", "bits"), [(1.0, 4), (0.5, 4), (0.2, 3), (0.05, 2)])
def test_trained_networks_have_the_size_that_was_counted(digits, density, bits):
    """A tolerance beyond what budgets count is all that training may add."""
    _, splits, learner = digits
    plan = plan_of(learner, density, bits)
    config = TrainingConfig(epochs=3, learning_rate=0.02, precision="fp32")
    result = compress_deeply(
        learner, plan, splits.train, retraining=config, finetuning=replace(config, epochs=1)
    )
    values = plan.values_for(learner.decisions)
    cost = learner.cost_models["bytes"]
    for stage in result.stages:
        if stage.name in ("quantized", "finetuned"):
            assert cost.predict(values) == pytest.approx(stage.bytes, rel=TOLERANCE)
            assert stage.bytes < (1.0 + TOLERANCE) * cost(values)
    assert len(packed_bytes(learner.compress(plan), plan=plan)) < (1.0 + TOLERANCE) * cost(values)


@pytest.mark.slow
def test_files_larger_than_counted_are_told(monkeypatch):
    _, learner = prepared()
    monkeypatch.setitem(learner.cost_models, "bytes", _Less(learner.cost_models["bytes"]))
    with pytest.warns(UserWarning, match="more than the"):
        compress_deeply(learner, plan_of(learner), (), retrain=False, finetune=False)


class _Less:
    """Counts half of what there is."""

    def __init__(self, cost):
        self.original, self._cost = cost.original, cost

    def __call__(self, values):
        return self._cost(values) / 2


def test_the_papers_order_and_what_every_stage_is_worth(tmp_path):
    model, learner = prepared(
        sparsification={"schedule_frequency": 2}, proxy="recalibration", finetune_steps=0
    )
    plan = plan_of(learner, 0.1, 4)
    result = compress_deeply(learner, plan, make_data(512, 1), folder=tmp_path, **brief(learner, 2))
    names = [stage.name for stage in result.stages]
    assert names == ["original", "pruned", "retrained", "quantized", "finetuned"]
    by_name = {stage.name: stage for stage in result.stages}
    floats = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert by_name["original"].bytes == floats
    assert by_name["pruned"].bytes > by_name["finetuned"].bytes
    assert by_name["retrained"].score > by_name["pruned"].score + 0.05
    path = tmp_path / PACKED
    assert path.stat().st_size == by_name["finetuned"].bytes
    assert result.factor == pytest.approx(floats / path.stat().st_size)
    loaded = load_packed(path, model)
    images, labels = (torch.cat(t) for t in zip(*make_data(200, 3), strict=True))
    with torch.no_grad():
        outputs = loaded(images)
        assert torch.equal(outputs, result.network(images))
    right = float((outputs.argmax(1) == labels).float().mean())
    assert right == pytest.approx(by_name["finetuned"].score, abs=0.006)
    for name, layer in quantized_layers(result.network).items():
        assert int(mask_of(layer).sum()) == round(plan[f"{name}:density"] * layer.weight.numel())


@pytest.mark.slow
def test_training_of_centroids_moves_no_weight_to_another_one():
    _, learner = prepared("plain", schedule="one-shot")
    plan = plan_of(learner, 0.05, 2)
    data = make_data(256, 1)
    before = compress_deeply(learner, plan, data, retrain=False, finetune=False)
    assert [stage.name for stage in before.stages] == ["original", "pruned", "quantized"]
    after = compress_deeply(learner, plan, data, retrain=False, **brief(learner))
    before, after = before.network, after.network
    for name, layer in quantized_layers(after).items():
        old = quantized_layers(before)[name]
        codes = [x.weight_quantizer.encode(x.weight.detach()) for x in (old, layer)]
        assert torch.equal(*codes)
        assert torch.equal(mask_of(old), mask_of(layer))
        assert torch.equal(old.bias, layer.bias)
        assert not torch.equal(old.weight_quantizer.codebook, layer.weight_quantizer.codebook)


@pytest.mark.parametrize("stage", quick(["retraining", "finetuning"], "finetuning"))
@pytest.mark.slow
def test_an_interruption_in_either_training_ends_with_the_same_file(stage, tmp_path):
    _, learner = prepared("plain", sparsification={"schedule_frequency": 2})
    plan = plan_of(learner, 0.2, 2)
    batches = make_data(128, 1)
    straight = compress_deeply(
        learner, plan, Interrupted(batches, None), folder=tmp_path / "a", **brief(learner, 2)
    )

    class OnlyIn(Interrupted):
        """Interrupts in epoch 1 of the first or of the second training."""

        trainings = 0

        def set_epoch(self, epoch):
            self.trainings += epoch == 0
            super().set_epoch(epoch)
            wanted = 1 if stage == "retraining" else 2
            self.stop_at = 1 if self.trainings == wanted else None

    with pytest.raises(KeyboardInterrupt):
        compress_deeply(
            learner, plan, OnlyIn(batches, None), folder=tmp_path / "b", **brief(learner, 2)
        )
    again = compress_deeply(
        learner,
        plan,
        Interrupted(batches, None),
        folder=tmp_path / "b",
        resume=True,
        **brief(learner, 2),
    )
    assert again.packed == straight.packed
    assert again.stages == straight.stages


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gradual", "one-shot"])
def test_channels_may_be_cut_before(schedule):
    _, learner = prepared(
        pruning={"round_to": 4}, schedule=schedule, sparsification={"schedule_frequency": 2}
    )
    plan = plan_of(learner, 0.3, 4, keep=0.5)
    result = compress_deeply(learner, plan, make_data(256, 1), **brief(learner))
    kept = {k: v.numel() for k, v in learner.kept_units(plan).items()}
    widths = {g.name: kept.get(g.name, g.size) for g in learner.graph.groups}
    for spec in learner.graph.layers:
        layer = quantized_layers(result.network)[spec.name]
        assert layer.weight.shape[:2] == (spec.out_width.at(widths), spec.in_width.at(widths))
        expected = int(plan[f"{spec.name}:density"] * layer.weight.numel() + 1e-6)
        assert int(mask_of(layer).sum()) == expected
    data = packed_bytes(
        result.network, kept=learner.kept_units(plan), plan=plan, example_input=EXAMPLE
    )
    assert data == result.packed


def test_what_cannot_be_is_rejected():
    _, learner = prepared("plain")
    plan = plan_of(learner)
    dense = joint_compression(
        make_model("plain"), EXAMPLE, make_data(96, 2), make_data(64, 3), precision="fp32"
    )
    full = CompressionPlan.full(dense.decisions)
    with pytest.raises(ValueError, match=r"decides densities.*\['channels', 'bits'\]"):
        compress_deeply(dense, full, make_data(64, 1))
    with pytest.raises(ValueError, match="Unknown mode 'magic'"):
        compress_deeply(learner, plan, make_data(64, 1), mode="magic")
    for options, sentence in (
        ({"pattern": "magic"}, "Unknown pattern"),
        ({"min_density": 0.0}, "min_density above 0"),
        ({"schedule": "magic"}, "Unknown schedule"),
        ({"mode": "magic"}, "Unknown mode"),
        ({"weight_bits": (1, 2)}, "weight_bits from 2 to 8"),
    ):
        with pytest.raises(ValueError, match=sentence):
            prepared("plain", **options)

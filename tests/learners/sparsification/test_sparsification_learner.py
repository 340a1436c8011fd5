"""Weight sparsification beyond the contract: what it builds, leaves out, and trains."""

from __future__ import annotations

import copy
import io
from importlib.resources import as_file, files

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from amc_compress.data import load_data
from amc_compress.learners import ChannelPruning, WeightSparsification
from amc_compress.learners.candidates.evaluator import NetworkEvaluator
from amc_compress.learners.joint.parts import PlanPart
from amc_compress.learners.layers.masked import SparseConv2d, SparseLinear, masked_layers
from amc_compress.learners.packing.packed_file import packed_bytes
from amc_compress.learners.sparsification import finalise
from amc_compress.learners.sparsification.refit import relative_error
from amc_compress.learners.testing.networks import (
    CLASSES,
    EXAMPLE,
    accuracy_of,
    make_data,
    make_model,
)
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.hooks import TrainingHook
from amc_compress.models import load_weights
from amc_compress.models import make_model as make_named
from amc_env import Budget, CompressionEnv
from amc_env.errors import InfeasibleBudgetError, PlanMismatchError, UntraceableModelError
from amc_env.plan import CompressionPlan

IMAGES = make_data(64, 4)[0][0]


def make(model: nn.Module, **options) -> WeightSparsification:
    return WeightSparsification(model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)


@pytest.fixture(scope="module")
def learner() -> WeightSparsification:
    return make(make_model("residual"))


def test_it_is_a_part_of_joint_plans_and_an_evaluator(learner):
    assert isinstance(learner, PlanPart)
    evaluator: NetworkEvaluator = learner
    assert evaluator.score(learner.original) == learner.original_score
    assert learner.name == "density"


def test_every_layer_is_decided_the_first_and_the_last_too(learner):
    assert [d.target for d in learner.decisions] == ["stem", "conv1", "conv2", "conv3", "head"]
    assert not learner.left_dense


def test_masks_are_the_largest_magnitudes_and_behind_them_stays_the_original(learner):
    plan = learner.plan_for("uniform", 0.3)
    layers = masked_layers(learner.compress(plan))
    for d, value in zip(learner.decisions, plan.values_for(learner.decisions), strict=True):
        layer, original = layers[d.target], learner.original.get_submodule(d.target).weight
        mask = layer.weight_mask
        assert int(mask.sum()) == d.units(value)
        assert original.abs()[mask].min() >= original.abs()[~mask].max()
        assert torch.equal(layer.weight[~mask], original[~mask])
        assert not torch.equal(layer.weight[mask], original[mask])  # re-fitted


def test_a_refit_layer_is_nearer_to_what_it_was(learner):
    for d in learner.decisions:
        keep = d.units(d.choices[len(d.choices) // 4])
        mask = learner.fitted.mask(d.target, keep)
        weight = learner.original.get_submodule(d.target).weight.detach()
        layer = learner._layers[d.target]
        refitted = relative_error(layer, learner.fitted.solve(d.target, keep)[0])
        assert refitted < relative_error(layer, weight * mask)


def test_the_refit_saves_accuracy():
    found = {}
    for proxy in ("none", "reconstruction+recalibration"):
        learner = make(make_model("plain"), proxy=proxy)
        found[proxy] = learner.evaluate(learner.plan_for("uniform", 0.1))
    assert found["none"] + 0.05 < found["reconstruction+recalibration"]


def test_finalised_networks_are_plain_and_say_the_same(learner):
    network = learner.compress(learner.plan_for("global", 0.2))
    plain = finalise(network)
    assert {type(m) for m in network.modules()} >= {SparseConv2d, SparseLinear}
    assert not {type(m) for m in plain.modules()} & {SparseConv2d, SparseLinear}
    assert plain.state_dict().keys() == learner.original.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), network(IMAGES))
    assert (plain.conv3.weight == 0).sum() == (~network.conv3.weight_mask).sum()
    assert type(finalise(network.head)) is nn.Linear


def test_a_module_that_stands_twice_is_finalised_once(learner):
    layer = learner.compress(learner.plan_for("uniform", 0.5)).conv1
    plain = finalise(nn.Sequential(layer, nn.ReLU(), layer))
    assert plain[0] is plain[2]
    assert type(plain[0]) is nn.Conv2d


def test_layers_that_cannot_be_sparse_are_left_dense_by_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.two.weight = self.one.weight
            self.flat = nn.Parameter(torch.randn(8, 8, 1))
            self.other = nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x):
            x = torch.relu(self.two(torch.relu(self.one(torch.relu(self.first(x))))))
            return self.head(
                self.other(torch.relu(F.conv1d(x.flatten(2), self.flat)[..., None])).mean((2, 3))
            )

    learner = make(Tied(), pattern="2:4", ignore=("other",))
    assert learner.left_dense == {
        "first": "its 3 inputs are not a multiple of 4",
        "one": "it shares its weight with another layer, or stands under several names",
        "flat": "it is no convolution or linear layer that uses its weight as it is",
        "other": "it is to be ignored",
    }
    assert [d.target for d in learner.decisions] == ["head"]
    with pytest.raises(InfeasibleBudgetError, match="layers that stay dense"):
        learner.plan_for("uniform", 0.5)


def test_a_network_without_such_layers_is_rejected_with_the_reasons():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    with pytest.raises(UntraceableModelError, match="6 inputs are not a multiple of 4"):
        make(model, pattern="2:4", ignore=("1",))


@pytest.mark.parametrize("pattern", ["unstructured", "block2", "2:4"])
def test_plans_by_rule_meet_the_budget_of_the_environment(pattern):
    learner = make(make_model("residual"), pattern=pattern)
    for protocol in ("uniform", "heuristic", "global", "normalised"):
        plan = learner.plan_for(protocol, 0.6)
        env = CompressionEnv(learner, Budget(density=0.6))
        assert 0.5 < env.cost_ratio(plan)["density"] <= 0.6


def test_error_curves_fall_to_zero_and_are_exact_where_they_were_solved(learner):
    for key, curve in learner.layer_errors().items():
        decision = next(d for d in learner.decisions if d.key == key)
        assert curve.shape == (len(decision.choices),)
        assert (np.diff(curve) <= 0).all()
        assert curve[-1] == 0.0
        assert 0.0 < curve[0] <= 1.0
        solved = learner.fitted.solve(decision.target, decision.units(decision.choices[0]))[0]
        assert curve[0] == pytest.approx(relative_error(learner._layers[decision.target], solved))


def test_a_cut_network_is_made_sparse_by_what_is_there():
    model = make_model("residual")
    channels = ChannelPruning(model, EXAMPLE, make_data(96, 2), make_data(64, 3))
    cut = channels.compress(CompressionPlan({d.key: d.choices[0] for d in channels.decisions}))
    learner = make(model)
    before = copy.deepcopy(cut.state_dict())
    plan = learner.plan_for("uniform", 0.5)
    found = masked_layers(learner.apply(cut, plan))
    for d, value in zip(learner.decisions, plan.values_for(learner.decisions), strict=True):
        weight, layer = cut.get_submodule(d.target).weight, found[d.target]
        assert layer.weight.shape == weight.shape
        assert int(layer.weight_mask.sum()) == round(value * weight.numel())
        assert weight.abs()[layer.weight_mask].min() >= weight.abs()[~layer.weight_mask].max()
    for key, tensor in cut.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_a_network_that_lacks_a_layer_is_rejected(learner):
    other = copy.deepcopy(learner.original)
    other.conv2 = nn.Identity()
    with pytest.raises(PlanMismatchError, match="'conv2'"):
        learner.apply(other, learner.plan_for("uniform", 0.5))


def config(**options) -> TrainingConfig:
    return TrainingConfig(epochs=2, learning_rate=0.02, precision="fp32", **options)


class NoWayBack(TrainingHook):
    """Keeps the end of a training that is too short to reach its start again."""

    may_start_be_kept = False


def test_gradual_training_starts_dense_and_ends_at_the_plan():
    learner = make(make_model("residual"), schedule_frequency=2)
    plan = learner.plan_for("uniform", 0.15)
    network, one_shot = learner.compress(plan), learner.compress(plan)
    result = learner.finetune(network, make_data(256, 1), config=config(), hooks=[NoWayBack()])
    assert [record.is_ready for record in result.history] == [False, True]
    moved = 0
    for name, layer in masked_layers(network).items():
        mask = one_shot.get_submodule(name).weight_mask
        assert int(layer.weight_mask.sum()) == int(mask.sum())
        moved += int((layer.weight_mask != mask).sum())
    assert moved > 0  # other weights than those that were largest before the training
    assert accuracy_of(network, make_data(200, 3)) == pytest.approx(result.best_score)


def test_one_shot_training_keeps_its_masks():
    learner = make(make_model("residual"), schedule="one-shot")
    network = learner.compress(learner.plan_for("global", 0.3))
    masks = {n: x.weight_mask.clone() for n, x in masked_layers(network).items()}
    weight = network.conv1.weight.detach().clone()
    learner.finetune(network, make_data(256, 1), config=config())
    for name, layer in masked_layers(network).items():
        assert torch.equal(layer.weight_mask, masks[name])
    assert not torch.equal(network.conv1.masked_weight(), weight * masks["conv1"])


def test_a_network_from_disk_trains_like_the_one_that_was_saved():
    """What lay behind the masks may be gone: the dense weights are the learner's."""
    learner = make(make_model("residual"), schedule_frequency=2)
    plan = learner.plan_for("uniform", 0.2)
    saved = learner.compress(plan)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded = learner.compress(learner.plan_for("uniform", 0.8))
    loaded.load_state_dict(torch.load(file))
    with torch.no_grad():
        for layer in masked_layers(loaded).values():
            layer.weight.mul_(layer.weight_mask)
    for network in (saved, loaded):
        learner.finetune(network, make_data(128, 1), config=config(), hooks=[NoWayBack()])
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_plan_that_keeps_everything_trains_without_a_schedule(learner):
    network = learner.compress(CompressionPlan.full(learner.decisions))
    assert all(layer.weight_mask.all() for layer in masked_layers(network).values())
    assert learner.training_hooks(network) == ()
    with torch.no_grad():
        assert torch.equal(network(IMAGES), learner.original(IMAGES))


@pytest.mark.parametrize("whole", [(), ("conv2", "head"), ("all",)])
def test_layers_that_keep_everything_are_stored_as_they_are_counted(learner, whole):
    """Without any mask the file would not be entropy-coded."""
    plan = CompressionPlan(
        {
            d.key: 1.0 if d.target in whole or "all" in whole else d.nearest(0.3)
            for d in learner.decisions
        }
    )
    network = learner.compress(plan)
    assert set(masked_layers(network)) == {d.target for d in learner.decisions}
    values = plan.values_for(learner.decisions)
    size = len(packed_bytes(network, plan=plan))
    assert learner.cost_models["bytes"].predict(values) == pytest.approx(size, rel=0.03)
    assert size < 1.03 * learner.cost_models["bytes"](values)


def test_candidates_may_train_briefly_behind_their_masks():
    model = make_model("depthwise")
    options = {"pattern": "block4", "train": make_data(96, 1)}
    learner = make(model, finetune_steps=3, **options)
    plan = learner.plan_for("uniform", 0.2)
    assert learner.evaluate(plan) == learner.evaluate(plan) == learner.evaluate_full(plan)
    candidate = learner._candidate(learner.kept_weights(plan), learner.seconds)
    non_zero = sum(
        int((candidate.get_submodule(d.target).weight != 0).sum()) for d in learner.decisions
    )
    assert non_zero == sum(learner.kept_weights(plan).values())
    assert learner.seconds.mean()["finetuning"] > 0


def test_a_module_under_two_names_is_left_dense():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.two, self.head = self.one, nn.Linear(8, CLASSES)

        def forward(self, x):
            x = torch.relu(self.two(torch.relu(self.one(torch.relu(self.first(x))))))
            return self.head(x.mean((2, 3)))

    learner = make(Twice())
    assert set(learner.left_dense) == {"one"}
    assert "several names" in learner.left_dense["one"]
    network = learner.compress(learner.plan_for("uniform", 0.6))
    assert network.one is network.two


def test_layers_without_a_choice_are_no_silent_decisions():
    learner = make(make_model("residual"), pattern="block16")
    assert all(len(d.choices) > 1 for d in learner.decisions)
    assert "no choice" in learner.left_dense["head"]


def test_cut_layers_keep_a_weight():
    model = make_model("residual")
    learner = make(model)
    cut = copy.deepcopy(learner.original)
    cut.conv2 = nn.Conv2d(1, 1, 3, padding=1)
    plan = CompressionPlan({d.key: d.choices[0] for d in learner.decisions})
    fitted = make(model, proxy="none")._fit_again(cut, plan)[0]
    assert fitted["conv2"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gradual", "one-shot"])
def test_trained_networks_have_the_size_that_was_counted(schedule):
    splits, model = load_data("digits"), make_named("digitsnet", in_channels=1)
    with as_file(files("amc_compress") / "weights/digitsnet.safetensors") as path:
        load_weights(model, path)
    data = (splits.calibration.images[:1], splits.calibration, splits.validation)
    learner = WeightSparsification(model, *data, schedule=schedule, schedule_frequency=5)
    for protocol, density in (("uniform", 1.0), ("global", 0.2), ("uniform", 0.1)):
        plan = learner.plan_for(protocol, density)
        counted = learner.cost_models["bytes"](plan.values_for(learner.decisions))
        network = learner.compress(plan)
        assert len(packed_bytes(network, plan=plan)) == pytest.approx(counted, rel=0.03)
        settings = TrainingConfig(epochs=4, learning_rate=0.02, precision="fp32")
        learner.finetune(network, splits.train, config=settings)
        assert len(packed_bytes(network, plan=plan)) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("pattern", ["unstructured", "block4", "2:4"])
def test_the_packed_file_has_the_size_that_the_budget_counts(pattern):
    """Wide enough for the weights to matter next to the header."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, CLASSES),
        )
        for layer in (model[0], model[3], model[8]):
            nn.init.normal_(layer.weight, std=0.1)  # as after training, unlike uniform ones
    learner = make(model, pattern=pattern)
    for density in (0.9, 0.6) if pattern == "2:4" else (0.9, 0.5, 0.2, 0.1):
        plan = learner.plan_for("global", density)
        size = len(packed_bytes(learner.compress(plan), plan=plan))
        counted = learner.cost_models["bytes"](plan.values_for(learner.decisions))
        assert counted == pytest.approx(size, rel=0.03)
        assert size < 4.2 * density * sum(p.numel() for p in model.parameters()) + 5000


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "diagonal"},
        {"schedule": "sudden"},
        {"min_density": 0.0},
        {"min_density": 1.5},
        {"schedule_begin": 0.9},
        {"schedule_frequency": 0},
        {"schedule_frequency": 1.5},
        {"schedule_end": "late"},
        {"min_density": "a"},
        {"pattern": None},
        {"proxy": "magic"},
        {"finetune_steps": 3},
        {"n_calibration": 0},
        {"precision": "fp8"},
        {"ignore": ("nowhere",)},
    ],
)
def test_impossible_options_are_rejected(options):
    with pytest.raises(ValueError, match=r"Expected|Unknown|must"):
        make(make_model("plain"), **options)

"""Discrimination-aware pruning: the contract of learners, and each part against something else."""

from __future__ import annotations

import pytest
import torch
from contracts.precision_contract import PrecisionContract
from support.networks.discriminators import discriminator_of, model_of
from torch import nn

from amc_compress.learners import DiscriminationAwarePruning
from amc_compress.learners.channel_pruning.discrimination.heads import AuxiliaryHead
from amc_compress.learners.channel_pruning.discrimination.places import (
    LossPlace,
    _watched_run,
    find_places,
)
from amc_compress.learners.testing.networks import (
    EXAMPLE,
    NETWORKS,
    make_data,
)
from amc_env.errors import InputDataError, TrainingDivergedError, UntraceableModelError

QUICK = {"block_steps": 2, "layer_steps": 1, "channels_per_step": 8}


class TestDiscriminationAwarePruning(PrecisionContract):
    def make(self, model, example, calibration, validation, **options):
        return DiscriminationAwarePruning(
            model, example, calibration, validation, train=make_data(96, 1), **QUICK, **options
        )


# ---------------------------------------------------------------------- places and heads


def test_places_of_a_resnet_are_the_sums_between_blocks():
    from amc_compress.models import make_model as make_network

    network = make_network("resnet20").eval().requires_grad_(False)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = find_places(network, torch.randn(2, 3, 32, 32), names, 3)
    assert [(p.module, p.depth, p.channels) for p in found.places] == [
        ("layer1.1", 5, 16),
        ("layer2.0", 9, 32),
        ("layer3.0", 15, 64),
    ]
    assert found.stage_of("conv1") == found.stage_of("layer1.1.conv2") == 0
    assert found.stage_of("layer1.2.conv1") == found.stage_of("layer2.0.conv1") == 1
    assert found.stage_of("linear") == 3
    assert not any(m._forward_hooks for m in network.modules())


def test_places_are_never_inside_a_branch_and_fewer_where_there_are_fewer():
    model = model_of("residual").eval().requires_grad_(False)
    names = ["stem", "conv1", "conv2", "conv3", "head"]
    found = find_places(model, EXAMPLE.repeat(2, 1, 1, 1), names, 3)
    assert [p.module for p in found.places] == ["stem", "conv3"]


class Tokens(nn.Module):
    """Linear layers on ``(N, H, W, C)``, behind a convolution of one dimension if wanted."""

    def __init__(self, conv):
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, padding=1) if conv else None
        self.first = nn.Linear(6 if conv else 3, 16)
        self.middle = nn.Sequential(nn.ReLU(), nn.Linear(16, 24), nn.Identity())
        self.act = nn.ReLU()
        self.last = nn.Linear(24, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        if self.conv is not None:
            x = self.conv(x.flatten(2)).unflatten(2, (8, 8))
        x = self.act(self.middle(self.first(x.permute(0, 2, 3, 1))) + 0.0)
        return self.head(self.last(x).mean((1, 2)))


@pytest.mark.parametrize("conv", [False, True])
def test_channels_are_where_the_module_has_them(conv):
    network = Tokens(conv).eval().requires_grad_(False)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv1d | nn.Linear)]
    found = find_places(network, torch.randn(2, 3, 8, 8), names, 9).places
    expected = {"conv": (6, 1), "first": (16, -1), "middle.1": (24, -1), "last": (8, -1)}
    assert {p.module: (p.channels, p.axis) for p in found} == {
        name: where for name, where in expected.items() if conv or name != "conv"
    }


def test_what_an_activation_answers_has_the_axis_of_its_input():
    class Late(nn.Module):
        def __init__(self, moves):
            super().__init__()
            self.first, self.act = nn.Conv2d(3, 6, 1), nn.ReLU()
            self.head, self.moves = nn.Conv2d(8 if moves else 6, 4, 1), moves

        def forward(self, x):
            x = self.first(x)
            x = self.act(x.transpose(1, 2) if self.moves else x + x.flip(2))
            return self.head(x).mean((2, 3))

    def places(moves):
        network = Late(moves).eval().requires_grad_(False)
        return _watched_run(network, torch.randn(2, 3, 8, 8), ["first", "head"])[0]

    assert [(p.module, p.axis) for p, _ in places(False)] == [
        ("first", 1), ("act", 1), ("head", 1)
    ]  # fmt: skip
    assert [p.module for p, _ in places(True)] == ["first", "head"]


class TwoWays(nn.Module):
    """Nothing passes through all of any module's output."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.c, self.d = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.c(self.a(x).relu().mean((2, 3))) + self.d(self.b(x).relu().mean((2, 3)))


def test_a_network_without_a_place_is_rejected():
    with pytest.raises(UntraceableModelError, match="place for an auxiliary loss") as caught:
        make(TwoWays())
    assert "\n" not in str(caught.value)


def test_heads_see_the_features_before_an_inplace_relu_and_end_the_pass():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    images, labels = make_data(32, 2)[0]
    found, _ = discriminator_of(model, images[:2], count=1)
    place = found.places[0]
    ran = []
    for index, layer in enumerate(model):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    loss = found.losses(images, labels, {0})[0]
    assert ran == list(range(int(place.module) + 1))
    features = model[: int(place.module) + 1](images)
    assert (features < 0).any()
    expected = nn.functional.cross_entropy(found.heads[0](features), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    both = found.losses(images, labels, {0, 1})
    assert both[0].item() == loss.item()
    logits = nn.functional.cross_entropy(model(images), labels)
    assert both[1].item() == pytest.approx(logits.item(), rel=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((4, 6), 1), ((4, 6, 5, 5), 1), ((4, 7, 6), -1)])
def test_a_head_pools_over_everything_but_images_and_channels(shape, axis):
    torch_state = torch.Generator().manual_seed(0)
    features = torch.randn(*shape, generator=torch_state)
    head = AuxiliaryHead(6, 3, axis).eval()
    head.linear.weight.data.normal_(generator=torch_state)
    first = features.movedim(axis, 1).reshape(4, 6, -1) / (1 + 1e-5) ** 0.5
    expected = first.clamp(min=0).mean(2) @ head.linear.weight.T
    torch.testing.assert_close(head(features), expected)


def test_losses_of_detached_stages_do_not_reach_the_network():
    model = model_of("plain")
    images, labels = make_data(32, 2)[0]
    found, _ = discriminator_of(model, images[:2])
    found.requires_grad_(True).zero_grad()
    losses = found.losses(images, labels, {0, 1}, detached={0})
    losses[0].backward()
    assert all(p.grad is None for p in found.network.parameters())
    assert found.heads[0].linear.weight.grad.abs().sum() > 0
    losses[1].backward()
    assert found.network[0].weight.grad.abs().sum() > 0


# ---------------------------------------------------------------------- the learner


def make(model, train=None, **options):
    options = {**QUICK, "train": make_data(96, 1) if train is None else train, **options}
    return DiscriminationAwarePruning(model, EXAMPLE, make_data(64, 2), make_data(64, 3), **options)


def test_training_makes_the_heads_tell_the_classes_apart(monkeypatch):
    from amc_compress.learners.channel_pruning.discrimination import learner as module

    losses = []

    def spy(discriminator, stage, *rest):
        train_stage(discriminator, stage, *rest)
        images, labels = make_data(128, 9)[0]
        with torch.no_grad():
            losses.append(discriminator.losses(images, labels, range(stage + 1)))

    train_stage = module.train_stage
    monkeypatch.setattr(module, "train_stage", spy)
    make(model_of("depthwise"), block_steps=40, stages=2)
    assert len(losses) == 3
    chance = torch.tensor(4.0).log().item()
    for found in losses:
        assert all(value < 0.8 * chance for value in found.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_is_ranked_once_and_selections_are_nested(name):
    learner = make(model_of(name))
    assert list(learner.ranking) == [g.name for g in learner.graph.groups]
    for group in learner.graph.groups:
        assert sorted(learner.ranking[group.name].tolist()) == list(range(group.size))
        small, large = learner.select(group.name, 4), learner.select(group.name, 8)
        assert set(small.tolist()) < set(large.tolist())


@pytest.mark.slow
def test_the_seed_decides_and_the_order_of_preparations_does_not():
    """Through the loader: all else in the training is given."""
    images, labels = (torch.cat(parts) for parts in zip(*make_data(256, 1), strict=True))
    data = torch.utils.data.TensorDataset(images, labels)

    def rankings(*seeds):
        loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
        model = model_of("residual")
        made = [make(model, seed=seed, train=loader, block_steps=5) for seed in seeds]
        return [torch.cat([*learner.ranking.values()]).tolist() for learner in made]

    one, two, three = rankings(1, 2, 3)
    assert rankings(3, 2, 1) == [three, two, one]
    assert one != two != three != one


def test_batches_from_a_shuffling_loader_are_repeatable_and_leave_the_generator_alone():
    images, labels = (torch.cat(parts) for parts in zip(*make_data(96, 1), strict=True))
    data = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    before = torch.get_rng_state()
    first = make(model_of("plain"), train=loader, block_steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    second = make(model_of("plain"), train=loader, block_steps=5)
    for name, order in first.ranking.items():
        assert torch.equal(order, second.ranking[name])


def test_progress_is_shown_on_request(capsys):
    make(model_of("depthwise"), progress=True)
    assert "discriminate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"train": []}, InputDataError, "none in pass 1"),
        ({"train": iter(make_data(32, 1))}, InputDataError, "list rather than an iterator"),
        ({"train": [(torch.zeros(1, 3, 8, 8), torch.zeros(1).long())]}, InputDataError, "two"),
        (
            {"train": [(x, y + 4) for x, y in make_data(64, 1)]},
            InputDataError,
            "training labels from 0 to 3",
        ),
        ({"criterion": "l1"}, ValueError, "its own criterion"),
        ({"stages": 0}, ValueError, "stages >= 1"),
        ({"stages": 2.5}, ValueError, r"stages to be a whole number, got 2\.5"),
        ({"block_steps": 2.5}, ValueError, "block_steps to be a whole number"),
        ({"layer_steps": 1.0}, ValueError, "layer_steps to be a whole number"),
        ({"channels_per_step": 1.5}, ValueError, "channels_per_step to be a whole number"),
        ({"block_steps": 0}, ValueError, "block_steps >= 1"),
        ({"layer_steps": -1}, ValueError, "layer_steps >= 0"),
        ({"weight": float("nan")}, ValueError, "weight to be a number, got nan"),
        ({"channels_per_step": 0}, ValueError, "channels_per_step >= 1"),
    ],
)
def test_bad_input_is_rejected_in_one_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        make(model_of("plain"), **options)
    assert "\n" not in str(caught.value)


def test_missing_training_batches_are_rejected():
    with pytest.raises(ValueError, match="train=loader"):
        DiscriminationAwarePruning(model_of("plain"), EXAMPLE, make_data(64, 2), make_data(64, 3))


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [(0, "finite gradients of '8.weight'"), (1, "finite loss in the training of stage 1 of 4")],
)
def test_numbers_that_overflow_are_an_error(shift, sentence):
    """With right answers nothing is learned, and it shows when channels are missing."""
    model = model_of("plain")
    with torch.no_grad():
        model[8].weight.mul_(1e30)
    train = [(x, (y + shift) % 4) for x, y in make_data(96, 1)]
    with pytest.raises(TrainingDivergedError, match=sentence):
        make(model, train=train, precision="fp32", block_steps=5)


def test_sixteen_additions_are_enough_for_every_width():
    learner = make(model_of("plain"), channels_per_step=None, block_steps=1, layer_steps=0)
    for size in (1, 2, 15, 16, 17, 24, 31, 32, 33, 120, 1000):
        options = learner._greedy(size)
        assert options.additions(size) <= 16
        # No more at a time than that takes.
        assert options.per_step == 1 or size / (options.per_step - 1) > 16


def test_stages_of_layers_follow_their_depth():
    from amc_compress.learners.channel_pruning.discrimination.places import LossPlaces

    places = LossPlaces(
        (LossPlace("a", 2, 8, 1), LossPlace("b", 4, 8, 1)), {"x": 1, "y": 2, "z": 3, "w": 5}
    )
    assert [places.stage_of(name) for name in ("x", "y", "z", "w", "unknown")] == [0, 0, 1, 2, 2]

"""Discrimination-aware pruning: the contract of learners, and each part against something else."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from contracts.learner_contract import (
    EXAMPLE,
    NETWORKS,
    LearnerContract,
    make_data,
    make_model,
)
from torch import nn

from amc_env.errors import InputDataError, TrainingDivergedError, UntraceableModelError
from learners import DiscriminationAwarePruning
from learners.channel_pruning.discrimination_heads import AuxiliaryHead, Discriminator
from learners.channel_pruning.discrimination_places import Place, find_places
from learners.channel_pruning.discrimination_selection import (
    GatedWeights,
    GreedyOptions,
    GroupLoss,
    greedy_order,
    minimise,
)
from learners.tracing import trace


@functools.cache
def trained(name):
    return make_model(name)


def model_of(name):
    return copy.deepcopy(trained(name))


QUICK = {"block_steps": 2, "layer_steps": 1, "channels_per_step": 8}


class TestDiscriminationAwarePruning(LearnerContract):
    def make(self, model, example, calibration, validation, **options):
        return DiscriminationAwarePruning(
            model, example, calibration, validation, train=make_data(96, 1), **QUICK, **options
        )


def discriminator_of(model, image, count=2, classes=4):
    """A discriminator whose heads have learned something, by random numbers."""
    network = model.eval().requires_grad_(False)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    places = find_places(network, image, names, count)
    found = Discriminator(network, places.places, classes, torch.float32).eval()
    generator = torch.Generator().manual_seed(7)
    for head in found.heads:
        for tensor in (head.linear.weight, head.norm.running_mean):
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
    return found.requires_grad_(False), places


def by_hand(model, head, images, labels, weight, lam):
    """``L`` of the second convolution of the plain network, in float64, written out."""
    double = model.double()
    x = double[:3](images.double())
    original = double[3](x)
    output = nn.functional.conv2d(x, weight, double[3].bias, padding=1)
    reconstruction = (output - original).square().sum() / original.square().sum()
    mean, variance = head.norm.running_mean.double(), head.norm.running_var.double()
    normed = (output - mean.view(1, -1, 1, 1)) / (variance + 1e-5).sqrt().view(1, -1, 1, 1)
    logits = normed.clamp(min=0).mean((2, 3)) @ head.linear.weight.double().T
    loss = -(logits.log_softmax(1)[range(len(labels)), labels]).mean()
    return reconstruction + lam * loss


def test_gradient_norms_equal_autograd_and_finite_differences_of_the_loss_written_out():
    model = model_of("plain")
    images, labels = make_data(32, 2)[0]
    slots = trace(model, EXAMPLE).unit_slots("0")
    slots = [s for s in slots if s.role == "consumer"]
    found, _ = discriminator_of(model, images[:2], count=1)
    assert found.places[0].module == "3"
    problem = GroupLoss(found, model, slots, {0}, [(images, labels)], weight=0.7)
    weights = GatedWeights(model, slots)
    weights.add(torch.tensor([3, 9]))
    gradient = problem.gradients(weights.leaves, 0)["3.weight"]
    norms = weights.squared_norms({"3.weight": gradient})
    start = weights.leaves["3.weight"].double()
    assert start.abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [3, 9]

    leaf = start.clone().requires_grad_()
    args = (found.heads[0], images, labels)
    loss = by_hand(model, *args, leaf, 0.7)
    loss.backward()
    scale = model[3].weight.square().mean()
    expected = scale * leaf.grad.square().sum((0, 2, 3))
    torch.testing.assert_close(norms, expected, rtol=1e-3, atol=1e-12)
    for index in ((0, 0, 1, 1), (5, 3, 0, 2), (20, 12, 2, 1)):
        up, down = start.clone(), start.clone()
        up[index] += 1e-5
        down[index] -= 1e-5
        with torch.no_grad():
            rise = by_hand(model, *args, up, 0.7) - by_hand(model, *args, down, 0.7)
        assert gradient[index].item() == pytest.approx(rise.item() / 2e-5, rel=1e-3, abs=1e-6)


def test_several_consumers_add_up_and_lack_the_same_units():
    model = model_of("residual")
    images, labels = make_data(32, 2)[0]
    slots = [s for s in trace(model, EXAMPLE).unit_slots("stem") if s.role == "consumer"]
    found, places = discriminator_of(model, images[:2])
    stages = {places.stage_of(s.module) for s in slots}
    problem = GroupLoss(found, model, slots, stages, [(images, labels)], weight=1.0)
    weights = GatedWeights(model, slots)
    weights.add(torch.arange(8))
    assert set(weights.leaves) == {"conv1.weight", "conv3.weight"}
    leaves = {n: w.clone().requires_grad_() for n, w in weights.leaves.items()}
    problem.loss(leaves, 0).backward()
    expected = sum(
        leaf.grad.double().square().sum((0, 2, 3))
        * model.get_parameter(name).double().square().mean()
        for name, leaf in leaves.items()
    )
    norms = weights.squared_norms(problem.gradients(weights.leaves, 0))
    torch.testing.assert_close(norms, expected)
    # With every unit there nothing is lost, and only the auxiliary losses remain.
    weights.add(torch.arange(8, 16))
    whole = sum(found.losses(images, labels, stages).values())
    assert problem.loss(weights.leaves, 0).item() == pytest.approx(whole.item(), abs=1e-6)


def test_weights_in_front_of_a_batch_norm_may_have_any_scale():
    """The network is the same function, and so is what its readers want of a group."""
    images, labels = make_data(32, 2)[0]
    found = []
    for factor in (1.0, 4.0):
        model = model_of("residual")
        with torch.no_grad():
            model.conv3.weight.mul_(factor)
            model.bn3.running_mean.mul_(factor)
            model.bn3.running_var.add_(1e-5).mul_(factor**2).sub_(1e-5)  # epsilon included
        slots = [s for s in trace(model, EXAMPLE).unit_slots("stem") if s.role == "consumer"]
        network, places = discriminator_of(model, images[:2], count=1)
        stages = {places.stage_of(s.module) for s in slots} - {0}
        problem = GroupLoss(network, model, slots, stages, [(images, labels)], weight=1.0)
        weights = GatedWeights(model, slots)
        weights.add(torch.arange(4))
        found.append(weights.squared_norms(problem.gradients(weights.leaves, 0)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-9)


class Informative(nn.Module):
    """Unit 5 carries the class; the others carry noise, louder."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.first.weight[:, 1] = torch.linspace(-1.5, 1.5, 8).view(8, 1, 1)
            self.first.weight[5] = torch.tensor([1.0, 0.0]).view(2, 1, 1)
            self.second.weight.copy_(3 * torch.eye(8).view(8, 8, 1, 1))
            self.second.weight[5, 5] = 0.5
            self.second.bias.fill_(0.1)  # with nothing there, ReLUs still let a gradient through
            self.head.weight[1, 5] = 4.0

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def noisy(n=128):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 2, (n,), generator=generator)
    images = torch.randn(n, 2, 3, 3, generator=generator)
    images[:, 0] = images[:, 0] * 0.1 + 1.0 * labels.view(n, 1, 1)
    return images, labels


def order_of(model, images, labels, weight, per_step=1, layer_steps=2, stages=(1,)):
    slots = [s for s in trace(model, images[:1]).unit_slots("first") if s.role == "consumer"]
    found, _ = discriminator_of(model, images[:2], count=1, classes=2)
    problem = GroupLoss(found, model, slots, stages, [(images, labels)], weight)
    options = GreedyOptions(weight, layer_steps, per_step)
    return greedy_order(GatedWeights(model, slots), problem, 8, options).tolist()


def test_the_unit_that_tells_the_classes_apart_comes_first():
    images, labels = noisy()
    order = order_of(Informative(), images, labels, weight=100.0)
    assert order[0] == 5
    assert sorted(order) == list(range(8))
    # The reconstruction alone wants the loud ones first.
    alone = order_of(Informative(), images, labels, weight=0.0)
    assert alone[0] in (0, 7)
    assert alone.index(5) > 2


def test_a_copy_of_what_is_there_comes_last_once_the_weights_have_been_fitted():
    """Orthogonal matching: the weights of what is present take over what its copy did."""
    model = Informative()
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.weight[0, 0] = model.first.weight[1, 0] = 1.0  # twins, the loudest
        model.first.weight[2, 1] = 0.9
        model.first.weight[3, 1] = -0.7
        model.second.weight.copy_(torch.eye(8).view(8, 8, 1, 1))
        model.second.weight[1, 1], model.second.weight[1, 0] = 0.0, 0.0
        model.second.weight[0, 0] = model.second.weight[0, 1] = 1.0
    images, labels = noisy(32)
    fitted = order_of(model, images, labels, weight=0.0, layer_steps=160)
    assert fitted[0] == 0
    assert fitted[:4].index(1) == 3
    stuck = order_of(model, images, labels, weight=0.0, layer_steps=0)
    assert stuck[:2] == [0, 1]


@pytest.mark.parametrize("per_step", [1, 3, 8, 20])
def test_units_added_together_are_ordered_and_complete(per_step):
    images, labels = noisy()
    assert GreedyOptions(1.0, 0, per_step).additions(8) == {1: 8, 3: 3, 8: 1, 20: 1}[per_step]
    order = order_of(Informative(), images, labels, 1.0, per_step=per_step)
    assert sorted(order) == list(range(8))
    assert order[0] == order_of(Informative(), images, labels, 1.0)[0]


def test_an_added_channel_starts_with_its_pretrained_weights_and_absent_ones_stay_zero():
    model = model_of("plain")
    images, labels = make_data(32, 2)[0]
    slots = [s for s in trace(model, EXAMPLE).unit_slots("3") if s.role == "consumer"]
    found, _ = discriminator_of(model, images[:2], count=1)
    problem = GroupLoss(found, model, slots, {1}, [(images, labels)], weight=1.0)
    weights = GatedWeights(model, slots)
    original = model[6].weight.detach().clone().view(20, 24, 16)  # flattened 4 x 4 maps
    leaf = weights.leaves["6.weight"].view(20, 24, 16)
    assert not leaf.any()
    weights.add(torch.tensor([4]))
    assert torch.equal(leaf[:, 4], original[:, 4])
    minimise(weights, problem, 3, iter(range(3)))
    tuned = leaf[:, 4].clone()
    assert not torch.equal(tuned, original[:, 4])
    weights.add(torch.tensor([11]))
    assert torch.equal(leaf[:, 11], original[:, 11])
    assert torch.equal(leaf[:, 4], tuned)
    assert leaf.abs().sum((0, 2)).nonzero().flatten().tolist() == [4, 11]
    assert torch.equal(model[6].weight.view(20, 24, 16), original)


def test_fitting_the_present_weights_lowers_the_loss():
    model = model_of("residual")
    images, labels = make_data(32, 2)[0]
    slots = [s for s in trace(model, EXAMPLE).unit_slots("conv1") if s.role == "consumer"]
    found, places = discriminator_of(model, images[:2], count=1)
    stages = {places.stage_of("conv2")}
    problem = GroupLoss(found, model, slots, stages, [(images, labels)], weight=0.1)
    weights = GatedWeights(model, slots)
    weights.add(torch.arange(6))
    before = problem.loss(weights.leaves, 0).item()
    minimise(weights, problem, 20, iter(range(20)))
    assert problem.loss(weights.leaves, 0).item() < 0.9 * before


def test_no_more_feature_maps_are_kept_than_fit(monkeypatch):
    from learners.channel_pruning import discrimination_selection as selection

    model = model_of("plain")
    slots = [s for s in trace(model, EXAMPLE).unit_slots("0") if s.role == "consumer"]
    data = make_data(128, 2)
    found, _ = discriminator_of(model, data[0][0][:2], count=1)
    assert len(GroupLoss(found, model, slots, {0}, data, 1.0).batches) == 4
    monkeypatch.setattr(selection, "_TARGET_BYTES", 2 * 32 * 24 * 16 * 4)
    assert len(GroupLoss(found, model, slots, {0}, data, 1.0).batches) == 2
    monkeypatch.setattr(selection, "_TARGET_BYTES", 0)
    assert len(GroupLoss(found, model, slots, {0}, data, 1.0).batches) == 1


# ---------------------------------------------------------------------- places and heads


def test_places_of_a_resnet_are_the_sums_between_blocks():
    from experiments.models import make_model as make_network

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


class TwoWays(nn.Module):
    """Nothing passes through all of any module's output."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.c, self.d = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.c(self.a(x).relu().mean((2, 3))) + self.d(self.b(x).relu().mean((2, 3)))


def test_a_network_without_a_place_is_refused():
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
    from learners.channel_pruning import discrimination as module

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


def test_the_seed_decides_and_the_order_of_preparations_does_not():
    model = model_of("residual")
    first, again = make(model, seed=1), make(model, seed=1)
    for name, order in first.ranking.items():
        assert torch.equal(order, again.ranking[name])


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
        ({"block_steps": 0}, ValueError, "block_steps >= 1"),
        ({"layer_steps": -1}, ValueError, "layer_steps >= 0"),
        ({"weight": float("nan")}, ValueError, "finite weight"),
        ({"channels_per_step": 0}, ValueError, "channels_per_step >= 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        make(model_of("plain"), **options)
    assert "\n" not in str(caught.value)


def test_missing_training_batches_are_refused():
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


def test_stages_of_layers_follow_their_depth():
    from learners.channel_pruning.discrimination_places import Places

    places = Places((Place("a", 2, 8, 1), Place("b", 4, 8, 1)), {"x": 1, "y": 2, "z": 3, "w": 5})
    assert [places.stage_of(name) for name in ("x", "y", "z", "w", "unknown")] == [0, 0, 1, 2, 2]

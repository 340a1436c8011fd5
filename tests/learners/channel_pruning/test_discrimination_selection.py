"""Greedy selection: gradients against the loss written out, the order in constructed cases."""

from __future__ import annotations

import pytest
import torch
from support.networks.discriminators import discriminator_of, model_of
from torch import nn

from amc_compress.learners.channel_pruning.discrimination.selection import (
    GatedWeights,
    GreedyOptions,
    GroupLoss,
    greedy_order,
    minimise,
)
from amc_compress.learners.testing.networks import EXAMPLE, make_data
from amc_compress.learners.tracing.traced_model import trace


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
    options = GreedyOptions(layer_steps, per_step)
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
    assert GreedyOptions(0, per_step).additions(8) == {1: 8, 3: 3, 8: 1, 20: 1}[per_step]
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
    from amc_compress.learners.channel_pruning.discrimination import selection

    model = model_of("plain")
    slots = [s for s in trace(model, EXAMPLE).unit_slots("0") if s.role == "consumer"]
    data = make_data(128, 2)
    found, _ = discriminator_of(model, data[0][0][:2], count=1)
    assert len(GroupLoss(found, model, slots, {0}, data, 1.0).batches) == 4
    monkeypatch.setattr(selection, "_TARGET_BYTES", 2 * 32 * 24 * 16 * 4)
    assert len(GroupLoss(found, model, slots, {0}, data, 1.0).batches) == 2
    monkeypatch.setattr(selection, "_TARGET_BYTES", 0)
    assert len(GroupLoss(found, model, slots, {0}, data, 1.0).batches) == 1

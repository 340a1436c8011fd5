"""Penalties against sums by hand over units, and their gradients against finite differences."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.channel_pruning.gradual.regularisers import (
    GroupLassoPenalty,
    GrowingRegularisation,
    unit_norms,
)
from amc_compress.learners.testing.networks import EXAMPLE, NETWORKS, make_data, make_model
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import train
from amc_env.errors import InputDataError, RunFolderError

CONFIG = TrainingConfig(epochs=3, learning_rate=0.02, precision="fp32")


def network() -> nn.Module:
    """One group of four units (a batch norm on it, a depthwise layer behind) and one of three."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.Conv2d(4, 3, 1, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 4),
        )


def by_hand(net: nn.Module, group: str, unit: int) -> Tensor:
    """All trained numbers of a unit of :func:`network`, named one by one."""
    weights = dict(net.named_parameters())
    if group == "0":
        parts = [weights["0.weight"][unit], weights["0.bias"][unit], weights["1.weight"][unit],
                 weights["1.bias"][unit], weights["3.weight"][unit],
                 weights["4.weight"][:, unit]]  # fmt: skip
    else:
        parts = [weights["4.weight"][unit], weights["8.weight"][:, 4 * unit : 4 * unit + 4]]
    return torch.cat([part.detach().double().flatten() for part in parts])


def traced(net: nn.Module) -> TracedModel:
    found = trace(net.eval(), EXAMPLE)
    assert [(g.name, g.size) for g in found.graph.groups] == [("0", 4), ("4", 3)]
    return found


def test_norms_are_those_of_all_weights_of_a_unit() -> None:
    net = network()
    known = traced(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.linspace(-0.5, 0.5, p.numel()).view_as(p))
    for group, size in (("0", 4), ("4", 3)):
        expected = torch.stack([by_hand(other, group, i).norm() for i in range(size)])
        torch.testing.assert_close(unit_norms(known, other, group).double(), expected)


def test_group_lasso_is_the_sum_over_units() -> None:
    net = network()
    hook = GroupLassoPenalty(traced(net), weight=0.01)
    hook.start(net, None, 10)
    expected = 0.0
    for group, size in (("0", 4), ("4", 3)):
        for unit in range(size):
            w = by_hand(net, group, unit)
            expected += 0.01 * math.sqrt(len(w)) * math.sqrt(sum(v * v for v in w.tolist()))
    assert hook.loss().item() == pytest.approx(expected, rel=1e-5)


def test_group_lasso_is_ready_at_the_end_alone() -> None:
    hook = GroupLassoPenalty(traced(network()), weight=0.01)
    hook.start(network(), None, 10)
    assert [hook.is_ready(step) for step in range(11)] == [False] * 10 + [True]


def test_group_lasso_of_some_units_leaves_the_others_alone() -> None:
    net = network()
    hook = GroupLassoPenalty(traced(net), {"0": torch.tensor([3, 1])}, weight=0.5)
    hook.start(net, None, 10)
    loss = hook.loss()
    loss.backward()
    hands = [by_hand(net, "0", unit) for unit in (1, 3)]
    assert loss.item() == pytest.approx(
        0.5 * sum(math.sqrt(len(w)) * w.norm().item() for w in hands), rel=1e-5
    )
    gradient = net[0].weight.grad
    assert gradient[[0, 2]].abs().max() == 0.0
    # d ||w|| = w / ||w||: the same share of every weight, the batch norm's scale included.
    share = 0.5 * math.sqrt(len(hands[0])) / hands[0].norm().item()
    torch.testing.assert_close(gradient[1], share * net[0].weight[1].detach())
    torch.testing.assert_close(net[1].weight.grad[1], share * net[1].weight[1].detach())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["lasso", "growing"])
def test_gradients_are_those_of_finite_differences(name: str, kind: str) -> None:
    net = make_model(name).eval()
    known = trace(net, EXAMPLE)
    units = {g.name: torch.arange(0, g.size, 2) for g in known.graph.groups}
    hook = (
        GroupLassoPenalty(known, units, weight=0.01)
        if kind == "lasso"
        else GrowingRegularisation(known, units, delta=0.25, interval=1)
    )
    hook.start(net, None, 10)
    hook.before_step(3)
    net.zero_grad()
    hook.loss().backward()
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator) for p in net.parameters()]
    slope = sum(
        (p.grad * d).sum().item()
        for p, d in zip(net.parameters(), direction, strict=True)
        if p.grad is not None
    )
    losses = []
    for step in (2e-3, -4e-3):
        with torch.no_grad():
            for p, d in zip(net.parameters(), direction, strict=True):
                p.add_(step * d)
        losses.append(hook.loss().item())
    assert slope == pytest.approx((losses[0] - losses[1]) / 4e-3, rel=0.02, abs=1e-3)


def test_a_unit_that_has_gone_has_a_gradient_of_zero() -> None:
    net = network()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    hook = GroupLassoPenalty(trace(network().eval(), EXAMPLE), weight=1.0)
    hook.start(net, None, 10)
    hook.loss().backward()
    assert all(p.grad.abs().max() == 0.0 for p in net.parameters() if p.grad is not None)


def test_growing_regularisation_is_an_l2_penalty_of_the_removed_weights() -> None:
    net = network()
    removed = {"0": torch.tensor([1]), "4": torch.tensor([0, 2])}
    hook = GrowingRegularisation(traced(net), removed, delta=0.1, interval=2, ceiling=0.3)
    hook.start(net, None, 10)
    # Each weight to be removed once, though 4.weight[0, 1] belongs to two units to be removed.
    squares = sum(
        by_hand(net, group, int(unit)).square().sum().item()
        for group, units in removed.items()
        for unit in units
    )
    squares -= net[4].weight[[0, 2], 1].square().sum().item()
    for step, factor in [(0, 0.0), (1, 0.0), (2, 0.1), (5, 0.2), (6, 0.3), (9, 0.3)]:
        hook.before_step(step)
        loss = hook.loss()
        assert (0.0 if loss is None else loss.item()) == pytest.approx(
            0.5 * factor * squares, rel=1e-5
        )
    net.zero_grad()
    hook.loss().backward()
    assert net[0].weight.grad[[0, 2, 3]].abs().max() == 0.0
    torch.testing.assert_close(net[0].weight.grad[1], 0.3 * net[0].weight[1].detach())


@pytest.mark.parametrize(("steps", "interval"), [(100, 5), (37, 3), (7, 5), (2, 1), (1000, 1)])
def test_the_default_growth_is_at_its_ceiling_in_time(steps: int, interval: int) -> None:
    hook = GrowingRegularisation(
        traced(network()), {"0": torch.tensor([0])}, interval=interval, ceiling=0.7, rise=0.5
    )
    hook.start(network(), None, steps)
    factors = [hook.factor(step) for step in range(steps)]
    assert factors == sorted(factors)
    assert factors[0] == 0.0
    assert factors[-1] == pytest.approx(0.7)
    at_ceiling = next(i for i, f in enumerate(factors) if f > 0.7 * (1 - 1e-9))
    assert at_ceiling <= max(0.5 * (steps - 1), interval)
    assert [hook.is_ready(step) for step in range(1, steps + 1)] == [
        i >= at_ceiling for i in range(steps)
    ]


def test_removed_units_fade_and_the_others_keep_the_ordinary_decay() -> None:
    net = network()
    known = traced(copy.deepcopy(net))
    removed = {"0": torch.tensor([0, 2])}
    before = unit_norms(known, net, "0")
    data = make_data(256, 1)
    train(
        net, data, data, replace(CONFIG, epochs=8),
        hooks=[GrowingRegularisation(known, removed, interval=1)],
    )  # fmt: skip
    after = unit_norms(known, net, "0")
    assert (after[[0, 2]] < 0.3 * before[[0, 2]]).all()
    assert (after[[1, 3]] > 0.7 * before[[1, 3]]).all()


@pytest.mark.parametrize("kind", [GroupLassoPenalty, GrowingRegularisation])
def test_a_resumed_training_has_the_same_bits(kind: type, tmp_path: Path) -> None:
    known = traced(network())
    data = make_data(96, 1)

    def hook(first: int = 0) -> GroupLassoPenalty | GrowingRegularisation:
        return kind(known, {"0": torch.tensor([first, 3])})

    straight, resumed, stopped = network(), network(), hook()
    train(straight, data, data, CONFIG, hooks=[hook()])

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    stopped.after_step = stop
    with pytest.raises(KeyboardInterrupt):
        train(network(), data, data, CONFIG, hooks=[stopped], checkpoint_dir=tmp_path)
    with pytest.raises(RunFolderError, match=r"hooks was .*2 units"):
        train(network(), data, data, CONFIG, hooks=[hook(1)], checkpoint_dir=tmp_path, resume=True)
    train(resumed, data, data, CONFIG, hooks=[hook()], checkpoint_dir=tmp_path, resume=True)
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_penalised_is_rejected() -> None:
    known = traced(network())
    with pytest.raises(ValueError, match="No channel group named 'x'"):
        GroupLassoPenalty(known, {"x": torch.tensor([0])})
    for units in ([4], [1, 1], [-1]):
        with pytest.raises(ValueError, match="distinct units below 4 of the group '0'"):
            GrowingRegularisation(known, {"0": torch.tensor(units)})
    for units in ([True, False, False, True], [0.7, 2.0]):
        with pytest.raises(ValueError, match=r"group '0' as integers, got torch\.(bool|float32)"):
            GroupLassoPenalty(known, {"0": torch.tensor(units)})
    with pytest.raises(ValueError, match="at least one unit"):
        GrowingRegularisation(known, {"0": torch.tensor([], dtype=torch.int64)})
    with pytest.raises(ValueError, match="ceiling above 0"):
        GrowingRegularisation(known, {"0": torch.tensor([0])}, ceiling=0.0)
    with pytest.raises(ValueError, match="weight above 0"):
        GroupLassoPenalty(known, weight=-1.0)
    late = GrowingRegularisation(known, {"0": torch.tensor([0])}, delta=1e-4)
    with pytest.raises(ValueError, match=r"20 steps with delta=0\.0001 every 5 end at 0\.0003"):
        late.start(network(), None, 20)
    for steps, interval in [(5, 5), (1, 1), (3, 5)]:
        short = GrowingRegularisation(known, {"0": torch.tensor([0])}, interval=interval)
        with pytest.raises(ValueError, match=rf"{steps} steps end before .* after {interval}:"):
            short.start(network(), None, steps)
    cut = known.slice({"0": torch.tensor([0, 1])})
    with pytest.raises(InputDataError, match=r"0\.weight of shape \[4, 3, 3, 3\], got .*\[2, 3"):
        GroupLassoPenalty(known).start(cut, None, 20)
    frozen = network().requires_grad_(False)
    with pytest.raises(InputDataError, match="frozen"):
        GroupLassoPenalty(known).start(frozen, None, 20)

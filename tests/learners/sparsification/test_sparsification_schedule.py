"""Sparsity that rises during training: the formula, regrowth, what hides behind masks, resuming."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from amc_compress.learners.layers.masked import masked_layers, sparse_layer
from amc_compress.learners.sparsification import GradualSparsity, Pattern, SparsitySchedule
from amc_compress.learners.testing.networks import Interrupted, make_data, make_model
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import train

UNSTRUCTURED = Pattern.parse("unstructured")


def sparse_pair(keep: int = 10) -> tuple[nn.Module, nn.Module]:
    """A dense network, and the same with a masked layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))
    network = copy.deepcopy(dense)
    network[3] = sparse_layer(network[3], UNSTRUCTURED.mask(network[3].weight, keep))
    return dense, network


def hook_for(dense: nn.Module, **schedule) -> GradualSparsity:
    return GradualSparsity(dense.state_dict(), UNSTRUCTURED, SparsitySchedule(**schedule))


def test_sparsity_follows_equation_1():
    schedule = SparsitySchedule(begin=0.1, end=0.5, exponent=3.0, frequency=50)
    first, span, final = 100, 400, 0.9
    updates = [t for t in range(1000) if schedule.is_update(t, 1000)]
    assert updates == list(range(100, 501, 50))
    for t in range(0, 1000, 7):
        due = min(max((t - first) / span, 0.0), 1.0)
        expected = final + (0.0 - final) * (1.0 - due) ** 3
        assert schedule.progress(t, 1000) * final == pytest.approx(expected)


def test_the_last_masks_come_even_where_no_update_falls_on_the_end():
    schedule = SparsitySchedule(begin=0.0, end=0.5, frequency=30)
    assert [t for t in range(200) if schedule.is_update(t, 200)] == [0, 30, 60, 90, 100]


@pytest.mark.parametrize("total", [1, 2, 3, 10])
@pytest.mark.parametrize("end", [0.0, 0.5, 1.0])
def test_however_short_a_training_is_its_last_step_has_the_final_masks(total, end):
    dense, network = sparse_pair(keep=10)
    hook = hook_for(dense, end=end, frequency=100)
    hook.start(network, None, total)
    for step in range(total):
        hook.before_step(step)
        hook.after_step(step)
    assert hook.is_ready(total)
    assert not hook.is_ready(0)
    assert int(network[3].weight_mask.sum()) == 10


def test_training_starts_dense_from_the_original():
    dense, network = sparse_pair()
    with torch.no_grad():
        network[3].weight.mul_(0.5)
        network[1].bias.add_(1.0)
    hook = hook_for(dense)
    hook.start(network, None, 100)
    assert int(network[3].weight_mask.sum()) == 10  # until the training really begins
    hook.before_step(0)
    assert network[3].weight_mask.all()
    for key, value in dense.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


def test_weights_behind_a_mask_keep_their_value_and_come_back():
    dense, network = sparse_pair(keep=16)
    hook = hook_for(dense, end=0.5, frequency=1)
    hook.start(network, None, 100)
    layer = network[3]
    hook.before_step(0)
    hook.before_step(50)
    hidden = ~layer.weight_mask.clone()
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.mul_(0.01)  # whatever an optimiser does, weight decay for example
    hook.after_step(50)
    assert torch.equal(layer.weight[hidden], before[hidden])
    assert torch.equal(layer.weight[~hidden], 0.01 * before[~hidden])
    hook._total = 101  # one more update, in which the hidden ones are the larger
    layer.weight_mask.fill_(True)
    hook._set_masks(60)
    assert torch.equal(layer.weight_mask, hidden)


class Watch(GradualSparsity):
    """Notes density and ``(hidden before, hidden after)`` of every step."""

    def before_step(self, step):
        super().before_step(step)
        layer = next(iter(self._layers.values()))
        self.seen = [*getattr(self, "seen", []), (step, int(layer.weight_mask.sum()))]
        self.hidden = layer.weight.detach()[~layer.weight_mask].clone()

    def after_step(self, step):
        super().after_step(step)
        layer = next(iter(self._layers.values()))
        assert torch.equal(layer.weight.detach()[~layer.weight_mask], self.hidden)


def test_in_a_real_training_density_falls_and_nothing_behind_a_mask_moves():
    dense, network = sparse_pair(keep=8)
    hook = Watch(dense.state_dict(), UNSTRUCTURED, SparsitySchedule(0.0, 0.5, 3.0, 2))
    config = TrainingConfig(epochs=2, learning_rate=0.1, weight_decay=0.1, precision="fp32")
    result = train(network, make_data(160, 1), make_data(32, 2), config, hooks=(hook,))
    # 32 - 24 (1 - (1 - t / 5)^3) at t = 0, 2, 4 and 5, rounded.
    assert [kept for _, kept in hook.seen] == [32, 32, 13, 13, 8, 8, 8, 8, 8, 8]
    assert result.history[-1].is_ready
    assert not torch.equal(network[1].weight, dense[1].weight)
    assert int(network[3].weight_mask.sum()) == 8


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_training_interrupted_on_the_ramp_ends_with_the_same_bits(tmp_path, ema, stop):
    model = make_model("residual")
    config = TrainingConfig(epochs=3, learning_rate=0.02, precision="fp32", ema_decay=ema)

    def run(stop_at, **options):
        network = copy.deepcopy(model)
        for name in ("conv1", "conv3", "head"):
            layer = getattr(network, name)
            mask = UNSTRUCTURED.mask(layer.weight, layer.weight.numel() // 5)
            setattr(network, name, sparse_layer(layer, mask))
        hook = hook_for(model, begin=0.1, end=0.8, frequency=3)
        batches = Interrupted(make_data(160, 1), stop_at)
        train(network, batches, make_data(64, 2), config, hooks=(hook,), **options)
        return network

    straight = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(stop, checkpoint_dir=tmp_path)
    resumed = run(None, checkpoint_dir=tmp_path, resume=True)
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    for name, layer in masked_layers(straight).items():
        assert int(layer.weight_mask.sum()) == layer.weight.numel() // 5, name


def test_a_network_that_is_not_the_dense_one_is_rejected():
    dense, _ = sparse_pair()
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 4))
    narrow[3] = sparse_layer(narrow[3], UNSTRUCTURED.mask(narrow[3].weight, 10))
    with pytest.raises(ValueError, match=r"'1\.weight'.*one-shot"):
        hook_for(dense).start(narrow, None, 10)
    free = GradualSparsity(None, UNSTRUCTURED, SparsitySchedule())
    before = narrow[3].weight.detach().clone()
    free.start(narrow, None, 10)
    free.before_step(0)
    assert narrow[3].weight_mask.all()
    assert torch.equal(narrow[3].weight, before)


@pytest.mark.parametrize(
    "options",
    [{"begin": 0.6, "end": 0.5}, {"end": 1.1}, {"exponent": 0.0}, {"frequency": 0}, {"begin": -1}],
)
def test_impossible_schedules_are_rejected(options):
    with pytest.raises(ValueError, match="Expected"):
        SparsitySchedule(**options)

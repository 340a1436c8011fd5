"""The training loop: it learns, it says what is wrong, and it keeps what it should."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import FAST, Batches, batches, equal, network, weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from amc_compress.learners.numerics.precision import working_dtype
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate, resolve_precision, train
from amc_compress.learners.training.stepper import MovingAverage, make_optimizer
from amc_env.errors import InputDataError, TrainingDivergedError


def test_training_learns_and_ends_with_the_best_epochs_weights() -> None:
    model = network()
    result = train(model, batches(), batches(seed=1), FAST)
    assert result.best_score > 0.9
    assert len(result.history) == 4
    best = max(record.validation_score for record in result.history)
    assert result.best_score == best
    assert evaluate(model, batches(seed=1), precision="fp32") == best
    assert not model.training


def test_of_equal_epochs_the_latest_is_kept() -> None:
    # A single class: every epoch is right about everything.
    data = [(images, torch.zeros_like(labels)) for images, labels in batches()]
    model = network()
    nn.init.zeros_(model[5].weight)
    assert train(model, data, data, FAST).best_epoch == 3


def test_evaluate_equals_a_loop_and_keeps_the_mode() -> None:
    model = network().train()
    data = batches(50)
    got = evaluate(model, data, precision="fp32")
    assert model.training
    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in data:
            for image, label in zip(images, labels, strict=True):
                right += int(model(image[None])[0].argmax() == label)
    assert got == right / 50


def test_first_step_equals_sgd_by_hand() -> None:
    data = batches(32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    before = weights(model)
    config = TrainingConfig(
        epochs=1, learning_rate=0.1, weight_decay=0.01, schedule="constant", precision="fp32",
        momentum=0.9,
    )  # fmt: skip
    train(model, data, data, config)
    x, y = data[0][0].flatten(1), data[0][1]
    w, b = before["1.weight"], before["1.bias"]
    delta = (torch.softmax(x @ w.T + b, 1) - nn.functional.one_hot(y, 3)) / 32
    # Nesterov's first step: gradient + momentum * gradient; the bias does not decay.
    expected_w = w - 0.1 * 1.9 * (delta.T @ x + 0.01 * w)
    expected_b = b - 0.1 * 1.9 * delta.sum(0)
    after = model.state_dict()
    assert torch.allclose(after["1.weight"], expected_w, atol=1e-6)
    assert torch.allclose(after["1.bias"], expected_b, atol=1e-6)


def test_norms_and_biases_do_not_decay_and_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = make_optimizer(model, TrainingConfig(optimizer="adamw", weight_decay=0.1))
    decays = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays[model[5].weight] == 0.1
    assert decays[model[5].bias] == decays[model[1].weight] == decays[model[1].bias] == 0.0
    assert model[0].weight not in decays
    with pytest.raises(InputDataError, match="all of them are frozen"):
        make_optimizer(model.requires_grad_(False), TrainingConfig())


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, batches(), batches(seed=1), FAST)
    assert torch.equal(before, model[0].weight)


def test_moving_average_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = MovingAverage(model, 0.5)
    expected, values = 1.0, [3.0, -2.0, 5.0, 0.0, 4.0, 1.0, 1.0, 2.0, 7.0, 9.0, 3.0]
    for step, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        average.update(model, step)
        d = min(0.5, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * value
    assert average.model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_tied_weights_are_averaged_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    average = MovingAverage(model, 0.9)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    average.update(model, 1000)
    assert torch.allclose(average.model[1].weight, start + 0.1, atol=1e-6)


def test_the_average_is_what_is_validated_and_kept() -> None:
    model, plain = network(), network()
    config = TrainingConfig(epochs=1, learning_rate=0.1, precision="fp32", ema_decay=0.9)
    result = train(model, batches(), batches(seed=1), config)
    train(plain, batches(), batches(seed=1), TrainingConfig(epochs=1, learning_rate=0.1))
    assert not equal(weights(model), weights(plain))
    got = evaluate(model, batches(seed=1), precision="fp32")
    assert got == result.best_score


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_precision_and_optimizer_learns(precision: str, optimizer: str) -> None:
    config = TrainingConfig(
        epochs=10, optimizer=optimizer, learning_rate=0.03, precision=precision,
        schedule="one-cycle", label_smoothing=0.1, gradient_clip=1.0,
    )  # fmt: skip
    assert train(network(), batches(), batches(seed=1), config).best_score > 0.8


def test_gradient_clipping_bounds_the_step() -> None:
    model = network()
    before = weights(model)
    config = TrainingConfig(
        epochs=1, learning_rate=1.0, momentum=0.0, nesterov=False, weight_decay=0.0,
        gradient_clip=1e-3, schedule="constant", precision="fp32",
    )  # fmt: skip
    train(model, batches(32), batches(32), config)
    after = {key: value.detach() for key, value in model.named_parameters()}
    moved = math.sqrt(sum(float((after[k] - before[k]).square().sum()) for k in after))
    assert 0 < moved <= 1.001e-3


def test_the_model_comes_back_contiguous_and_without_gradients() -> None:
    model = network()
    train(model, batches(), batches(seed=1), FAST)
    for parameter in model.parameters():
        assert parameter.is_contiguous()
        assert parameter.grad is None
        assert parameter.requires_grad


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_one_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = [nn.Sequential(network(), nn.Dropout(0.3), nn.Linear(3, 3)) for _ in range(2)]
    second.load_state_dict(first.state_dict())
    torch.random.set_rng_state(state)
    train(first, batches(), batches(seed=1), FAST)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(77)
    train(second, batches(), batches(seed=1), FAST)
    assert equal(weights(first), weights(second))


def test_a_data_loaders_own_generator_is_seeded_by_the_epoch() -> None:
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    results = []
    for seed in (3, 4):  # where the generator stands before does not matter
        loader = DataLoader(
            TensorDataset(images, labels), 32, shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        model = network()
        train(model, loader, batches(seed=1), FAST)
        results.append(weights(model))
    assert equal(*results)


class Recorder:
    """A loader that notes its epochs."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(batches())


def test_loaders_are_told_the_epoch() -> None:
    loader = Recorder()
    train(network(), loader, batches(seed=1), FAST)
    assert loader.epochs == [0, 1, 2, 3]


def test_scalars_and_progress_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {}

    def note(self: SummaryWriter, tag: str, value: float, step: int) -> None:
        assert math.isfinite(value)
        seen.setdefault(tag, []).append(step)

    monkeypatch.setattr(SummaryWriter, "add_scalar", note)
    writer = SummaryWriter(str(tmp_path))
    train(network(), batches(), batches(seed=1), FAST, writer=writer, progress=True)
    writer.close()
    steps = [0, 1, 2, 3]
    assert seen == {f"finetune/{n}": steps for n in ("loss", "accuracy", "learning_rate")}
    shown = capsys.readouterr().err
    assert "epoch 4/4, loss 0." in shown
    assert "validation accuracy 1.0" in shown


def poison(data: Batches, value: float) -> Batches:
    return [*data[:-1], (torch.full_like(data[-1][0], value), data[-1][1])]


class PoisonedFrom(Recorder):
    """Turns to NaN at the second batch of the given epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.first = epoch

    def __iter__(self) -> Any:
        data = batches()
        if self.epochs[-1] >= self.first:
            data[1] = (data[1][0] * math.nan, data[1][1])
        return iter(data)


def test_divergence_stops_at_once_and_keeps_the_best_weights(tmp_path: Path) -> None:
    model, reference = network(), network()
    with pytest.raises(TrainingDivergedError, match=r"loss became nan in epoch 3, step 8: lower"):
        train(model, PoisonedFrom(2), batches(seed=1), FAST, checkpoint_dir=tmp_path)
    result = train(reference, Recorder(), batches(seed=1), FAST)
    history = [record.validation_score for record in result.history[:2]]
    assert evaluate(model, batches(seed=1), precision="fp32") == max(history)
    assert (tmp_path / "best.safetensors").exists()
    assert all(p.is_contiguous() for p in model.parameters())


def test_divergence_in_the_first_epoch_leaves_the_weights_as_they_were() -> None:
    model = network()
    before = weights(model)
    with pytest.raises(TrainingDivergedError, match="in epoch 1, step 3"):
        train(model, poison(batches(), math.nan), batches(seed=1), FAST)
    assert equal(before, weights(model))


def test_precision_rule() -> None:
    assert resolve_precision("fp32", "cpu") == torch.float32
    assert resolve_precision("bf16", "cpu") == torch.bfloat16
    with pytest.raises(ValueError, match="Unknown precision 'half'"):
        resolve_precision("half", "cpu")
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    assert working_dtype(depthwise, "auto") == torch.float32
    assert working_dtype(depthwise, "bf16") == torch.bfloat16
    assert working_dtype(network(), "auto") == resolve_precision("auto", "cpu")


def test_the_teacher_is_not_changed_and_is_followed() -> None:
    teacher, student = network(1), network(2)
    train(teacher, batches(), batches(seed=1), FAST)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    # All weight on the teacher and labels that are noise: only the teacher can be learnt from.
    noise = [(images, labels.flip(0)) for images, labels in batches()]
    config = TrainingConfig(
        epochs=10, learning_rate=0.05, precision="fp32", distillation_weight=1.0
    )
    result = train(student, noise, batches(seed=1), config, teacher=teacher)
    assert result.best_score > 0.85
    assert equal(before, weights(teacher))
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())


class CountedStarts:
    """A loader that counts how often somebody begins to read it."""

    def __init__(self) -> None:
        self.starts = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.starts += 1
        return iter([(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))] * 2)

    def __len__(self) -> int:
        return 2


def test_a_loader_is_begun_once_in_an_epoch() -> None:
    """Beginning draws a random number, and starts the workers of a loader."""
    loader = CountedStarts()
    train(torch.nn.Linear(3, 2), loader, list(loader), TrainingConfig(epochs=3), progress=True)
    assert loader.starts == 1 + 3

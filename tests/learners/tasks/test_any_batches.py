"""Training, evaluation and held-out samples for batches that are no pictures with labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.tasks.inputs import Call, count, rows
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate, train

WORDS = 20


class Error:
    """Mean squared error, by hand."""

    def __init__(self) -> None:
        self.sum, self.seen = 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.sum += float((outputs - targets).double().square().sum())
        self.seen += len(targets)

    def compute(self) -> dict[str, float]:
        return {"error": self.sum / self.seen}


class Length(Task):
    """Regression of one number per sample; a task as a user writes one."""

    name = "length"
    metric = "error"
    higher_is_better = False
    best_score = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets)

    def meter(self, *, reported: bool = False) -> Error:
        return Error()

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        return float(torch.isclose(outputs, reference, rtol=1e-3).float().mean())


class Reader(nn.Module):
    """Sums up numbers of words; padding counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, ids: Tensor, *, mask: Tensor) -> Any:
        found = self.head(self.hidden(self.table(ids)).relu()).squeeze(-1)
        return {"logits": (found * mask).sum(1), "hidden": found}


def texts(seed: int, sizes: tuple[int, ...] = (6, 5, 6, 3)) -> list[dict[str, Tensor]]:
    """Batches of texts, each padded to its own longest one."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for place, size in enumerate(sizes):
        length = 4 + place % 3
        ids = torch.randint(WORDS, (size, length), generator=generator)
        lengths = torch.randint(1, length + 1, (size,), generator=generator)
        mask = torch.arange(length) < lengths.unsqueeze(1)
        targets = (ids.float() / WORDS * mask).sum(1)
        found.append({"ids": ids, "mask": mask, "labels": targets})
    return found


def error_by_hand(network: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """Mean squared error over all samples, one at a time."""
    total, seen = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            for i in range(len(batch["ids"])):
                out = network(batch["ids"][i : i + 1], mask=batch["mask"][i : i + 1])["logits"]
                total += float(out - batch["labels"][i]) ** 2
                seen += 1
    return total / seen


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Reader().eval()


def test_a_network_of_keyword_arguments_is_evaluated_and_trained(network: nn.Module) -> None:
    train_on, validate_on = texts(1, (8,) * 12), texts(2)
    before = evaluate(network, validate_on, task=Length())
    assert before == pytest.approx(-error_by_hand(network, validate_on), rel=1e-5)
    config = TrainingConfig(epochs=8, learning_rate=0.02, precision="fp32", ema_decay=0.9)
    result = train(network, train_on, validate_on, config, task=Length())
    assert result.best_score > 0.5 * before
    assert result.best_score == pytest.approx(-error_by_hand(network, validate_on), rel=1e-4)
    assert result.best_score == max(record.validation_score for record in result.history)
    assert all(record.train_score is not None for record in result.history)


def test_training_of_another_task_resumes_to_the_same_bits(
    network: nn.Module, tmp_path: Any
) -> None:
    config = TrainingConfig(epochs=3, learning_rate=0.02, precision="fp32")
    given = texts(1), texts(2), config
    whole = train(network, *given, task=Length(), checkpoint_dir=tmp_path)
    torch.manual_seed(0)
    again = Reader()
    found = train(again, *given, task=Length(), checkpoint_dir=tmp_path, resume=True)
    assert found.best_score == whole.best_score
    for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("n_validation", [None, 1, 7, 20, 99])
@pytest.mark.parametrize("lengths", ["equal", "of their own"])
def test_held_out_samples_are_a_random_subset_whatever_their_sizes(
    network: nn.Module, n_validation: int | None, lengths: str
) -> None:
    data = texts(2)
    if lengths == "equal":
        data = [texts(seed, (6,))[0] for seed in range(4)]
    example = Call((), rows({k: v for k, v in data[0].items() if k != "labels"}, slice(0, 1)))
    found = HeldOut(data, example, n_validation=n_validation, seed=3, task=Length())
    found.settle(
        [torch.float32], device=torch.device("cpu"), fused=False, layout=torch.contiguous_format
    )
    total = sum(len(batch["ids"]) for batch in data)
    assert found.n_samples == total
    assert found.n_held == min(total, n_validation or total)
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(3))[: found.n_held]
    singles = [rows(batch, slice(i, i + 1)) for batch in data for i in range(len(batch["ids"]))]
    expected = error_by_hand(network, [singles[place] for place in chosen.tolist()])
    assert found.score(network, torch.float32) == pytest.approx(-expected, rel=1e-5)
    of_all = -error_by_hand(network, data)
    assert found.score(network, torch.float32, full=True) == pytest.approx(of_all, rel=1e-5)


class Boxes(Length):
    """Images of sizes of their own, in a list; the metric counts samples."""

    def split(self, batch: Any) -> tuple[Any, Any]:
        images, targets = batch
        return Call((list(images),)), list(targets)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return torch.stack([(a - b) ** 2 for a, b in zip(outputs, targets, strict=True)]).mean()

    def meter(self, *, reported: bool = False) -> Any:
        meter = Error()
        update = meter.update
        meter.update = lambda a, b: update(torch.stack(a), torch.stack(b))  # type: ignore[method-assign]
        return meter

    def outputs(self, raw: Any) -> Any:
        return list(raw)


class Means(nn.Module):
    """One number for each of a list of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.conv(image.unsqueeze(0)).mean() for image in images]


def test_samples_in_lists_keep_their_sizes() -> None:
    torch.manual_seed(0)
    network = Means().eval()
    images = [torch.randn(1, 3 + i, 4) for i in range(9)]
    targets = [image.mean() for image in images]
    data = [(images[i : i + 4], targets[i : i + 4]) for i in (0, 4, 8)]
    task = Boxes()
    assert count(task.split(data[0])[0]) == 4
    score = evaluate(network, data, task=task)
    with torch.no_grad():
        by_hand = [float(network([i])[0] - t) ** 2 for i, t in zip(images, targets, strict=True)]
    assert score == pytest.approx(-sum(by_hand) / 9, rel=1e-5)
    found = HeldOut(data, Call(([images[0]],)), n_validation=None, seed=3, task=task)
    found.settle(
        [torch.float32], device=torch.device("cpu"), fused=False, layout=torch.contiguous_format
    )
    assert found.n_held == 9
    assert found.score(network, torch.float32) == pytest.approx(score, rel=1e-5)
    result = train(network, data, data, TrainingConfig(epochs=2, learning_rate=0.1), task=task)
    assert result.best_score > score


class Stream:
    """A loader whose batches change their structure in the second."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        first, second = texts(1, (4, 4))
        yield first
        yield {"ids": second["ids"], "labels": second["labels"]}

    def __len__(self) -> int:
        return 2


def test_batches_that_change_their_structure_are_named(network: nn.Module) -> None:
    config = TrainingConfig(epochs=1)
    message = "batches of the same structure as the first"
    with pytest.raises(Exception, match=message):
        train(network, Stream(), texts(2), config, task=Length())
    with pytest.raises(Exception, match=message):
        evaluate(network, Stream(), task=Length())

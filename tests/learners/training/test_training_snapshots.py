"""Training killed inside an epoch: it goes on from the last snapshot to the same bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from support.small_training import dropping_network as network
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from amc_compress.learners.tasks.own import LibraryMetric, OwnTask
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Measure, Task
from amc_compress.learners.training import checkpoints
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import train
from amc_compress.learners.training.snapshots.meters import load_meter, meter_state
from amc_env.errors import RunFolderError

CONFIG = TrainingConfig(
    epochs=2, learning_rate=0.1, precision="fp32", ema_decay=0.9, snapshot_steps=2
)
BATCH, BATCHES = 12, 7


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Images with noise from the global generator, as transforms draw theirs."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(BATCH * BATCHES, 1, 6, 6, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return image + 0.1 * torch.randn(1, 6, 6), (image.mean() > 0).long()


class Killed(DataLoader[Any]):
    """Raises before batch ``at`` of epoch ``epoch``."""

    at, epoch, _passes = -1, -1, -1

    def __iter__(self) -> Any:
        self._passes += 1
        for number, batch in enumerate(super().__iter__()):
            if (self._passes, number) == (self.epoch, self.at):
                raise KeyboardInterrupt
            yield batch


def loader(epoch: int = -1, at: int = -1) -> Killed:
    made = Killed(Noisy(), BATCH, shuffle=True)
    made.epoch, made.at = epoch, at
    return made


VALIDATION = DataLoader(TensorDataset(Noisy().images, Noisy().images.mean((1, 2, 3)).gt(0).long()))


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def untimed(result: Any) -> list[Any]:
    return [replace(record, seconds=0.0) for record in result.history]


@pytest.mark.parametrize(("epoch", "at", "reread"), [(0, 5, True), (1, 3, True), (1, 6, False)])
def test_a_training_goes_on_inside_the_epoch(
    tmp_path: Path, epoch: int, at: int, reread: bool
) -> None:
    straight, resumed = network(), network()
    expected = train(straight, loader(), VALIDATION, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        train(network(), loader(epoch, at), VALIDATION, CONFIG, checkpoint_dir=tmp_path)
    inside = torch.load(tmp_path / "last.pt", weights_only=True)[checkpoints.INSIDE]
    assert inside["batches"] == at // 2 * 2
    torch.manual_seed(99)
    again = loader()
    read: list[int] = []
    if not reread:  # a loader that finds a batch itself

        def from_batch(first: int) -> Any:
            read.append(first)
            batches = DataLoader.__iter__(again)
            return list(batches)[first:]

        again.from_batch = from_batch  # type: ignore[attr-defined]
    # Other snapshots, or none, are no other training.
    config = replace(CONFIG, snapshot_steps=None, snapshot_seconds=None)
    got = train(resumed, again, VALIDATION, config, checkpoint_dir=tmp_path, resume=True)
    assert read == ([] if reread else [6])
    if reread:
        assert same(straight, resumed)
        assert untimed(got) == untimed(expected)


def test_snapshots_are_taken_by_time_and_their_version_tells_old_releases(tmp_path: Path) -> None:
    config = replace(CONFIG, snapshot_steps=None, snapshot_seconds=1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(network(), loader(0, 4), VALIDATION, config, checkpoint_dir=tmp_path)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (state["version"], state[checkpoints.INSIDE]["batches"]) == (3, 4)
    with pytest.raises(RunFolderError, match="learning_rate was"):
        train(
            network(), loader(), VALIDATION, replace(config, learning_rate=0.2),
            checkpoint_dir=tmp_path, resume=True,
        )  # fmt: skip


@pytest.mark.parametrize("change", [{"snapshot_steps": 0}, {"snapshot_seconds": 0.0}])
def test_snapshots_need_a_distance(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be None or"):
        replace(CONFIG, **change)


def _metric(kind: str) -> Any:
    if kind == "one":
        return torchmetrics.classification.MulticlassF1Score(3)
    if kind == "lists":
        return torchmetrics.classification.MulticlassAUROC(3)
    return torchmetrics.MetricCollection(
        [
            torchmetrics.classification.MulticlassRecall(3),
            torchmetrics.classification.MulticlassPrecision(3),
        ]
    )


@pytest.mark.parametrize("kind", ["task", "one", "lists", "several"])
def test_a_meter_goes_on_where_it_was(kind: str) -> None:
    task: Task = make_task("classification")
    if kind != "task":
        task = OwnTask(task, metric=LibraryMetric(_metric(kind), Measure()), loss=None)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(9, 3, generator=generator), torch.arange(9) % 3) for _ in range(4)]
    whole, first = task.meter(reported=True), task.meter(reported=True)
    for number, batch in enumerate(batches):
        whole.update(*batch)
        if number < 2:
            first.update(*batch)
    state = copy.deepcopy(meter_state(first, task.meter(reported=True)))
    second = task.meter(reported=True)
    assert state is not None
    load_meter(second, state)
    for batch in batches[2:]:
        second.update(*batch)
    assert second.compute() == whole.compute()


def test_a_meter_that_cannot_be_kept_says_so() -> None:
    class Counts:
        def __init__(self) -> None:
            self.seen = {1}

        def update(self, outputs: Any, targets: Any) -> None: ...

        def compute(self) -> dict[str, float]:
            return {}

    assert meter_state(Counts(), Counts()) is None

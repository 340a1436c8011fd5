"""Trainings that one process and several ones must carry out alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from amc_compress.data.batches import to_batches
from amc_compress.data.loader import TensorLoader
from amc_compress.learners.networks.normalisation import Normalisation
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.distributed.ranks import Ranks
from amc_compress.learners.training.distributed.validation import measured_by_all
from amc_compress.learners.training.feature_matching import FeatureMatching
from amc_compress.learners.training.hooks import TrainingHook
from amc_compress.learners.training.loop import TrainingResult, train
from amc_env.errors import InputDataError
from support.small_training import batches, weights

ONE_EPOCH = TrainingConfig(epochs=1, learning_rate=0.1, precision="fp32")


class Net(nn.Module):
    """Two convolutions of 6 x 6 images, with a head that counts in training alone."""

    def __init__(
        self, *, norm: bool = False, wide: int = 8, drop: float = 0.0, tracks: bool = True
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop)
        with torch.random.fork_rng():
            torch.manual_seed(wide)
            self.first = nn.Conv2d(1, wide, 3, padding=1, bias=not norm)
            self.norm = nn.BatchNorm2d(wide, track_running_stats=tracks) if norm else nn.Identity()
            self.second = nn.Conv2d(wide, 6, 3, stride=2)
            self.unused = nn.Linear(3, 2)
            self.last = nn.Linear(24, 3)

    def forward(self, images: Tensor) -> Any:
        seen = self.second(self.norm(self.first(images)).relu()).relu()
        logits = self.last(self.drop(seen.flatten(1)))
        return (logits, self.unused(logits)) if self.training else logits


@dataclass(frozen=True)
class Case:
    """A training, made anew in every process."""

    network: Callable[[], nn.Module] = Net
    config: TrainingConfig = ONE_EPOCH
    loader: Callable[[], Any] = lambda: batches(70)  # batches of 32, 32 and 6
    hooks: Callable[[nn.Module], Sequence[TrainingHook]] = lambda _: ()
    teacher: bool = False

    def run(self, **more: Any) -> tuple[dict[str, Tensor], TrainingResult]:
        """The trained weights, and the result."""
        network = self.network()
        teacher = Net(wide=12).eval() if self.teacher else None
        result = train(
            network, self.loader(), batches(48, seed=1), self.config, teacher=teacher,
            **{"hooks": self.hooks(network), **more},
        )  # fmt: skip
        return weights(network), result


def shuffled(n: int = 70, **options: Any) -> DataLoader[Any]:
    """A loader that shuffles by the global random numbers."""
    images, labels = (torch.cat(part) for part in zip(*batches(n), strict=True))
    return DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True, **options)


CASES: dict[str, Case] = {
    "everything at once": Case(
        config=replace(
            ONE_EPOCH,
            accumulate=2,
            ema_decay=0.9,
            gradient_clip=1.0,
            label_smoothing=0.1,
        ),
        hooks=lambda _: [FeatureMatching(weight=10.0)],
        teacher=True,
        loader=shuffled,
    ),
    "norms that track nothing": Case(
        lambda: Net(norm=True, tracks=False), replace(ONE_EPOCH, sync_batch_norm=True)
    ),
    "synchronised norms": Case(
        lambda: Net(norm=True), replace(ONE_EPOCH, optimizer="adamw", sync_batch_norm=True)
    ),
}


def carried_out() -> tuple[dict[str, tuple[dict[str, Tensor], TrainingResult]], list[Any]]:
    """The results of all cases, and what is measured."""
    return {name: case.run() for name, case in CASES.items()}, validated()


def kept_on_going(folder: Path, epochs: int, stop: int | None) -> tuple[Any, Any]:
    """A training with a checkpoint after every step, killed after one of them; resumed if not."""
    config = replace(ONE_EPOCH, epochs=epochs, ema_decay=0.9, snapshot_steps=1)
    case = Case(lambda: Net(norm=True, drop=0.2), config, shuffled)
    if stop is None:
        return case.run(checkpoint_dir=folder, resume=True)
    with contextlib.suppress(KeyboardInterrupt):
        case.run(checkpoint_dir=folder, hooks=[_Stop(stop)])
    return case.run(checkpoint_dir=folder, resume=True, hooks=[_Stop(None)])


class _Stop(TrainingHook):
    """Ends a training after a step, as an interruption of all processes does."""

    name = "stop"

    def __init__(self, step: int | None) -> None:
        self._step = step

    def after_step(self, step: int) -> None:
        if step == self._step:
            raise KeyboardInterrupt


def rejected() -> list[str]:
    """What is said to trainings that several processes cannot carry out."""
    network = Net(norm=True)
    images, labels = (torch.cat(part) for part in zip(*batches(64), strict=True))
    data = TensorDataset(images, labels)
    cut = DistributedSampler(data, num_replicas=2, rank=distributed.get_rank())
    unseeded = batches(64, seed=distributed.get_rank())
    told = []
    for loader, seed in (
        (DataLoader(data, 32, sampler=cut), 0),
        (unseeded, 0),
        (list(zip(images.split(3), labels.split(3), strict=True)), 0),
        (batches(64), distributed.get_rank()),
    ):
        try:
            train(network, loader, batches(48), replace(ONE_EPOCH, seed=seed))
        except InputDataError as error:
            told.append(str(error))
    return told


def validated() -> list[Any]:
    """What is measured on data of several kinds, or said of them; the last ones alone differ."""
    images, labels = (torch.cat(part) for part in zip(*batches(70), strict=True))
    pixels = torch.randint(0, 256, (70, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    ready = TensorLoader(
        pixels.to(torch.uint8), labels, Normalisation(255.0, (0.5,), (0.2,)), batch_size=16
    )
    by_index = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True)
    samples = to_batches(TensorDataset(images, labels), "data", batch_size=16, shuffle=False)
    values = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    numbers = list(zip(images.split(16), values.split(16), strict=True))
    wrong = [*batches(32), (images[:32], labels[:32] + 7)]
    unseeded = batches(64, seed=distributed.get_rank() if distributed.is_initialized() else 0)
    found: list[Any] = []
    for task, loader in (
        ("classification", batches(70)), ("classification", ready), ("classification", by_index),
        ("classification", samples), ("regression", numbers), ("regression", numbers[:1]),
        ("classification", []), ("classification", wrong), ("classification", unseeded),
    ):  # fmt: skip
        try:
            values_of = measured_by_all(
                Net(), loader, "validation ", make_task(task), torch.float32, "cpu",
                ranks=Ranks.joined("cpu"),
            )  # fmt: skip
            found.append(values_of)
        except InputDataError as error:
            found.append(str(error))
    return found

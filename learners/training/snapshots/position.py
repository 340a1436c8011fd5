"""How far an epoch has come: what a checkpoint inside of it holds, and what it goes on from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import mapped
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches
from amc_compress.learners.training.distributed.ranks import ALONE, Ranks
from amc_compress.learners.training.distributed.steps import Step
from amc_compress.learners.training.snapshots.meters import load_meter, meter_state
from amc_env.errors import TrainingDivergedError


class Position:
    """What an epoch has read and measured so far.

    Args:
        task: Its metric is measured, where outputs in training mode can be.
        device: Of the training; its random numbers are part of the position.
        ranks: The processes that train together; each has a position of its own.

    Attributes:
        batches: That were read.
        seen: Samples that were trained on, in all processes.
    """

    def __init__(self, task: Task, device: str | torch.device, ranks: Ranks = ALONE) -> None:
        self.batches = 0
        self.seen = 0
        self._own = 0  # samples of this process
        self._ranks = ranks
        self._task = task
        self._device = torch.device(device)
        self._started = time.perf_counter()
        self._random: dict[str, Tensor] = {}
        self._loss_sum = 0.0
        self._meter = task.meter() if task.metric_in_training else None

    @property
    def loss(self) -> float:
        """The mean over the samples."""
        return self._loss_sum / self.seen

    @property
    def seconds(self) -> float:
        """Spent on the epoch so far, the time before an interruption included."""
        return time.perf_counter() - self._started

    def score(self) -> float | None:
        """Returns the score in training; ``None`` where it cannot be measured.

        Of several processes it is the mean of theirs, weighted by their samples.
        """
        meter, ranks = self._meter, self._ranks
        if meter is None or ranks.size == 1:
            return None if meter is None else self._task.score(meter.compute())
        own = math.nan
        with suppress(TrainingDivergedError):
            own = self._task.score(meter.compute())
        summed, count = ranks.totals(own * self._own, self._own)
        if not math.isfinite(summed):
            raise TrainingDivergedError(
                f"Expected a finite {self._task.metric} in training, got {summed} in one of "
                f"{ranks.size} processes: check the metric, and the outputs and targets it gets."
            )
        return summed / count

    def measure(self, outputs: Any, targets: Any) -> None:
        """Takes in what the network has answered."""
        if self._meter is not None:
            self._meter.update(mapped(Tensor.detach, outputs), targets)

    def add(self, loss: float, step: Step) -> None:
        """Takes in a step."""
        size = sum(part.whole for part in step.parts)
        self._loss_sum += loss * size
        self.seen += size
        self._own += sum(part.own for part in step.parts)
        self.batches += step.batches

    def rest_of(self, loader: Batches) -> Iterator[Any]:
        """Returns an iterator over the batches that are left of a loader that is seeded.

        A loader that has a ``from_batch(number)`` returns them itself; of others the first ones are
        read and dropped, which gives the same batches whatever the loader draws on the way.
        """
        if not self.batches:
            return iter(loader)
        from_batch = getattr(loader, "from_batch", None)
        if callable(from_batch):
            rest: Iterator[Any] = iter(from_batch(self.batches))
        else:
            rest = iter(loader)
            for _ in range(self.batches):
                next(rest, None)
        torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random:
            torch.cuda.set_rng_state(self._random["cuda"], self._device)
        return rest

    def state_dict(self) -> dict[str, Any]:
        """Returns all of it as tensors, numbers and strings, with the random numbers of now."""
        random = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self._device)
        return {
            "batches": self.batches,
            "seen": self.seen,
            "seconds": self.seconds,
            "loss sum": self._loss_sum,
            "random": random,
            "own": self._own,
            "meter": None if self._meter is None else meter_state(self._meter, self._task.meter()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        A meter of which not all could be kept measures nothing: the epoch has no score in training.
        """
        self.batches, self.seen = state["batches"], state["seen"]
        self._own = state.get("own", self.seen)
        self._loss_sum, self._random = state["loss sum"], state["random"]
        self._started -= state["seconds"]
        if self._meter is not None and state["meter"] is not None:
            load_meter(self._meter, state["meter"])
        else:
            self._meter = None


class SnapshotClock:
    """Says when a checkpoint inside an epoch is due."""

    def __init__(self, config: TrainingConfig) -> None:
        self._steps, self._seconds = config.snapshot_steps, config.snapshot_seconds
        self.restart()

    def restart(self) -> None:
        """Counts the time from now on."""
        self._last = time.monotonic()

    def is_due(self, steps: int) -> bool:
        """Whether one is due behind so many steps of the epoch."""
        if self._steps is not None and steps % self._steps == 0:
            return True
        return self._seconds is not None and time.monotonic() - self._last >= self._seconds

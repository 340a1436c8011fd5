"""Hyperparameters of a training, and their checks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from amc_compress.learners.numerics.precision import PRECISIONS
from amc_compress.learners.training.identity import plain
from amc_compress.learners.training.schedules import SCHEDULES
from amc_env.validation.checks import checked

OPTIMIZERS = ("sgd", "adamw")


@checked
@dataclass(frozen=True)
class TrainingConfig:
    """Settings of :func:`train`; two equal ones on the same data give the same weights.

    Args:
        epochs: Passes over the training data.
        optimizer: ``"sgd"`` or ``"adamw"``.
        learning_rate: Its peak.
        momentum: Of SGD.
        nesterov: Of SGD.
        weight_decay: Of matrices and kernels; biases and norm layers have none.
        schedule: ``"cosine"``, ``"one-cycle"`` or ``"constant"``.
        warmup_epochs: Epochs of linear rise before the schedule.
        label_smoothing: Share of the label's probability spread over all classes.
        ema_decay: Decay of an exponential moving average of the weights, which is then what is
            validated and kept; None for none.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"``, or ``"fp16"``, whose losses are scaled.
        gradient_clip: Largest norm of the gradient; None for no limit.
        distillation_temperature: Of the softened answers, with a teacher.
        distillation_weight: Share of the teacher in the loss, the labels have the rest.
        seed: Of dropout and of loaders that have a generator; the epoch is mixed into it.
        snapshot_steps: Steps from one checkpoint inside an epoch to the next; ``None`` for none by
            steps. Checkpoints, where there is a folder for them, change nothing but what is lost
            when a training is killed.
        snapshot_seconds: The same in time: the first step that ends so long after the last one.
        accumulate: Batches of the loader whose gradients make one step of the optimiser.
        sync_batch_norm: Where several processes train, whether batch norms take the statistics of
            all their samples; else each takes those of its own, and running ones are averaged.
        compile: Whether ``torch.compile`` runs the network in training.
        fused_optimizer: Whether a step of the optimiser is one kernel.
    """

    epochs: int = 30
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    precision: str = "auto"
    gradient_clip: float | None = None
    distillation_temperature: float = 4.0
    distillation_weight: float = 0.7
    seed: int = 0
    snapshot_steps: int | None = None
    snapshot_seconds: float | None = 600.0
    accumulate: int = 1
    sync_batch_norm: bool = False
    compile: bool = False
    fused_optimizer: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            # NumPy's numbers would be written to checkpoints, which cannot be read with them.
            object.__setattr__(self, name, plain(value, name))
        _check_name("optimizer", self.optimizer, OPTIMIZERS)
        _check_name("schedule", self.schedule, tuple(SCHEDULES))
        _check_name("precision", self.precision, PRECISIONS)
        _check("epochs", self.epochs, self.epochs >= 1, "at least 1")
        _check("accumulate", self.accumulate, self.accumulate >= 1, "at least 1")
        _check("learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _check(
            "nesterov", self.nesterov, not self.nesterov or self.momentum > 0, "off at momentum 0"
        )
        _check("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        in_run = 0 <= self.warmup_epochs < self.epochs
        _check("warmup_epochs", self.warmup_epochs, in_run, f"in [0, epochs = {self.epochs})")
        _check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)")
        decay, clip = self.ema_decay, self.gradient_clip
        _check("ema_decay", decay, decay is None or 0 < decay < 1, "None or in (0, 1)")
        _check("gradient_clip", clip, clip is None or clip > 0, "None or above 0")
        temperature, weight = self.distillation_temperature, self.distillation_weight
        _check("distillation_temperature", temperature, temperature > 0, "above 0")
        _check("distillation_weight", weight, 0 <= weight <= 1, "in [0, 1]")
        steps, seconds = self.snapshot_steps, self.snapshot_seconds
        _check("snapshot_steps", steps, steps is None or steps >= 1, "None or at least 1")
        _check("snapshot_seconds", seconds, seconds is None or seconds > 0, "None or above 0")

    def identity(self) -> dict[str, Any]:
        """Returns the settings that a training and one that resumes it must have in common."""
        rest = ("snapshot_steps", "snapshot_seconds")
        return {name: value for name, value in asdict(self).items() if name not in rest}


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} must be {expected}, got {value!r}.")


def _check_name(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")

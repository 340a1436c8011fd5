"""The options of trainings on several devices, and of what a device makes faster."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from amc_compress.config.option import option

_training = functools.partial(option, stage="finetune", panel="How trainings compute")


@dataclass(frozen=True)
class DeviceOptions:
    """How the steps of a training are computed, the first training's too."""

    accumulate: int = _training(
        1, "Batches whose gradients make one step of the optimiser.", least=1
    )
    sync_batch_norm: bool = _training(
        False,
        "With --devices: batch norms take the statistics of all processes' samples, as one process "
        "would; else each takes those of its own, and running ones are averaged.",
    )
    compile: bool = _training(
        False, "Train the network that torch.compile makes; for GPUs, and trainings of hours."
    )
    fused_optimizer: bool = _training(False, "Take a step of the optimiser in one kernel.")

    @property
    def device_settings(self) -> dict[str, Any]:
        """The same as arguments of ``TrainingConfig``."""
        return {
            "accumulate": self.accumulate,
            "sync_batch_norm": self.sync_batch_norm,
            "compile": self.compile,
            "fused_optimizer": self.fused_optimizer,
        }

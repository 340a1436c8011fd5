"""What every learner that evaluates candidates is told, declared once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amc_compress.learners.candidates.moments.room import MEMORY, Room
from amc_compress.learners.candidates.proxy import Proxy
from amc_compress.learners.candidates.second_order.levels import Levels
from amc_compress.learners.candidates.second_order.tensor_files import DISK
from amc_compress.learners.numerics.precision import resolve_precision
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.data_checks import Batches
from amc_env.validation.checks import checked


@checked
@dataclass(frozen=True, kw_only=True)
class CandidateOptions:
    """The options that all learners share; each adds its own in a subclass.

    Attributes:
        task: What the network is for: a task, its name, or ``package.module:Class``.
        proxy: Name in ``PROXIES``: the repairs a candidate gets before it is evaluated.
        finetune_steps: SGD steps on ``train`` before a candidate is evaluated.
        ignore: Layers (or modules that hold them) that stay as they are.
        part: The submodule that is compressed, if not the whole network: what is inside of it. The
            rest need not be traceable; it stays as it is, and its costs are fixed.
        train: Batches for ``finetune_steps``; the first ones are preloaded.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``, for evaluation; results are float32.
        device: Where to work.
        seed: Seed of every random choice.
        progress: Whether to show a progress bar while preparing.
        n_validation: Samples that an evaluation uses, a fixed random subset; all if ``None``.
        n_calibration: Samples for statistics and ranges, the first of the calibration data.
        n_recalibration: Samples for batch-norm statistics and moments of outputs, likewise.
        threads: Threads while evaluating; ``None`` leaves PyTorch's setting alone.
        moments_memory: Bytes of moments of layers' inputs that are held at once. Those of a larger
            network are taken piece by piece, and read from files; the numbers are the same.
        scratch_disk: Bytes that these files may take, and likewise those of solved layers in a run
            folder; what they have no room for is computed again.

    Raises:
        ValueError: If an option has no such value.
    """

    task: str | Task = "classification"
    proxy: str = "reconstruction+recalibration"
    finetune_steps: int = 0
    ignore: Sequence[str] = ()
    part: str | None = None
    train: Batches | None = None
    precision: str = "auto"
    device: str | torch.device = "cpu"
    seed: int = 0
    progress: bool = False
    n_validation: int | None = 3000
    n_calibration: int = 512
    n_recalibration: int = 192
    threads: int | None = 1
    moments_memory: int = MEMORY
    scratch_disk: int = DISK

    def __post_init__(self) -> None:
        self.repairs()
        resolve_precision(self.precision)
        counts = (self.n_calibration, self.n_recalibration, self.n_validation)
        if min(1 if n is None else n for n in counts) < 1:
            raise ValueError("Expected n_validation, n_calibration and n_recalibration >= 1.")
        if self.moments_memory < 1 or self.scratch_disk < 0:
            raise ValueError(
                f"Expected moments_memory and scratch_disk in bytes, at least 1 and 0, got "
                f"{self.moments_memory} and {self.scratch_disk}."
            )

    def repairs(self) -> Proxy:
        """Returns what a candidate gets before it is evaluated.

        Raises:
            ValueError: If there is no such proxy, or the steps are negative.
        """
        return Proxy.parse(self.proxy, self.finetune_steps)

    def room(self) -> Room:
        """Returns what moments of layers' inputs may take."""
        return Room(self.moments_memory, self.scratch_disk)

    def levels(self, device: torch.device) -> Levels:
        """Returns where solved layers are kept."""
        return Levels(device=device, disk=self.scratch_disk)

    def check_training(self) -> None:
        """Checks that there are batches for whatever training the options ask for.

        Raises:
            ValueError: If there are none.
        """
        if self.finetune_steps and self.train is None:
            raise ValueError(
                f"Expected training batches for finetune_steps={self.finetune_steps}, got none; "
                f"pass train=loader."
            )

"""The training loop of all learners, and the metrics of networks."""

from __future__ import annotations

import time
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from amc_compress.learners.networks.forms import unwrapped
from amc_compress.learners.networks.intake import as_float, plain_float
from amc_compress.learners.numerics.layout import usable_layout
from amc_compress.learners.numerics.precision import (
    autocast,
    resolve_precision,
    working_dtype,
)
from amc_compress.learners.tasks.guards import TokenIds
from amc_compress.learners.tasks.inputs import Inputs, count, rows
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.checkpoints import (
    EpochRecord,
    TrainingResult,
    check_extra_state,
    check_folder,
    epoch_record,
    extra_state,
    load_best,
    load_last,
    save_best,
    save_last,
)
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import (
    Batches,
    first_like,
    forward,
    in_layout,
    read_batch,
)
from amc_compress.learners.training.hooks import TrainingHook, check_hooks
from amc_compress.learners.training.identity import copy_of, digest_of, fingerprint, plain
from amc_compress.learners.training.stepper import Stepper
from amc_env.errors import InputDataError, TrainingDivergedError
from amc_env.support.progress import Progress
from amc_env.validation.checks import checked

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = [
    "TrainingConfig",
    "EpochRecord",
    "TrainingResult",
    "train",
    "evaluate",
    "measure",
    "resolve_precision",
]


@checked
def evaluate(
    model: nn.Module,
    loader: Batches,
    *,
    task: str | Task = "classification",
    precision: str = "auto",
    device: str | torch.device = "cpu",
) -> float:
    """The score of a network, higher is better; the model moves to ``device``, keeps its mode.

    For classification top-1 accuracy in [0, 1], in float32. See :func:`measure` for all metrics.

    Raises:
        InputDataError: No images, images that the network cannot take, or labels outside its
            classes.
    """
    task = make_task(task)
    return task.score(measure(model, loader, task=task, precision=precision, device=device))


@checked
def measure(
    model: nn.Module,
    loader: Batches,
    *,
    task: str | Task = "classification",
    precision: str = "auto",
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Metric name -> value over all batches of a loader; the metric of the score first.

    Raises:
        InputDataError: As :func:`evaluate`.
    """
    model, task = plain_float(model), make_task(task)
    dtype = working_dtype(model, task.precision(precision), device)
    return _measured(model, loader, "", task, dtype, device, reported=True)


def _measured(
    model: nn.Module,
    loader: Batches,
    name: str,
    task: Task,
    dtype: torch.dtype,
    device: str | torch.device,
    *,
    reported: bool = False,
) -> dict[str, float]:
    model.to(device)
    training = model.training
    model.eval()
    meter = task.meter(reported=reported)
    total = 0
    example: Inputs | None = None
    ids: TokenIds | None = None
    layout: torch.memory_format | None = None
    try:
        # Loaders draw random numbers even where they shuffle nothing; the caller's stay.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for batch in loader:
                if example is None:
                    example, ids = first_like(model, batch, name, device, task=task)
                inputs, targets = read_batch(
                    batch, name, example, task=task, strict=False, device=device, ids=ids
                )
                layout = layout or usable_layout(model, rows(inputs, slice(0, 1)))
                inputs = in_layout(inputs, layout)
                with autocast(dtype, device):
                    outputs = forward(model, inputs, targets, task=task)
                meter.update(outputs, targets)
                total += count(inputs)
    finally:
        model.train(training)
    if total == 0:
        raise InputDataError("Expected at least one image to evaluate on, got none.")
    return meter.compute()


@checked
def train(
    model: nn.Module,
    train_loader: Batches,
    validation_loader: Batches,
    config: TrainingConfig,
    *,
    task: str | Task = "classification",
    teacher: nn.Module | None = None,
    hooks: Sequence[TrainingHook] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    writer: SummaryWriter | None = None,
    progress: bool = False,
    device: str | torch.device = "cpu",
) -> TrainingResult:
    """Train ``model`` in place; it ends in eval mode, with the weights of its best epoch.

    Of equally good epochs the latest is the best: its learning rate was the lowest. In float32,
    whatever the type of the model.

    Args:
        model: The network.
        train_loader: Batches with a length; its ``set_epoch`` is called before each epoch where it
            has one, and a ``DataLoader``'s own generator is seeded.
        validation_loader: Batches that choose the best epoch.
        config: All settings.
        task: What the network is for, a task or its name.
        teacher: A network to distil from; not changed.
        hooks: What happens besides the loss, see ``amc_compress.learners.training.hooks``.
        checkpoint_dir: Saves ``last.pt`` (to resume) after every epoch and ``best.safetensors``.
        resume: Continue from there, to the same weights as without the interruption; starts at
            the beginning where there is no checkpoint.
        writer: Gets the loss, the accuracy and the learning rate of each epoch.
        progress: Show progress bars.
        device: Where to train.

    Raises:
        TrainingDivergedError: The loss or a weight became NaN or infinite; the model holds the
            best weights so far.
        RunFolderError: The folder belongs to another run, is damaged, or cannot be written.
        InputDataError: Images or labels do not fit the network.
    """
    if not isinstance(train_loader, Sized) or len(train_loader) == 0:
        raise InputDataError("The training loader must have a length of at least one batch.")
    check_folder(checkpoint_dir, resume)
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise InputDataError(
            f"Expected a teacher network or None, got {type(teacher).__name__}: load it first."
        )
    check_hooks(hooks)
    with as_float(model) as network:
        run = _Run(
            network,
            train_loader,
            validation_loader,
            config,
            teacher,
            checkpoint_dir,
            device,
            make_task(task),
            hooks,
        )
        if resume:
            run.restore()
        result = run.to_the_end(writer, progress)
    model.eval()  # a wrapper has a mode of its own
    return result


@dataclass
class _Run:
    """One training run between two epochs; everything that :meth:`restore` must bring back."""

    model: nn.Module
    train_loader: Batches
    validation_loader: Batches
    config: TrainingConfig
    teacher: nn.Module | None
    folder: Path | None
    device: str | torch.device
    task: Task
    hooks: Sequence[TrainingHook] = ()
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = -1

    def __post_init__(self) -> None:
        assert isinstance(self.train_loader, Sized)
        precision = self.config.precision
        self.dtype = working_dtype(self.model, precision, self.device)
        # Mixed precision is for the gradients; what is reported is of the network itself.
        self.measured_in = working_dtype(self.model, self.task.precision(precision), self.device)
        self.stepper = Stepper(
            self.model,
            len(self.train_loader),
            self.config,
            self.teacher,
            self.dtype,
            self.device,
            self.hooks,
            task=self.task,
        )
        try:
            # Until an epoch has been evaluated, the weights it started from are the best there are.
            self.best_state = copy_of(self.model)
            if self.folder is not None:
                check_extra_state(self.best_state)
            self.identity = self._identity(len(self.train_loader))
        except BaseException:
            self.stepper.release()
            raise

    def _identity(self, batches: int) -> dict[str, Any]:
        task = self.task.identity()
        # Checkpoints of classification are as they were when there was no other task.
        told = {} if task == make_task("classification").identity() else {"task": task}
        return {
            **told,
            **asdict(self.config),
            "batches per epoch": batches,
            "teacher": self.teacher is not None,
            "teacher network": None if self.teacher is None else digest_of(unwrapped(self.teacher)),
            "network": fingerprint(self.model),
            "hooks": {
                hook.name: plain(dict(hook.identity()), f"the identity of the hook {hook.name!r}")
                for hook in self.hooks
            },
        }

    def restore(self) -> None:
        """Continue from the checkpoint in the folder, if there is one."""
        assert self.folder is not None
        try:
            state = load_last(self.folder, self.identity)
            if state is None:
                return
            best_state = {**load_best(self.folder), **state["best extra state"]}
            self.stepper.load_state_dict(state["stepper"])
        except BaseException:
            self.stepper.release()
            raise
        self.history = [epoch_record(record) for record in state["history"]]
        self.best_epoch = state["best_epoch"]
        self.best_state = best_state

    def to_the_end(self, writer: SummaryWriter | None, progress: bool) -> TrainingResult:
        """Run the epochs that are left."""
        first = len(self.history)
        epochs = self.config.epochs
        try:
            with Progress(epochs, "epoch", initial=first, lines=None, shown=progress) as bar:
                for epoch in range(first, epochs):
                    record = self._epoch(epoch, progress)
                    bar.step(
                        f"loss {record.train_loss:.4f}, "
                        f"validation {self.task.metric} "
                        f"{self.task.value(record.validation_score):.4f}"
                    )
                    if writer is not None:
                        _log(writer, record, self.task)
        finally:
            # Whatever stopped the loop, the caller gets the best weights there are.
            self.stepper.release()
            self.model.load_state_dict(self.best_state)
            self.model.eval()
        best = self.history[self.best_epoch]
        seconds = sum(record.seconds for record in self.history)
        return TrainingResult(best.validation_score, self.best_epoch, self.history, seconds)

    def _epoch(self, epoch: int, progress: bool) -> EpochRecord:
        started = time.perf_counter()
        loss, score = self.stepper.epoch(self.train_loader, epoch, progress)
        candidate = self.stepper.candidate
        if not all(bool(torch.isfinite(p).all()) for p in candidate.parameters()):
            raise TrainingDivergedError(
                f"A weight became NaN or infinite in epoch {epoch + 1}: lower the learning rate "
                f"(now {self.config.learning_rate:g}) or clip the gradient."
            )
        validation = self.task.score(
            _measured(
                candidate,
                self.validation_loader,
                "validation ",
                self.task,
                self.measured_in,
                self.device,
            )
        )
        record = EpochRecord(
            epoch=epoch,
            learning_rate=self.stepper.descent.learning_rate,
            train_loss=loss,
            train_score=score,
            validation_score=validation,
            seconds=time.perf_counter() - started,
            is_ready=self.stepper.is_ready,
        )
        best = self.history[self.best_epoch] if self.best_epoch >= 0 else record
        self.history.append(record)
        if (record.is_ready, validation) >= (best.is_ready, best.validation_score):
            self.best_epoch = epoch
            self.best_state = copy_of(candidate)
            # Before last.pt: killed between the two, the resumed run repeats the epoch and writes
            # the same weights again. The other order would lose them.
            if self.folder is not None:
                save_best(self.folder, self.best_state)
        if self.folder is not None:
            save_last(self.folder, self._state())
        return record

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "history": [asdict(record) for record in self.history],
            "best_epoch": self.best_epoch,
            "best extra state": extra_state(self.best_state),
            "stepper": self.stepper.state_dict(),
        }


def _log(writer: SummaryWriter, record: EpochRecord, task: Task) -> None:
    writer.add_scalar("finetune/loss", record.train_loss, record.epoch)
    writer.add_scalar(f"finetune/{task.metric}", task.value(record.validation_score), record.epoch)
    writer.add_scalar("finetune/learning_rate", record.learning_rate, record.epoch)

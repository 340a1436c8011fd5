"""The training loop of all learners."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from amc_compress.learners.networks.forms import unwrapped
from amc_compress.learners.networks.intake import as_float
from amc_compress.learners.numerics.layout import set_layout
from amc_compress.learners.numerics.precision import (
    resolve_precision,
    training_dtype,
    working_dtype,
)
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.checkpoints import (
    INSIDE,
    NO_EPOCH,
    EpochRecord,
    Start,
    TrainingResult,
    check_extra_state,
    check_folder,
    epoch_record,
    extra_state,
    load_best,
    load_last,
    load_start,
    save_best,
    save_last,
    save_start,
)
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches
from amc_compress.learners.training.distributed.agreement import (
    check_same_training,
    own_buffers,
    take_first_weights,
)
from amc_compress.learners.training.distributed.ranks import Ranks
from amc_compress.learners.training.distributed.validation import measured_by_all
from amc_compress.learners.training.evaluation import evaluate, measure
from amc_compress.learners.training.hooks import TrainingHook, check_hooks
from amc_compress.learners.training.identity import copy_of, digest_of, fingerprint, plain
from amc_compress.learners.training.snapshots.position import Position, SnapshotClock
from amc_compress.learners.training.stepper import Stepper
from amc_env.errors import InputDataError, TrainingDivergedError
from amc_env.scores.metric import Metric
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

    Of equally good epochs the latest is the best: its learning rate was the lowest. If it is worse
    than the network was at the start, measured in float32, the weights of the start come back. The
    weights are trained in float32, whatever the type of the model.

    Where the caller has initialised a process group of ``torch.distributed``, its processes call
    this together and train one network: each takes its share of every batch, so that the steps are
    those of one process, and all return the same weights and scores. The first one alone measures,
    writes and resumes.

    Args:
        model: The network.
        train_loader: Batches with a length; its ``set_epoch`` is called before each epoch where it
            has one, and a ``DataLoader``'s own generator is seeded.
        validation_loader: Batches that choose the best epoch.
        config: All settings.
        task: What the network is for, a task or its name.
        teacher: A network to distil from; not changed.
        hooks: What happens besides the loss, see ``amc_compress.learners.training.hooks``.
        checkpoint_dir: Saves ``last.pt`` (to resume) after every epoch and as often inside it as
            the settings say, ``best.safetensors``, and at first ``start.safetensors``.
        resume: Continue from there, to the same weights as without the interruption; starts at
            the beginning where there is no checkpoint.
        writer: Gets the loss, the accuracy and the learning rate of each epoch.
        progress: Show progress bars.
        device: Where to train.

    Raises:
        TrainingDivergedError: The loss or a weight became NaN or infinite; the model holds the
            best weights so far, be they those of the start.
        RunFolderError: The folder belongs to another run, is damaged, or cannot be written.
        InputDataError: Images or labels do not fit the network.
    """
    _check_given(train_loader, teacher)
    ranks = Ranks.joined(device)
    ranks.from_first(lambda: check_folder(checkpoint_dir, resume))
    check_hooks(hooks)
    # It is read more than once.
    held = list(validation_loader) if isinstance(validation_loader, Iterator) else validation_loader
    loaders, purpose = (train_loader, held), make_task(task)
    with as_float(model) as network:
        run = _Run(
            network, *loaders, config, teacher, checkpoint_dir, device, purpose, ranks, hooks
        )
        run.begin(resume)
        result = run.to_the_end(writer if ranks.is_first else None, progress and ranks.is_first)
    model.eval()  # a wrapper has a mode of its own
    return result


def _check_given(train_loader: object, teacher: object) -> None:
    if not isinstance(train_loader, Sized) or len(train_loader) == 0:
        raise InputDataError("The training loader must have a length of at least one batch.")
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise InputDataError(
            f"Expected a teacher network or None, got {type(teacher).__name__}: load it first."
        )


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
    ranks: Ranks
    hooks: Sequence[TrainingHook] = ()
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = NO_EPOCH
    start: Start = field(init=False)
    begun: dict[str, Any] | None = None  # where an epoch was interrupted

    def __post_init__(self) -> None:
        assert isinstance(self.train_loader, Sized)
        precision = self.config.precision
        self.dtype = training_dtype(self.model, precision, self.device)
        # Mixed precision is for the gradients; what is reported is of the network itself.
        self.measured_in = working_dtype(self.model, self.task.precision(precision), self.device)
        take_first_weights(self.model, self.ranks)
        self.stepper = Stepper(
            self.model,
            len(self.train_loader),
            self.config,
            self.teacher,
            self.dtype,
            self.device,
            self.hooks,
            task=self.task,
            ranks=self.ranks,
        )
        try:
            # Until an epoch has been evaluated, the weights it started from are the best there are.
            self.best_state: dict[str, Any] = copy_of(self.model)
            if self.folder is not None:
                check_extra_state(self.best_state)
            self.identity = self._identity(len(self.train_loader))
            check_same_training(self.identity, self.ranks)
        except BaseException:
            self.stepper.release()
            raise

    def _identity(self, batches: int) -> dict[str, Any]:
        task = self.task.identity()
        # Checkpoints of classification are as they were when there was no other task.
        told = {} if task == make_task("classification").identity() else {"task": task}
        return {
            **told,
            **self.config.identity(),
            "devices": self.ranks.size,
            "batches per epoch": batches,
            "teacher": self.teacher is not None,
            "teacher network": None if self.teacher is None else digest_of(unwrapped(self.teacher)),
            "network": fingerprint(self.model),
            "hooks": {
                hook.name: plain(dict(hook.identity()), f"the identity of the hook {hook.name!r}")
                for hook in self.hooks
            },
        }

    def begin(self, resume: bool) -> None:
        """Continue from the checkpoint in the folder, if there is one; else note the start."""
        try:
            if not (resume and self._restore()):
                self.start = self._start_here()
        except BaseException:
            self.stepper.release()
            raise

    def _restore(self) -> bool:
        """Returns whether there was a checkpoint to continue from."""
        found = self.ranks.from_first(self._load)
        if found is None:
            return False
        state, best_state, start = found
        if start is None:  # an earlier release kept none; its caller has it again
            start = self._start_here()
        best_state = {
            **(start.state if best_state is None else best_state),
            **state["best extra state"],
        }
        self.stepper.load_state_dict(state["stepper"])
        self.history = [epoch_record(record) for record in state["history"]]
        self.best_epoch, self.best_state, self.start = state["best_epoch"], best_state, start
        self.begun = self.ranks.own(state[INSIDE]) if INSIDE in state else None
        return True

    def _load(self) -> tuple[dict[str, Any], dict[str, Any] | None, Start | None] | None:
        """Reads the last checkpoint, the best weights if there are any yet, and the start."""
        assert self.folder is not None
        state = load_last(self.folder, self.identity)
        if state is None:
            return None
        best = load_best(self.folder) if state["history"] else None
        return state, best, load_start(self.folder, state)

    def _start_here(self) -> Start:
        """Returns the network as it was given, evaluated if it is one to go back to."""
        state = copy_of(self.model)
        score = None
        if all(hook.may_start_be_kept for hook in self.hooks):
            set_layout(self.model, torch.contiguous_format)  # as it is handed back
            with suppress(TrainingDivergedError):  # a metric without a value: any epoch is better
                score = self._score(self.model, torch.float32)
            set_layout(self.model, torch.channels_last)
        start = Start(score, state)
        self._save(lambda folder: save_start(folder, start))
        return start

    def _save(self, write: Callable[[Path], None]) -> None:
        """Writes something into the folder, if there is one; the first process alone does."""
        folder = self.folder
        if folder is not None:
            self.ranks.from_first(lambda: write(folder))

    def _score(self, model: nn.Module, dtype: torch.dtype) -> float:
        """The validation score of a model, computed in a type."""
        loader, task = self.validation_loader, self.task
        values = measured_by_all(
            model, loader, "validation ", task, dtype, self.device, ranks=self.ranks
        )
        return task.score(values)

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
                        f"validation {Metric(self.task.metric).title} "
                        f"{self.task.value(record.validation_score):.4f}"
                    )
                    if writer is not None:
                        _log(writer, record, self.task)
        except BaseException as error:
            # Whatever stopped the loop, the caller gets the best weights there are.
            self._hand_back()
            if isinstance(error, TrainingDivergedError) and self.history:
                with suppress(TrainingDivergedError):  # that one is known
                    self._choose_end()
            raise
        self._hand_back()
        final = self._choose_end()
        best = final if self.best_epoch == NO_EPOCH else self._best().validation_score
        seconds = sum(record.seconds for record in self.history)
        return TrainingResult(best, self.best_epoch, self.history, seconds, self.start.score, final)

    def _hand_back(self) -> None:
        self.stepper.release()
        self.model.load_state_dict(self.best_state)
        self.model.eval()

    def _best(self) -> EpochRecord:
        return self.history[self.best_epoch]

    def _choose_end(self) -> float:
        """Goes back to the start if the best epoch is worse; returns the score of the model."""
        start = self.start.score
        if self.best_epoch == NO_EPOCH and start is not None:
            return start  # a training that had been finished
        score = self._score(self.model, torch.float32)
        if start is None or (self._best().is_ready, score) >= (True, start):
            return score
        self.best_epoch, self.best_state = NO_EPOCH, dict(self.start.state)
        self.model.load_state_dict(self.best_state)
        self._save(lambda folder: save_best(folder, self.best_state))
        self._save(lambda folder: save_last(folder, self._state()))
        return start

    def _epoch(self, epoch: int, progress: bool) -> EpochRecord:
        clock = SnapshotClock(self.config)

        def snapshot(position: Position) -> None:
            if self.folder is None:
                return
            due = clock.is_due(position.batches // self.config.accumulate)
            if not self.ranks.from_first_flag(due):
                return
            own = {**position.state_dict(), **own_buffers(self.stepper.networks, self.ranks)}
            inside = {**self._state(), INSIDE: self.ranks.gathered(own)}
            self._save(lambda folder: save_last(folder, inside))
            clock.restart()

        begun, self.begun = self.begun, None
        position = self.stepper.epoch(
            self.train_loader, epoch, progress, begun=begun, after_step=snapshot
        )
        candidate = self.stepper.candidate
        if not all(bool(torch.isfinite(p).all()) for p in candidate.parameters()):
            raise TrainingDivergedError(
                f"A weight became NaN or infinite in epoch {epoch + 1}: lower the learning rate "
                f"(now {self.config.learning_rate:g}) or clip the gradient."
            )
        validation = self._score(candidate, self.measured_in)
        record = EpochRecord(
            epoch=epoch,
            learning_rate=self.stepper.descent.learning_rate,
            train_loss=position.loss,
            train_score=position.score(),
            validation_score=validation,
            seconds=position.seconds,
            is_ready=self.stepper.is_ready,
        )
        best = record if self.best_epoch == NO_EPOCH else self._best()
        self.history.append(record)
        if (record.is_ready, validation) >= (best.is_ready, best.validation_score):
            self.best_epoch = epoch
            self.best_state = copy_of(candidate)
            # Before last.pt: killed between the two, the resumed run repeats the epoch and writes
            # the same weights again. The other order would lose them.
            self._save(lambda folder: save_best(folder, self.best_state))
        self._save(lambda folder: save_last(folder, self._state()))
        return record

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "history": [asdict(record) for record in self.history],
            "best_epoch": self.best_epoch,
            "best extra state": extra_state(self.best_state),
            "start score": self.start.score,
            "start extra state": extra_state(self.start.state),
            "stepper": self.stepper.state_dict(),
        }


def _log(writer: SummaryWriter, record: EpochRecord, task: Task) -> None:
    writer.add_scalar("finetune/loss", record.train_loss, record.epoch)
    writer.add_scalar(f"finetune/{task.metric}", task.value(record.validation_score), record.epoch)
    writer.add_scalar("finetune/learning_rate", record.learning_rate, record.epoch)

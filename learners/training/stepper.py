"""Steps and epochs of the training loop, and their state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from amc_compress.learners.networks.intake import private_copy, take_in
from amc_compress.learners.numerics.layout import set_layout, usable_layout
from amc_compress.learners.numerics.precision import autocast
from amc_compress.learners.tasks.guards import check_gradient
from amc_compress.learners.tasks.inputs import Inputs, tensors_of
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import (
    Batches,
    BatchReader,
    forward,
    seed_loader,
)
from amc_compress.learners.training.descent import Descent
from amc_compress.learners.training.distillation import combined_loss, scaled
from amc_compress.learners.training.distributed.agreement import load_own_buffers, make_equal
from amc_compress.learners.training.distributed.norms import (
    SynchronisedNorms,
    batch_norms,
    trains_on,
)
from amc_compress.learners.training.distributed.ranks import ALONE, Ranks
from amc_compress.learners.training.distributed.steps import Part, StepReader, steps_per_epoch
from amc_compress.learners.training.distributed.wrapped import Compiled, Gradients
from amc_compress.learners.training.hooks import KeptStatistics, TrainingHook
from amc_compress.learners.training.schedules import learning_rate_factor
from amc_compress.learners.training.snapshots.position import Position
from amc_env.errors import InputDataError
from amc_env.support.progress import no_bar


class Stepper:
    """Model, optimiser, moving average and step counter of a run.

    ``candidate`` is the network that is validated and kept: the moving average if there is one,
    else the model itself.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: int,
        config: TrainingConfig,
        teacher: nn.Module | None,
        dtype: torch.dtype,
        device: str | torch.device,
        hooks: Sequence[TrainingHook] = (),
        *,
        task: Task,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model.to(device)
        self.ranks = ranks
        self.task = task.smoothed(config.label_smoothing)
        set_layout(model, torch.channels_last)
        self.config = config
        self.batches = batches
        self.steps = steps_per_epoch(batches, config.accumulate)
        self.dtype = dtype
        self.device = device
        self._epoch = 0  # counted from 1, for errors
        kind = torch.device(device).type
        self.descent = Descent(
            make_optimizer(model, config),
            partial(
                learning_rate_factor,
                config.schedule,
                total_steps=config.epochs * self.steps,
                warmup_steps=round(config.warmup_epochs * self.steps),
            ),
            self._diverged,
            gradient_clip=config.gradient_clip,
            parameters=model.parameters(),
            scaler=torch.amp.GradScaler(kind) if dtype == torch.float16 else None,
        )
        self.average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self.teacher = None
        if teacher is not None:
            self.teacher = take_in(teacher, device).network.requires_grad_(False)
            set_layout(self.teacher, torch.channels_last)
        self._reader = BatchReader(
            self.model, "training ", device, self._settle_layout, task=self.task
        )
        self._loss_depends = False  # on the outputs; checked with the first batch
        self.hooks = tuple(hooks)
        self._norms: SynchronisedNorms | None = None
        self._steps: StepReader | None = None
        self._outputs: Any = None  # of the last part
        self._gradients = Gradients(self.model, self._loss, ranks)
        self._asked = Compiled(self.model) if config.compile else self.model
        try:
            if config.sync_batch_norm and ranks.size > 1:
                self._norms = SynchronisedNorms(self.model, device)
            for hook in self.hooks:
                hook.start(self.model, self.teacher, config.epochs * self.steps)
        except BaseException:
            self.release()
            raise

    @property
    def candidate(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.model if self.average is None else self.average.model

    @property
    def is_ready(self) -> bool:
        """Whether the candidate is what was asked for, as far as the hooks know."""
        return all(hook.is_ready(self.descent.count) for hook in self.hooks)

    def release(self) -> None:
        """Give the model back in the usual memory layout, which files expect."""
        for hook in self.hooks:
            hook.finish()
        self._gradients.release()
        if self._norms is not None:
            self._norms.undo()
        set_layout(self.model, torch.contiguous_format)
        self.descent.optimizer.zero_grad()

    def epoch(
        self,
        loader: Batches,
        epoch: int,
        progress: bool,
        *,
        begun: Mapping[str, Any] | None = None,
        after_step: Callable[[Position], None] | None = None,
    ) -> Position:
        """Trains for one pass over ``loader``; returns what was measured on the way.

        Args:
            loader: The training batches.
            epoch: Its number, from 0.
            progress: Show a progress bar.
            begun: Where the epoch was interrupted, see :class:`Position`; ``None`` begins it.
            after_step: Called behind every step but the last, with the position.
        """
        self.model.train()
        self._epoch = epoch + 1
        position = Position(self.task, self.device, self.ranks)
        if begun is not None:
            position.load_state_dict(begun)
            load_own_buffers(self.networks, begun)
        reader = self._reader_of(loader)
        # Seeded by the epoch, not carried along, so a resumed run draws what the first would have.
        with torch.random.fork_rng(devices=_cuda_devices(self.device)):
            seed = seed_loader(loader, self.config.seed, epoch)
            torch.manual_seed(seed + self.ranks.rank)  # dropout is not the same in all processes
            # Not around the loader: the bar for notebooks would begin to read it once more.
            bar = tqdm(
                desc=f"epoch {epoch + 1}",
                total=self.steps,
                initial=position.batches // self.config.accumulate,
                leave=False,
                disable=no_bar(progress),
            )
            for step in reader.steps(seed, position):
                position.add(self.step(step.parts, position), step)
                bar.update()
                if progress and position.seen:
                    bar.set_postfix(loss=f"{position.loss:.3f}")
                if after_step is not None and position.batches < self.batches:
                    after_step(position)
            bar.close()
        if position.seen == 0:
            raise reader.nothing_left(had_batches=position.batches > 0)
        make_equal(self.networks, self.ranks, epoch)
        return position

    def _reader_of(self, loader: Batches) -> StepReader:
        if self._steps is None:
            self._steps = StepReader(
                loader,
                self._reader,
                self.task,
                self.ranks,
                accumulate=self.config.accumulate,
                least=2 if self._norms is None and self._trains_norms else 1,
                takes_one=self._takes_one,
            )
        return self._steps

    @property
    def _trains_norms(self) -> bool:
        """Whether there are batch norms that take the statistics of the batch."""
        kept = any(isinstance(hook, KeptStatistics) for hook in self.hooks)
        return not kept and any(batch_norms(self.model))

    def _takes_one(self, inputs: Inputs, targets: Any) -> bool:
        """Whether the network trains on a single sample: norms of a single value cannot."""
        if not self._trains_norms:
            return True
        return trains_on(self.model, lambda: self.task.ask(self.model, inputs, targets))

    @property
    def networks(self) -> list[nn.Module]:
        """What is trained, and its moving average if there is one."""
        return [self.model] if self.average is None else [self.model, self.average.model]

    def _settle_layout(self, one: Inputs) -> torch.memory_format:
        """Returns the layout that all networks can take a sample in, and lays them out in it."""
        networks = [n for n in (self.model, self.teacher) if n is not None]
        if all(usable_layout(n, one) == torch.channels_last for n in networks):
            return torch.channels_last
        for network in (*networks, self.candidate):
            set_layout(network, torch.contiguous_format)
        return torch.contiguous_format

    def step(self, parts: Sequence[Part], position: Position) -> float:
        """Takes one optimiser step; returns its loss, 0 where there is nothing to train on."""
        step = self.descent.count
        for hook in self.hooks:
            hook.before_step(step)
        value = 0.0
        if parts:
            value = self._descend(parts, position)
        else:
            self.descent.pass_over()
        for hook in self.hooks:
            hook.after_step(step)
        if self.average is not None and parts:
            self.average.update(self.model, step)
        return value

    def _descend(self, parts: Sequence[Part], position: Position) -> float:
        self.descent.begin()
        value = 0.0
        for number, part in enumerate(parts, start=1):
            with self._gradients.summing(last=number == len(parts)):
                loss = self._gradients.loss(part)
                self.descent.add(loss)
            value += loss.item()
            position.measure(self._outputs, part.targets)
            self._outputs = None
        (total,) = self.ranks.totals(value)
        return self.descent.take(total / self.ranks.size)

    def _loss(self, part: Part) -> Tensor:
        """Returns the whole loss of samples; keeps the outputs."""
        config, answers, inputs, targets = self.config, None, part.inputs, part.targets
        with autocast(self.dtype, self.device):
            if self.teacher is not None:
                answers = forward(self.teacher, inputs, targets, "teacher", task=self.task)
            outputs = forward(self._asked, inputs, targets, task=self.task)
        self._check_loss(outputs, targets)
        loss = combined_loss(
            self.task,
            outputs,
            targets,
            answers,
            temperature=config.distillation_temperature,
            weight=config.distillation_weight,
            of_terms=part.of_terms,
            of_samples=part.of_samples,
        )
        for hook in self.hooks:
            if (more := hook.loss()) is not None:
                loss = loss + scaled(more, part.of_samples)
        if answers is not None and not (loss.isfinite() or _finite(answers)):
            raise InputDataError(
                "Expected a teacher with finite answers, got NaN or infinite ones: give "
                "another teacher."
            )
        self._outputs = outputs
        return loss

    def _check_loss(self, outputs: Any, targets: Any) -> None:
        """Checks with the first batch that there is something to descend."""
        if not self._loss_depends:
            loss, who = self.task.loss(outputs, targets), f"the loss of task {self.task.name!r}"
            check_gradient(loss, outputs, who)
            self._loss_depends = True

    def _diverged(self, what: str, value: float) -> str:
        return (
            f"The {what} became {value} in epoch {self._epoch}, step "
            f"{self.descent.count + 1}: lower the learning rate (now "
            f"{self.descent.learning_rate:.3g}) or clip the gradient; the weights of the best "
            "epoch so far are kept."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next epoch depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.descent.optimizer.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "step": self.descent.count,
            "scaler": None if self.descent.scaler is None else self.descent.scaler.state_dict(),
            "hooks": {hook.name: hook.state_dict() for hook in self.hooks},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.descent.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        self.descent.count = state["step"]
        if self.descent.scaler is not None:
            self.descent.scaler.load_state_dict(state["scaler"])
        for hook in self.hooks:
            hook.load_state_dict(state["hooks"][hook.name])


def _finite(outputs: Any) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors_of(outputs))


class MovingAverage:
    """Exponential moving average of weights and of batch-norm statistics.

    ``a <- d a + (1 - d) w`` after every step, with ``d = min(decay, (1 + t) / (10 + t))`` at step t
    (from 0), so that short runs are not dominated by the start. Statistics are averaged like
    weights: those of the moment do not belong to the averaged weights.

    (``torch.optim.swa_utils.AveragedModel`` starts from the weights after the first step, and
    copies by ``deepcopy``, which not every network survives.)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = private_copy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after ``step`` (from 0) into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # Not the state_dict, in which tied weights come twice.
        averages = chain(self.model.parameters(), self.model.buffers())
        for average, value in zip(
            averages, chain(model.parameters(), model.buffers()), strict=True
        ):
            if average.is_floating_point():
                average.lerp_(value, 1.0 - decay)
            else:
                average.copy_(value)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Build the optimiser; frozen parameters are left out, biases and norms do not decay.

    Nor do parameters of a module with a true ``no_weight_decay``, whatever their shape: a
    codebook is a matrix of values, not of weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputDataError("The network has no parameter to train: all of them are frozen.")
    exempt = {
        id(p)
        for module in model.modules()
        if getattr(module, "no_weight_decay", False) is True
        for p in module.parameters()
    }
    decaying = [p for p in parameters if p.ndim > 1 and id(p) not in exempt]
    others = [p for p in parameters if p.ndim <= 1 or id(p) in exempt]
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = config.fused_optimizer or None  # None leaves it to PyTorch
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=fused,
    )


def _cuda_devices(device: str | torch.device) -> list[torch.device]:
    device = torch.device(device)
    return [device] if device.type == "cuda" else []

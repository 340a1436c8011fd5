"""The task of a network: batches, forward, loss, metric and score."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.inputs import Inputs, ask, count, to_inputs
from amc_compress.learners.tasks.outputs import main_output
from amc_env.errors import InputDataError, TrainingDivergedError

TARGETS = ("labels", "label", "targets", "target")
"""Keys of a batch's dictionary that hold its targets."""

_ROUNDING = 1e-4  # metrics that divide in float32 may end a little above their best

Self = TypeVar("Self", bound="Task")


@dataclass(frozen=True)
class Measure:
    """What a metric says.

    Args:
        higher_is_better: Whether a higher one is better.
        best: The best there is; ``None`` if unknown.
    """

    higher_is_better: bool = True
    best: float | None = None


class Meter(Protocol):
    """Measures metrics over many batches."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Takes in what a network says of a batch, and what is right."""

    def compute(self) -> dict[str, float]:
        """Returns metric name -> value over all batches, the metric of the score first."""


class Task(ABC):
    """What a network is for.

    A learner, its proxy, the training loops, reports and exports see batches, networks and
    results only through a task. Tasks hold settings, no data; they pickle.

    Attributes:
        name: As it is registered, or the path of the class.
        metric: Name of the metric that the score is made from.
        higher_is_better: Whether a higher metric is better.
        best_score: The highest score there is; ``None`` if unknown.
        offered: What is reported besides, and can be the metric instead, by name.
        metric_in_training: Whether outputs in training mode can be measured.
        distils: Whether there is a distillation loss.
        smooths: Whether the loss takes label smoothing.
        needs_own: Whether metric and loss have to be given.
        needs_original: Whether targets come from the original network, see :meth:`bind`.
        tolerates_rounding: Whether the metric is the same where outputs are rounded to bfloat16;
            otherwise candidates are evaluated in float32 unless another precision is asked for.
        keeps_types: Whether completed targets stay in the types they have, to be held in less
            memory; otherwise integers become int64, and numbers float32.
        label_smoothing: Share of the loss that goes to all classes alike, see :meth:`smoothed`.
    """

    name: str
    metric: str
    higher_is_better: bool = True
    best_score: float | None = None
    offered: ClassVar[Mapping[str, Measure]] = MappingProxyType({})
    metric_in_training: bool = True
    distils: bool = True
    needs_original: bool = False
    smooths: bool = False
    needs_own: bool = False
    tolerates_rounding: bool = False
    keeps_types: bool = False
    label_smoothing: float = 0.0

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """Returns the inputs and the targets of a loader's batch; targets are ``None`` if missing.

        A tensor alone is inputs. A tuple or list is ``(inputs, targets)``, or ``(input, input,
        ..., targets)``. Of a dictionary the targets are under ``labels``, ``label``, ``targets``
        or ``target``; all else are keyword arguments of the network.

        Raises:
            InputDataError: If it is none of these.
        """
        if isinstance(batch, Mapping):
            rest = dict(batch)
            found = [rest.pop(key) for key in TARGETS if key in rest]
            return to_inputs(rest), found[0] if found else None
        if isinstance(batch, list | tuple) and len(batch) > 2:
            return to_inputs(tuple(batch[:-1])), batch[-1]
        if isinstance(batch, list | tuple) and batch:
            return to_inputs(batch[0]), batch[1] if len(batch) == 2 else None
        return to_inputs(batch), None

    def check_targets(self, inputs: Inputs, targets: Any, name: str = "") -> None:
        """Checks targets before any network is asked.

        Args:
            inputs: Of a batch.
            targets: Of the same batch.
            name: What errors call the data; it ends in a space.

        Raises:
            InputDataError: If they cannot belong together.
        """
        if targets is None:
            raise InputDataError(
                f"Expected {name}batches of (inputs, targets) for the task {self.name!r}, got "
                f"inputs alone: add the targets, or choose the task 'agreement', which needs none."
            )
        if count(targets) != count(inputs):
            raise InputDataError(
                f"Expected one target per sample in {name}batches, got {count(inputs)} samples "
                f"with {count(targets)} targets: correct the loader."
            )

    def ask(self, network: nn.Module, inputs: Inputs, targets: Any = None) -> Any:
        """Calls the network; in training mode some networks take the targets too."""
        return ask(network, inputs)

    def outputs(self, raw: Any) -> Any:
        """Returns what counts of what came back: logits of an object, or the first of a tuple."""
        return main_output(raw)

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the mean loss over the samples, float32, a scalar with a gradient."""

    def loss_terms(self, inputs: Inputs, targets: Any) -> float:
        """Returns of how many terms the loss of a batch is the mean: of its samples.

        Batches that are trained on in parts, one after the other or in several processes, are put
        together by these numbers.
        """
        return count(inputs)

    def summed_loss(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the sum of the losses of the samples."""
        return self.loss(outputs, targets) * count(targets)

    def distillation(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """Returns the loss of a student's outputs against those of its teacher.

        Raises:
            InputDataError: If this task has none.
        """
        raise InputDataError(
            f"Expected a task with a distillation loss, got {self.name!r}: train without a "
            f"teacher, or give the task a method 'distillation'."
        )

    @abstractmethod
    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a fresh meter.

        Args:
            reported: Whether metrics besides that of the score are wanted too.
        """

    def score(self, values: Mapping[str, float]) -> float:
        """Returns what is searched for, higher is better, from what a meter computed.

        Raises:
            TrainingDivergedError: If it is not finite.
            InputDataError: If it is better than the best there is.
        """
        value = float(values[self.metric])
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"Expected a finite {self.metric}, got {value}: check the metric, and the outputs "
                f"and targets that it gets."
            )
        score = value if self.higher_is_better else 0.0 - value
        if self.best_score is not None and score > self.best_score + _ROUNDING:
            raise InputDataError(
                f"Expected {self.metric} to be {self.value(self.best_score):g} at best, got "
                f"{value:g}: give shares, not percent, and probabilities or logits as the metric "
                f"takes them."
            )
        return score

    def value(self, score: float) -> float:
        """Returns the metric of a score."""
        return score if self.higher_is_better else 0.0 - score

    def precision(self, asked: str) -> str:
        """Returns the precision to measure in: ``"auto"`` is float32 where rounding shows."""
        return "fp32" if asked == "auto" and not self.tolerates_rounding else asked

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that outputs and targets go together.

        Args:
            outputs: What :meth:`outputs` returned.
            targets: Of the batch.
            who: What errors call the network.
            mode: ``" in training mode"`` there.

        Raises:
            InputDataError: If they do not.
        """
        if count(outputs) != count(targets):
            raise InputDataError(
                f"Expected the {who} to answer {count(targets)} samples with as many outputs"
                f"{mode}, got {count(outputs)}: return one output per sample."
            )

    def check_range(self, outputs: Any, targets: Any, name: str) -> None:
        """Checks targets of many samples against the network's outputs for a few others.

        Args:
            outputs: What :meth:`outputs` returned for some samples.
            targets: Of any number of others.
            name: What errors call the data; it ends in a space.

        Raises:
            InputDataError: If the network cannot be right about one of them.
        """
        return None

    @abstractmethod
    def agreement(self, outputs: Any, reference: Any) -> float:
        """Returns how alike two networks answer the same inputs, in [0, 1]."""

    @contextmanager
    def differentiable(self, network: nn.Module) -> Iterator[None]:
        """Prepares a network in ``eval`` mode, in the block, to return what :meth:`loss` takes."""
        yield

    def bind(self: Self, network: nn.Module, device: str | torch.device) -> Self:
        """Returns the task of this original network; a copy where the task depends on it.

        Args:
            network: In ``eval`` mode; never changed.
            device: Where it is.
        """
        return self

    def complete(self, inputs: Inputs, targets: Any) -> Any:
        """Returns the targets, those of the original network where a task takes them from it."""
        return targets

    def drawn(self, targets: Any) -> Any:
        """Returns the targets that gradients at the original network are taken against.

        Where the original is the best there is by its own loss, whose gradient is then 0, these are
        drawn at random from what it says; the same ones for the same targets.
        """
        return targets

    def smoothed(self: Self, share: float) -> Self:
        """Returns the task with label smoothing.

        Raises:
            InputDataError: If its loss knows none.
        """
        if share == self.label_smoothing:
            return self
        if not self.smooths:
            raise InputDataError(
                f"Expected label_smoothing=0 for the task {self.name!r}, got {share}: its loss "
                f"has no classes to smooth."
            )
        found = copy.copy(self)
        found.label_smoothing = share
        return found

    def identity(self) -> dict[str, Any]:
        """Returns what tells this task from others, as JSON values."""
        return {"name": self.name}

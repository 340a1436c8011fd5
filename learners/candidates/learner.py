"""Learners that build, repair and evaluate candidates: what all of them do, written once."""

from __future__ import annotations

import copy
import gc
import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from amc_compress.learners.base import Learner
from amc_compress.learners.candidates.evaluator import CandidateEvaluator, NetworkEvaluator
from amc_compress.learners.candidates.moments.effort import (
    Effort,
    affordable,
    effort_for,
    first_affordable,
)
from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.preparation import Samples, preload, read_samples
from amc_compress.learners.candidates.proxy import (
    RECALIBRATION_BATCH,
    Proxy,
    batch_norms,
    finetune_briefly,
    keeps_score,
    recalibrate,
)
from amc_compress.learners.candidates.space import SearchSpace
from amc_compress.learners.candidates.timing import CandidateSeconds
from amc_compress.learners.networks.intake import plain_float
from amc_compress.learners.numerics.freed_memory import give_back
from amc_compress.learners.numerics.precision import working_dtype
from amc_compress.learners.tasks.inputs import Inputs, moved
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches
from amc_env.plan import CompressionPlan
from amc_env.scores.stages import Measured, Race, Stages
from amc_env.support.deprecation import deprecated
from amc_env.support.threads import limited_threads

_LARGE = 2**26
"""Bytes of weights above which it pays to look for what cycles of references keep."""

Choice = TypeVar("Choice")
Told = TypeVar("Told", bound=CandidateOptions)
Batch = TypeVar("Batch")
Found = TypeVar("Found", float, Measured)


class CandidateLearner(Learner, Generic[Choice]):
    """Evaluates plans by building candidates.

    A subclass says how it reads a plan (:meth:`_read`), and how it builds the network of what it
    has read (:meth:`_candidate`).

    Attributes:
        evaluator: Measures scores.
        proxy: The repairs of a candidate.
        threads: Threads while candidates are made and evaluated; ``None`` leaves PyTorch's setting
            alone.
        seconds: What candidates have cost so far.
    """

    evaluator: NetworkEvaluator
    proxy: Proxy
    threads: int | None
    seconds: CandidateSeconds

    @property
    @abstractmethod
    def original(self) -> nn.Module:
        """The uncompressed network, in ``eval`` mode; not to be changed."""

    @abstractmethod
    def _read(self, plan: CompressionPlan) -> Choice:
        """Returns what a plan means for the network.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """

    @abstractmethod
    def _candidate(
        self, choice: Choice, seconds: CandidateSeconds, *, trained: bool = True
    ) -> nn.Module:
        """Builds and repairs the network of a choice.

        Args:
            choice: What the plan means.
            seconds: What it takes is added to.
            trained: Whether to train it briefly, if the options say so.
        """

    @property
    def _brief_steps(self) -> int:
        """SGD steps that a candidate takes before it is evaluated."""
        return self.proxy.finetune_steps

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the network, and of the type that it computes in."""
        return (*super().notes, *getattr(self.evaluator, "told", ()))

    def _is_untouched(self, choice: Choice) -> bool:
        """Whether nothing of the network changes: then nothing needs repair either."""
        return not choice

    def _is_original(self, choice: Choice) -> bool:
        return self._is_untouched(choice) and not self._brief_steps

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the proxy score of a plan on the ``n_validation`` samples, higher is better.

        For classification it is the accuracy, in [0, 1]. A plan that changes nothing has the
        original score. Steps of a brief training that make a candidate worse are not taken, as
        :meth:`finetune` does not end below its start.
        """
        choice = self._read(plan)
        if self._is_original(choice):
            return self.original_score
        with limited_threads(self.threads):
            score = max(self._measured(choice, self.seconds, self.evaluator.score))
        self.seconds.episodes += 1
        return score

    def evaluate_full(self, plan: CompressionPlan) -> float:
        """Returns the proxy score on all validation samples."""
        choice = self._read(plan)
        with limited_threads(self.threads):
            if self._is_original(choice):
                return self.evaluator.score(self.original, full=True)
            score = partial(self.evaluator.score, full=True)
            return max(self._measured(choice, CandidateSeconds(), score))

    def original_full_score(self) -> float:
        """Returns the score of the uncompressed network on all validation samples."""
        with limited_threads(self.threads):
            return self.evaluator.score(self.original, full=True)

    def evaluate_in_stages(
        self, plan: CompressionPlan, stages: Stages, race: Race | None
    ) -> Measured:
        """Returns what :meth:`evaluate` does, of fewer samples for a plan that loses a race.

        Args:
            plan: Complete.
            stages: When it is looked at.
            race: What it is compared with; None for on all samples.
        """
        choice = self._read(plan)
        if self._is_original(choice):
            return Measured(self.original_score)
        measure = partial(self.evaluator.score_in_stages, stages=stages, race=race)
        with limited_threads(self.threads):
            found = self._measured(choice, self.seconds, measure)
        self.seconds.episodes += 1
        return max(found, key=lambda measured: measured.score)

    def _measured(
        self, choice: Choice, seconds: CandidateSeconds, measure: Callable[[nn.Module], Found]
    ) -> list[Found]:
        """Returns what is measured of a candidate, trained briefly and as it is."""
        found = []
        for trained in (True, False) if self._brief_steps else (False,):
            network = self._candidate(choice, seconds, trained=trained)
            with seconds.measure("evaluation"):
                found.append(measure(network))
        return found

    def score(self, network: nn.Module, *, full: bool = False) -> float:
        """Returns the score of any network of this task, higher is better.

        Args:
            network: In ``eval`` mode, compressed by any learner or not at all.
            full: On all validation samples instead of ``n_validation``.

        Raises:
            TrainingDivergedError: If an output or the metric is not finite.
        """
        with limited_threads(self.threads):
            return self.evaluator.score(plain_float(network), full=full)

    @deprecated("score", removed_in="0.2")
    def accuracy(self, network: nn.Module, *, full: bool = False) -> float:
        """Returns the score of a network."""
        return self.score(network, full=full)


class PartLearner(CandidateLearner[Choice], Generic[Told, Choice]):
    """One kind of compression, prepared from a network and its data.

    It can be one part of a joint plan, see ``learners.joint.parts.PlanPart``.

    Args:
        model: Any trained network; it is copied and never changed.
        example_input: One batch as the network takes it: a tensor, a tuple of arguments or a
            dictionary of keyword arguments; only shapes and types matter.
        calibration: Batches for statistics and ranges, ``(images, labels)`` for classification,
            from the training data, in random order. The first ``n_calibration`` samples are used.
        validation: Batches to evaluate candidates on; from neither the calibration nor the test
            data.
        **options: Those of the class's ``Options``, by name.

    Attributes:
        name: The part of a joint plan that this is.
        options: As given, without the training batches.
        traced: The network with its layers and channel groups; what slices.
        space: What is decided, and what is left out.
        data: Samples on the device that every candidate sees.
        seed: Seed of every random choice.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If there is nothing to decide about the network.
        ValueError: If an option has no such value.
    """

    Options: ClassVar[type[CandidateOptions]]
    evaluator: CandidateEvaluator
    name: ClassVar[str]
    options: Told
    _recalibration_batch: ClassVar[int | None] = RECALIBRATION_BATCH

    def __init_subclass__(cls, **options: Any) -> None:
        """Shows the options in the signature of every learner."""
        super().__init_subclass__(**options)
        _, *given = inspect.signature(cls.__init__).parameters.values()
        if given[-1].kind is inspect.Parameter.VAR_KEYWORD:
            given[-1:] = inspect.signature(cls.Options).parameters.values()
        cls.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        calibration: Batches,
        validation: Batches,
        **options: Any,
    ) -> None:
        told = cast(Told, self.Options(**options))
        told.check_training()
        self.options = told
        self.proxy = told.repairs()
        self.device = torch.device(told.device)
        self.seed = told.seed
        self.threads = told.threads
        self.seconds = CandidateSeconds()
        network = self._take_in(model)
        samples = read_samples(network, calibration, validation, example_input, told)
        give_back()
        self.task = samples.task
        self._is_large = sum(p.nbytes for p in network.parameters()) > _LARGE
        self.traced = self._trace(network, moved(samples.example, self.device))
        self._give_back()
        self.graph = self.traced.graph
        self.space = self.decide(self.traced, told)
        self.decisions = self.space.decisions
        self.data = preload(samples, told, self._recalibration_batch)
        self._training_dtype = working_dtype(network, told.precision, self.device)
        few = affordable(self.graph, samples.n_calibration)
        self._is_large |= few < samples.n_calibration
        if self.repairs_layers and few < samples.n_calibration:
            samples = samples.limited(few)
        self._give_back()
        with limited_threads(self.threads):
            self._prepare(samples)
            self._give_back()
        self.validation = samples.held_out.batches
        self.original_score = self.evaluator.original_score
        # Prepared: loaders do not always pickle.
        self.options = replace(told, train=None)

    @classmethod
    @abstractmethod
    def decide(cls, traced: TracedModel, options: Told) -> SearchSpace:
        """Returns what a learner of these options decides about a network.

        Args:
            traced: The original network.
            options: Of the class's ``Options``; no data are read.

        Raises:
            UntraceableModelError: If there is nothing to decide.
            ValueError: If a layer to ignore is not there.
        """

    @abstractmethod
    def _prepare(self, samples: Samples) -> None:
        """Computes what does not depend on the plan, and calls :meth:`_prepare_evaluator`."""

    @abstractmethod
    def apply(self, network: nn.Module, plan: CompressionPlan, *, exact: bool = True) -> nn.Module:
        """Carries out one part of a joint plan, see ``learners.joint.parts.PlanPart``."""

    @abstractmethod
    def layer_errors(self) -> dict[str, npt.NDArray[np.float64]]:
        """Returns how much of its layers' outputs each choice of each decision loses.

        Per decision key an array over its choices: squared error over squared output on
        calibration images, while all else is whole. The last entry is the least.
        """

    @abstractmethod
    def gradient_scores(self) -> dict[str, npt.NDArray[np.float64]]:
        """Returns how much the loss rises by each choice of each decision, estimated in nats.

        Per decision key an array over its choices, from gradients on the recalibration images,
        while all else is whole; see ``learners.candidates.gradient_scores``. It never rises; the
        last entry is the least.
        """

    @property
    def original(self) -> nn.Module:
        """The uncompressed network, in ``eval`` mode; not to be changed."""
        return self.traced.model

    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Builds the network of a plan: repaired as the proxy says, not fine-tuned.

        Always from the original weights, in the types that came; equal plans give equal networks.
        """
        return self.form.hand_back(self.apply(self.original, plan))

    def training_defaults(self) -> TrainingConfig:
        """The settings of :meth:`finetune` where none are given."""
        return TrainingConfig(seed=self.seed)

    def _trace(self, network: nn.Module, example: Inputs) -> TracedModel:
        return trace(network, example, part=self.options.part)

    def _prepare_evaluator(self, samples: Samples, candidates: Sequence[nn.Module] = ()) -> None:
        """Settles how candidates are evaluated, and measures the original network."""
        self.evaluator = CandidateEvaluator(
            self.original,
            samples.held_out,
            candidates,
            precision=self.options.precision,
            device=self.device,
            layout=samples.layout,
            n_first=affordable(self.graph, samples.held_out.n_held),
        )
        self._give_back()
        if self.repairs_layers:  # before there are moments: a second network takes memory
            self._check_recalibration(samples.held_out.n_held)
            self._give_back()

    def _give_back(self) -> None:
        """Gives freed memory back to the system."""
        if self._is_large:
            # Traced and fused networks are in reference cycles, hundreds of megabytes of them. To
            # look for those takes a tenth of a second.
            gc.collect()
        give_back()

    def _effort(self, samples: Samples) -> Effort:
        """Returns how moments are taken, and notes what that leaves out."""
        effort = effort_for(self.graph, samples.n_calibration, self.evaluator.dtype)
        self.cautions += effort.notes(samples.n_calibration)
        return effort

    def _check_recalibration(self, n_samples: int) -> None:
        """Leaves batch norms alone where the data are unlike those of their training."""
        if not self.proxy.recalibrate or not batch_norms(self.original):
            return
        n_samples = affordable(self.graph, n_samples)
        # The weights stay what they are, so they are shared.
        again = copy.deepcopy(self.original, {id(p): p for p in self.original.parameters()})
        recalibrate(again, self._affordable(self.data.recalibration), self.evaluator.dtype)
        before = self.evaluator.first_score
        after = self.evaluator.score_of_first(again, n_samples)
        if keeps_score(before, after, n_samples):
            return
        self.proxy = replace(self.proxy, recalibrate=False)
        self.keeps_statistics = True
        self.cautions += (
            f"Batch norms keep the statistics of their training: with those of the calibration "
            f"data the original itself falls from {self.task.value(before):.4f} to "
            f"{self.task.value(after):.4f} ({self.metric}), so these data are unlike those it was "
            f"trained on; pass such data to repair more.",
        )

    def _affordable(self, batches: Sequence[Batch]) -> list[Batch]:
        """Returns the first of some batches, as many as the original may be run on."""
        return first_affordable(self.graph, batches)

    def _train_briefly(self, network: nn.Module) -> None:
        """Takes the SGD steps that a candidate gets before it is evaluated."""
        finetune_briefly(
            network, self.data.training, self.proxy, self._training_dtype, self.seed, self.task
        )

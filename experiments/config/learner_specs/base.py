"""What a run has to know of a learner: one class each, made for the options of one run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from amc_compress.config.option import declared
from amc_compress.config.texts import snapshot_settings
from amc_env.costs.storage import OFF_BITS
from amc_env.errors import InputDataError
from amc_env.plan import CompressionPlan
from amc_env.validation.references import resolve

if TYPE_CHECKING:
    from torch import nn

    from amc_compress.config.options import Options
    from amc_compress.learners.base import Learner
    from amc_compress.learners.candidates.space import SearchSpace
    from amc_compress.learners.tasks.inputs import Inputs
    from amc_compress.learners.tasks.task import Task
    from amc_compress.learners.tracing.traced_model import TracedModel
    from amc_compress.learners.training.config import TrainingConfig
    from amc_compress.learners.training.hooks import TrainingHook
    from amc_env import Budget

FLOAT_TRAINING: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.02, "weight_decay": 5e-4},
    "adamw": {"learning_rate": 5e-4, "weight_decay": 0.01},
}
"""Optimizer -> rate and decay of the fine-tuning of float networks; that of quantized ones is the
learners' own."""


class Images(Protocol):
    """The samples that a learner is prepared with, see ``amc_compress.data.DataSplits``."""

    @property
    def calibration(self) -> Any: ...  # noqa: D102

    @property
    def validation(self) -> Any: ...  # noqa: D102

    @property
    def train(self) -> Any: ...  # noqa: D102

    @property
    def example(self) -> Inputs: ...  # noqa: D102

    @property
    def task(self) -> str: ...  # noqa: D102


def own_learner(reference: str, kind: Any, name: str) -> Any:
    """Returns a class of the user's that takes the place of a learner's.

    Args:
        reference: ``"package.module:Class"``.
        kind: The class of the learner.
        name: The learner's name.

    Raises:
        InputDataError: If it is no such class.
    """
    from amc_compress.learners.candidates.learner import PartLearner

    found = resolve(reference, "learner class")
    if not issubclass(kind, PartLearner):
        raise InputDataError(
            f"Expected --learner-class with a learner of one kind of compression, got it with "
            f"--learner {name}, which is made of several: prepare it in Python, and give compress "
            f"the object."
        )
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise InputDataError(
            f"Expected the learner class {reference!r} to derive from {kind.__name__}, the class "
            f"of --learner {name}, got {found!r}: a run trains, packs and exports networks as that "
            f"learner does. For any other one use CompressionEnv and an agent."
        )
    return found


class LearnerSpec:
    """A learner as a run sees it: what it does, which options it reads, how it is built.

    The learner itself is imported by the methods that need it: every command reads the facts, and
    `amc --help` must not wait for torch.

    Args:
        name: On the command line.
        options: Of the run.

    Attributes:
        title: What the report calls the learner.
        path: Where its class is, below ``amc_compress.learners``.
        takes: Options of the run that are the learner's own, under the same name.
        reads: Learners whose options this one may read as well.
        prunes: Whether channels are cut.
        in_steps: Whether networks are trained before they are quantized, and again afterwards.
    """

    title: ClassVar[str]
    path: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    prunes: ClassVar[bool] = False
    in_steps: ClassVar[bool] = False

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self.options = options

    # ---- what it does

    @property
    def sparsifies(self) -> bool:
        """Whether single weights are pruned."""
        return False

    @property
    def quantization(self) -> str:
        """How layers are quantized: ``"uniform"``, ``"codebook"``, or ``"none"``."""
        return "none"

    @property
    def quantizes(self) -> bool:
        """Whether layers are quantized."""
        return self.quantization != "none"

    @property
    def packs(self) -> bool:
        """Whether the smallest file of the network is a packed one."""
        return self.quantizes or self.sparsifies

    @property
    def decides(self) -> bool:
        """Whether an agent has a choice; where it has none, :meth:`only_plan` is the plan."""
        return True

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs that its plans change, those that say most first."""
        if not self.quantizes:
            return ("macs" if self.prunes else "density", "params", "bytes")
        channels = ("macs",) if self.prunes else ()
        weights = ("density",) if self.sparsifies else ()
        return (*channels, *weights, "bytes", "bops", "mean_bits")

    # ---- its options

    def is_given(self, name: str) -> bool:
        """Whether an option has another value than where nothing is said."""
        usual = {name: declared(type(self.options))[name].default, **self.defaults()}[name]
        return bool(getattr(self.options, name) != usual)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The learners whose options have an effect on this one, itself first."""
        return (self.name, *self.reads)

    def defaults(self) -> dict[str, Any]:
        """Returns the options that depend on the learner, where they are not given."""
        return {
            "granularity": "tensor" if self.quantization == "codebook" else "channel",
            "activation_bits": "8",
            "first_last_bits": 8,
            "codebook_mode": "both",
        }

    def default_budget(self) -> str:
        """Returns the budget where none is given."""
        return "macs=0.5"

    def training_defaults(self) -> dict[str, float]:
        """Returns rate and decay of the fine-tuning where none are given."""
        return FLOAT_TRAINING[self.options.optimizer]

    def rate(self, usual: float) -> float:
        """Returns the rate of the chosen optimizer where SGD takes ``usual``."""
        chosen, sgd = (FLOAT_TRAINING[x]["learning_rate"] for x in (self.options.optimizer, "sgd"))
        return usual * float(chosen / sgd)

    def check(self) -> None:
        """Checks what the learner asks of its options together.

        Raises:
            ValueError: If they contradict each other, or one has no effect.
        """
        o = self.options
        if self.quantizes and o.weight_bits == o.activation_bits == str(OFF_BITS):
            raise ValueError(
                "16 bits everywhere quantize nothing; give --weight-bits or --activation-bits "
                "between 2 and 8, or choose --learner channels."
            )
        if not (self.prunes or self.sparsifies) and o.proxy == "reconstruction":
            raise ValueError(
                f"--proxy reconstruction repairs cut layers, and --learner {self.name} cuts none; "
                f"choose recalibration or none."
            )

    # ---- how it is built

    def learner(self) -> Any:
        """Returns the class of the learner.

        Raises:
            InputDataError: If it is to be a class of the user's that does not derive from it.
        """
        module, _, name = self.path.partition(":")
        kind = getattr(importlib.import_module(f"amc_compress.learners.{module}"), name)
        reference = self.options.learner_class
        return kind if reference is None else own_learner(reference, kind, self.name)

    def own_options(self) -> dict[str, Any]:
        """Returns those of the learner's options that not all learners have."""
        return {name: getattr(self.options, name) for name in self.takes}

    def decide(self, traced: TracedModel) -> SearchSpace:
        """Returns what the learner decides about a network, and how it stores networks.

        Needs no data: budgets are checked with it before any work is done. A prepared learner says
        the same and has measured the header of the packed file as well.

        Raises:
            UntraceableModelError: If there is nothing to decide.
            ValueError: If a layer to ignore is not there.
        """
        learner = self.learner()
        given = learner.Options(ignore=self.options.ignore, **self.own_options())
        try:
            space: SearchSpace = learner.decide(traced, given)
        except ValueError as error:
            if not self.quantizes:
                raise
            raise ValueError(
                f"{error} Give --ignore one of these, or a module that holds some."
            ) from error
        return space

    def task(self, usual: str) -> Task:
        """Returns what the network is for.

        Args:
            usual: The task of the data, where the options name none.

        Raises:
            InputDataError: If there is no such task, metric or loss.
        """
        from amc_compress.learners.tasks.registry import make_task

        o = self.options
        higher = False if o.lower_is_better else None
        return make_task(o.task or usual, metric=o.metric, loss=o.loss, higher_is_better=higher)

    def prepare(
        self, data: Images, model: nn.Module, *, task: Task | None = None, progress: bool = False
    ) -> Learner:
        """Prepares the learner.

        Args:
            data: Calibration, validation and training samples.
            model: The trained network; it is not changed.
            task: What the network is for; as options and data say if None.
            progress: Whether to show progress bars.
        """
        prepared: Learner = self.learner()(
            *self._positional(data, model),
            task=task or self.task(data.task),
            **self._keywords(data, progress),
        )
        return prepared

    def _positional(self, data: Images, model: nn.Module) -> tuple[nn.Module, Inputs, Any, Any]:
        """The network, an example, and the samples that every learner is prepared with."""
        return model, data.example, data.calibration, data.validation

    @property
    def _precision(self) -> str:
        """Of the search: a drop that is promised is one of float32, whatever the processor."""
        o = self.options
        return "fp32" if o.max_drop is not None and o.precision == "auto" else o.precision

    def _keywords(self, data: Images, progress: bool) -> dict[str, Any]:
        """All options of the learner."""
        o = self.options
        return {
            "proxy": o.proxy,
            "finetune_steps": o.finetune_steps,
            "ignore": o.ignore,
            "part": o.part,
            "n_validation": o.n_validation,
            "train": data.train,
            "precision": self._precision,
            "device": o.device,
            "seed": o.seed,
            "progress": progress,
            **o.room,
            **self.own_options(),
        }

    def only_plan(self, learner: Learner, budget: Budget) -> CompressionPlan:
        """Returns the plan where no agent has a choice.

        Args:
            learner: The prepared one.
            budget: Of the run.
        """
        return CompressionPlan({})

    def fixed_choice(self) -> str:
        """Returns that plan in words."""
        return "nothing to decide"

    # ---- how its networks are trained

    def training_config(self) -> TrainingConfig:
        """Returns the settings of the fine-tuning, and of the trainings that lead to it.

        Raises:
            ValueError: If one is out of its range.
        """
        from amc_compress.learners.quantization.preparation import QUANTIZED_GRADIENT_CLIP
        from amc_compress.learners.training.config import TrainingConfig

        o = self.options
        return TrainingConfig(
            epochs=max(o.epochs, 1),
            optimizer=o.optimizer,
            learning_rate=o.learning_rate,
            weight_decay=o.weight_decay,
            gradient_clip=QUANTIZED_GRADIENT_CLIP if self.quantizes else None,
            precision=o.precision,
            distillation_temperature=o.distillation_temperature,
            distillation_weight=o.distillation_weight,
            seed=o.seed,
            **o.device_settings,
            **snapshot_settings(o.snapshot_every),
        )

    def hooks(
        self, original: nn.Module, model: nn.Module, total_steps: int
    ) -> tuple[TrainingHook, ...]:
        """Returns what a fine-tuning needs besides the loss.

        Without the learner, whose preparation takes longer than an epoch on a small network.

        Args:
            original: The uncompressed network.
            model: The network to be trained.
            total_steps: Of the training.
        """
        return ()

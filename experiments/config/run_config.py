"""Every option of a run in one record, grouped by the stage that it belongs to."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from amc_compress.config.bit_widths import bits_text, parse_bits
from amc_compress.config.defaults import NOT_GIVEN, default_budget, own_defaults, training_defaults
from amc_compress.config.values import (
    CHANNEL_LEARNERS,
    check_choices,
    check_numbers,
    check_size,
    option,
    own_cost_references,
)
from amc_env import Budget, RunFolderError
from amc_env.costs.storage import OFF_BITS
from amc_env.validation.checks import check_argument

STAGES = ("train", "search", "finetune", "export", "evaluate", "report")
"""Stages of ``amc compress`` in order; ``train`` is skipped when weights are given."""

PACKAGES = (
    "amc-compress",
    "torch",
    "gymnasium",
    "stable-baselines3",
    "numpy",
    "scipy",
    "scikit-learn",
    "onnx",
    "onnxruntime",
)


def _option(default: Any, stage: str) -> Any:
    return field(default=default, metadata={"stage": stage})


@dataclass(frozen=True)
class RunConfig:
    """The options of a run; two runs with equal options on one machine give equal results.

    The command line describes each option (``amc compress --help``); names are the same.
    """

    model: str = _option("digitsnet", "task")
    data: str = _option("digits", "task")
    weights: str | None = _option(None, "task")
    allow_pickle: bool = _option(False, "task")
    model_args: tuple[str, ...] = _option((), "task")
    seed: int = _option(0, "task")
    validation_size: int | None = _option(None, "task")
    validation_split: str = _option("random", "task")
    image_size: int | None = _option(None, "task")
    image_column: str | None = _option(None, "task")
    label_column: str | None = _option(None, "task")
    mean: tuple[float, ...] | None = _option(None, "task")
    std: tuple[float, ...] | None = _option(None, "task")
    batch_size: int = _option(128, "task")
    device: str = _option("cpu", "task")
    threads: int = _option(0, "task")
    precision: str = _option("auto", "task")

    train_epochs: int = _option(30, "train")
    train_learning_rate: float = _option(0.05, "train")

    learner: str = _option("channels", "search")
    budget: str = _option("", "search")
    agent: str = _option("ddpg-one-shot", "search")
    episodes: int = _option(100, "search")
    reading: str = _option("centred", "search")
    reward: str = _option("accuracy", "search")
    proxy: str = _option("reconstruction+recalibration", "search")
    finetune_steps: int = _option(0, "search")
    criterion: str = _option("l1", "search")
    round_to: int = _option(8, "search")
    min_ratio: float = _option(0.0, "search")
    n_validation: int = _option(3000, "search")
    ignore: tuple[str, ...] = _option((), "search")
    cost_table: tuple[str, ...] = _option((), "search")
    cost: tuple[str, ...] = _option((), "search")
    warm_start: str | None = _option(None, "search")

    weight_bits: str = _option("2-8", "search")
    activation_bits: str = _option("", "search")
    first_last_bits: int | None = _option(NOT_GIVEN, "search")
    granularity: str = _option("", "search")
    bucket_size: int = _option(256, "search")
    weight_range: str = _option("mse", "search")
    activation_range: str = _option("mse", "search")
    affine_weights: bool = _option(False, "search")
    learned_steps: bool = _option(False, "search")
    codebook_mode: str = _option("", "search")
    codebook_init: str = _option("kmeans", "search")
    quantizer: str = _option("uniform", "search")

    discrimination_stages: int = _option(3, "search")
    block_steps: int = _option(150, "search")

    pattern: str = _option("unstructured", "search")
    protocol: str = _option("searched", "search")
    min_density: float = _option(0.02, "search")
    density: bool = _option(False, "search")

    progressive: int = _option(1, "search")
    stages: tuple[float, ...] = _option((), "search")
    stage_epochs: int = _option(3, "search")

    epochs: int = _option(30, "finetune")
    learning_rate: float = _option(None, "finetune")
    weight_decay: float = _option(None, "finetune")
    teacher: str = _option("original", "finetune")
    distillation_temperature: float = _option(4.0, "finetune")
    distillation_weight: float = _option(0.7, "finetune")
    teacher_weights: str | None = _option(None, "finetune")
    feature_matching: float = _option(0.0, "finetune")
    sparse_training: str = _option("none", "finetune")
    sparse_epochs: int = _option(10, "finetune")
    sparse_strength: float | None = _option(None, "finetune")
    finetune_groups: int = _option(1, "finetune")
    group_epochs: int = _option(3, "finetune")
    retraining_epochs: int = _option(30, "finetune")
    schedule: str = _option("gradual", "finetune")
    schedule_begin: float = _option(0.0, "finetune")
    schedule_end: float = _option(0.5, "finetune")
    schedule_exponent: float = _option(3.0, "finetune")
    schedule_frequency: int | None = _option(None, "finetune")

    def __post_init__(self) -> None:
        hints = _hints()
        for f in dataclasses.fields(self):  # None stands for what depends on other options
            if (value := getattr(self, f.name)) is not None or f.default is not None:
                check_size(f.name, value)
                object.__setattr__(self, f.name, check_argument(f.name, value, hints[f.name]))
        for name, value in own_defaults(self).items():
            if getattr(self, name) in ("", NOT_GIVEN):
                object.__setattr__(self, name, value)
        check_choices(self)
        # Canonical texts, so that "macs=.5" and "macs=0.5" are the same on resume.
        for name in ("weight_bits", "activation_bits"):
            bits = parse_bits(option(name), getattr(self, name))
            object.__setattr__(self, name, bits_text(bits))
        if self.first_last_bits is not None:
            parse_bits("--first-last-bits", str(self.first_last_bits))
        if self.quantizes and OFF_BITS == self._only("weight_bits") == self._only(
            "activation_bits"
        ):
            raise ValueError(
                "16 bits everywhere quantize nothing; give --weight-bits or --activation-bits "
                "between 2 and 8, or choose --learner channels."
            )
        budget = self.budget or default_budget(self)
        object.__setattr__(self, "budget", str(Budget.parse(budget)))
        for name, value in training_defaults(self).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_numbers(self)
        own_cost_references(self.cost)

    def _only(self, name: str) -> int | None:
        """The one width of ``weight_bits`` or ``activation_bits``; None if there is a choice."""
        bits = parse_bits("bits", getattr(self, name))
        return bits[0] if len(bits) == 1 else None

    @property
    def prunes(self) -> bool:
        """Whether channels are cut."""
        return self.learner in (*CHANNEL_LEARNERS, "joint")

    @property
    def sparsifies(self) -> bool:
        """Whether single weights are pruned."""
        return self.learner in ("sparse", "deep") or (self.learner == "joint" and self.density)

    @property
    def quantizes(self) -> bool:
        """Whether layers are quantized."""
        return self.quantization != "none"

    @property
    def quantization(self) -> str:
        """How layers are quantized: ``"uniform"``, ``"codebook"``, or ``"none"``."""
        if self.learner in (*CHANNEL_LEARNERS, "sparse"):
            return "none"
        if self.learner == "deep":
            return "codebook"
        return self.quantizer if self.learner == "joint" else self.learner

    @property
    def packs(self) -> bool:
        """Whether the smallest file of the network is a packed one."""
        return self.quantizes or self.sparsifies

    @property
    def decides(self) -> bool:
        """Whether an agent has a choice; bits that are the same everywhere leave it none."""
        if self.learner == "sparse":
            return self.protocol == "searched"
        bits = (self.weight_bits, self.activation_bits)
        return (
            self.prunes
            or self.sparsifies
            or any(len(parse_bits("bits", text)) > 1 for text in bits)
        )

    @property
    def is_progressive(self) -> bool:
        """Whether the budget is reached in more than one stage."""
        return self.progressive > 1 or bool(self.stages)

    @property
    def shown_costs(self) -> tuple[str, ...]:
        """The costs that say most about a plan: those of the budget, and those it can change."""
        own: tuple[str, ...]
        if self.quantizes:
            own = ("bytes", "bops", "mean_bits")
            own = ("density", *own) if self.sparsifies else own
            own = ("macs", *own) if self.prunes else own
        else:
            own = ("macs" if self.prunes else "density", "params", "bytes")
        return (*own, *(name for name in Budget.parse(self.budget).bounds if name not in own))

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> RunConfig:
        """Reads what :meth:`to_dict` gave.

        Raises:
            RunFolderError: If an option is unknown to this release.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(options.keys() - known):
            raise RunFolderError(
                f"The run was configured with options unknown to this release: {unknown}; "
                f"use the release that wrote it."
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
        }
        return cls(**values)

    def differences(
        self, other: RunConfig, stages: set[str], *, but: Collection[str] = ()
    ) -> list[str]:
        """Returns ``"--option is a there and b now"`` for the options of ``stages`` that differ.

        Args:
            other: What is asked for now.
            stages: Whose options are looked at.
            but: Names of options that may differ.
        """
        return [
            f"{option(f.name)} is {getattr(self, f.name)!r} there and "
            f"{getattr(other, f.name)!r} now"
            for f in dataclasses.fields(self)
            if f.metadata["stage"] in stages
            and f.name not in but
            and getattr(self, f.name) != getattr(other, f.name)
        ]


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(RunConfig)


def package_versions() -> dict[str, str | None]:
    """Returns the versions of the packages that decide about a result; None where missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions

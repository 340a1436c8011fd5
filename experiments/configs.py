"""Every option of a run in one record, grouped by the stage that it belongs to."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amc_env import Budget, RunFolderError
from amc_env.storage import OFF_BITS
from experiments.bit_widths import bits_text, counted_bits, parse_bits

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

TEACHERS = ("original", "none")
VALIDATION_SPLITS = ("random", "tail")
PRECISIONS = ("auto", "fp32", "bf16")
LEARNERS = ("channels", "uniform", "codebook", "joint")
GRANULARITIES = ("tensor", "channel", "split")
WEIGHT_RANGES = ("minmax", "percentile", "mse", "kl", "lsq")
ACTIVATION_RANGES = ("minmax", "percentile", "mse", "kl")
CODEBOOK_MODES = ("weights", "clusters", "both")
CODEBOOK_INITS = ("kmeans", "quantile", "uniform")
QUANTIZERS = ("uniform", "codebook")

# Those of quantized networks are the learners' own, see ``_training_defaults``.
_LEARNING_RATE, _WEIGHT_DECAY = 0.02, 5e-4
# Where nothing is decided there is nothing to bound; every network of quantized layers meets this.
_ANY_BUDGET = "mean_bits=1.0"


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
    seed: int = _option(0, "task")
    validation_size: int | None = _option(None, "task")
    validation_split: str = _option("random", "task")
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
    agent: str = _option("ddpg", "search")
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

    weight_bits: str = _option("2-8", "search")
    activation_bits: str = _option("8", "search")
    first_last_bits: int | None = _option(8, "search")
    granularity: str = _option("", "search")
    bucket_size: int = _option(256, "search")
    weight_range: str = _option("mse", "search")
    activation_range: str = _option("mse", "search")
    affine_weights: bool = _option(False, "search")
    learned_steps: bool = _option(False, "search")
    codebook_mode: str = _option("both", "search")
    codebook_init: str = _option("kmeans", "search")
    quantizer: str = _option("uniform", "search")

    epochs: int = _option(30, "finetune")
    learning_rate: float = _option(None, "finetune")
    weight_decay: float = _option(None, "finetune")
    teacher: str = _option("original", "finetune")
    distillation_temperature: float = _option(4.0, "finetune")
    distillation_weight: float = _option(0.7, "finetune")

    def __post_init__(self) -> None:
        if self.learner in LEARNERS and not self.granularity:
            own = "tensor" if self.quantization == "codebook" else "channel"
            object.__setattr__(self, "granularity", own)
        for name, choices in _CHOICES.items():
            _check_choice(f"--{name.replace('_', '-')}", getattr(self, name), choices)
        # Canonical texts, so that "macs=.5" and "macs=0.5" are the same on resume.
        for name in ("weight_bits", "activation_bits"):
            option = f"--{name.replace('_', '-')}"
            object.__setattr__(self, name, bits_text(parse_bits(option, getattr(self, name))))
        if self.first_last_bits is not None:
            parse_bits("--first-last-bits", str(self.first_last_bits))
        if self.quantizes and OFF_BITS == self._only("weight_bits") == self._only(
            "activation_bits"
        ):
            raise ValueError(
                "16 bits everywhere quantize nothing; give --weight-bits or --activation-bits "
                "between 2 and 8, or choose --learner channels."
            )
        budget = self.budget or self._default_budget()
        object.__setattr__(self, "budget", str(Budget.parse(budget)))
        for name, value in self._training_defaults().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check_numbers()

    def _only(self, name: str) -> int | None:
        """The one width of ``weight_bits`` or ``activation_bits``; None if there is a choice."""
        bits = parse_bits("bits", getattr(self, name))
        return bits[0] if len(bits) == 1 else None

    def _default_budget(self) -> str:
        """A budget in the middle of what the bits offer; 4 bits per weight for 2-8.

        In the middle is the geometric mean. The first and the last layer may be as much as a
        tenth of the network and have more bits than that: then the budget leaves room for them.
        """
        if self.learner == "channels":
            return "macs=0.5"
        weights = parse_bits("bits", self.weight_bits)
        inputs = parse_bits("bits", self.activation_bits)
        ends = None if self.first_last_bits is None else counted_bits(self.first_last_bits)
        if self.learner == "joint":
            # 15 % of the bytes with 4 bits; what weights of more bits take, fewer channels do not.
            size = min(0.15 * max(_middle(weights, ends), 4.0) / 4, 0.5)
            return "macs=0.5" if weights == (OFF_BITS,) else f"bytes={size:.4g},macs=0.5"
        if len(weights) > 1:
            return f"mean_bits={_middle(weights, ends) / 32:.4g}"
        if len(inputs) > 1:
            own = counted_bits(weights[0])
            both = None if ends is None else (own if own > OFF_BITS else ends) * ends / own
            return f"bops={own * _middle(inputs, both) / 1024:.4g}"
        return _ANY_BUDGET

    def _training_defaults(self) -> dict[str, float]:
        """What the fine-tuning takes if nothing is said: as the learners' own ``finetune``."""
        if not self.quantizes:
            return {"learning_rate": _LEARNING_RATE, "weight_decay": _WEIGHT_DECAY}
        # Not above: torch takes a second to import, and `--help` needs none of it.
        from learners.quantization.codebook import LEARNING_RATES
        from learners.quantization.preparation import quantized_training

        usual = quantized_training(self.seed)
        rate = usual.learning_rate
        if self.quantization == "codebook":
            rate = LEARNING_RATES[self.codebook_mode]
        return {"learning_rate": rate, "weight_decay": usual.weight_decay}

    @property
    def prunes(self) -> bool:
        """Whether channels are cut."""
        return self.learner in ("channels", "joint")

    @property
    def quantizes(self) -> bool:
        """Whether layers are quantized."""
        return self.learner != "channels"

    @property
    def quantization(self) -> str:
        """How layers are quantized: ``"uniform"``, ``"codebook"``, or ``"none"``."""
        if self.learner == "channels":
            return "none"
        return self.quantizer if self.learner == "joint" else self.learner

    @property
    def decides(self) -> bool:
        """Whether a plan holds a choice; bits that are the same everywhere leave none."""
        bits = (self.weight_bits, self.activation_bits)
        return self.prunes or any(len(parse_bits("bits", text)) > 1 for text in bits)

    @property
    def shown_costs(self) -> tuple[str, ...]:
        """The costs that say most about a plan: those of the budget, and those it can change."""
        own = {
            "channels": ("macs", "params", "bytes"),
            "joint": ("macs", "bytes", "bops", "mean_bits"),
        }.get(self.learner, ("bytes", "bops", "mean_bits"))
        return (*own, *(name for name in Budget.parse(self.budget).bounds if name not in own))

    def _check_numbers(self) -> None:
        least: dict[str, float] = {
            "episodes": 1, "round_to": 1, "batch_size": 1, "train_epochs": 1,
            "n_validation": 1, "epochs": 0, "threads": 0, "finetune_steps": 0, "seed": 0,
            "weight_decay": 0,
            "bucket_size": 2,
        }  # fmt: skip
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                raise ValueError(
                    f"Expected --{name.replace('_', '-')} >= {smallest:g}, "
                    f"got {getattr(self, name)}."
                )
        for name in ("learning_rate", "train_learning_rate", "distillation_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"Expected --{name.replace('_', '-')} > 0, got {getattr(self, name)}."
                )
        if not 0.0 <= self.distillation_weight <= 1.0:
            raise ValueError(
                f"Expected --distillation-weight in [0, 1], got {self.distillation_weight}."
            )

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

    def differences(self, other: RunConfig, stages: set[str]) -> list[str]:
        """Returns ``"--option: a here, b there"`` for the options of ``stages`` that differ."""
        return [
            f"--{f.name.replace('_', '-')} is {getattr(self, f.name)!r} there and "
            f"{getattr(other, f.name)!r} now"
            for f in dataclasses.fields(self)
            if f.metadata["stage"] in stages and getattr(self, f.name) != getattr(other, f.name)
        ]


_CHOICES = {
    "teacher": TEACHERS,
    "validation_split": VALIDATION_SPLITS,
    "precision": PRECISIONS,
    "learner": LEARNERS,
    "granularity": GRANULARITIES,
    "weight_range": WEIGHT_RANGES,
    "activation_range": ACTIVATION_RANGES,
    "codebook_mode": CODEBOOK_MODES,
    "codebook_init": CODEBOOK_INITS,
    "quantizer": QUANTIZERS,
}


def _middle(bits: Sequence[int], ends: float | None) -> float:
    """Returns bits between the fewest and the most; enough if a tenth of all has ``ends`` bits."""
    low, high = counted_bits(bits[0]), counted_bits(bits[-1])
    room = 0.0 if ends is None else 0.9 * low + 0.1 * ends
    return max(math.sqrt(low * high), room)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"Expected {option} to be one of {', '.join(choices)}, got {value!r}.")


def package_versions() -> dict[str, str | None]:
    """Returns the versions of the packages that decide about a result; None where missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions

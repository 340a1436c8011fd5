"""Every option of a run in one record, grouped by the stage that it belongs to."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass, field
from typing import Any

from amc_env import Budget, RunFolderError

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

    budget: str = _option("macs=0.5", "search")
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

    epochs: int = _option(30, "finetune")
    learning_rate: float = _option(0.02, "finetune")
    weight_decay: float = _option(5e-4, "finetune")
    teacher: str = _option("original", "finetune")
    distillation_temperature: float = _option(4.0, "finetune")
    distillation_weight: float = _option(0.7, "finetune")

    def __post_init__(self) -> None:
        # The canonical text, so that "macs=.5" and "macs=0.5" are the same budget on resume.
        object.__setattr__(self, "budget", str(Budget.parse(self.budget)))
        self._check_numbers()
        _check_choice("--teacher", self.teacher, TEACHERS)
        _check_choice("--validation-split", self.validation_split, VALIDATION_SPLITS)
        _check_choice("--precision", self.precision, PRECISIONS)

    def _check_numbers(self) -> None:
        least: dict[str, float] = {
            "episodes": 1, "round_to": 1, "batch_size": 1, "train_epochs": 1,
            "n_validation": 1, "epochs": 0, "threads": 0, "finetune_steps": 0, "seed": 0,
            "weight_decay": 0,
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

"""Every option of a run in one record, grouped by the stage that it belongs to."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from amc_compress.config.bit_widths import bits_text, parse_bits
from amc_compress.config.defaults import default_budget, own_defaults, training_defaults
from amc_compress.config.option import declared, flag
from amc_compress.config.options.bits import BitOptions
from amc_compress.config.options.finetuning import FinetuneOptions
from amc_compress.config.options.pruning import PruningOptions
from amc_compress.config.options.search import SearchOptions
from amc_compress.config.options.task import TaskOptions
from amc_compress.config.texts import NOT_GIVEN
from amc_compress.config.values import CHANNEL_LEARNERS, check_size, check_values
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


@dataclass(frozen=True)
class RunConfig(FinetuneOptions, BitOptions, PruningOptions, SearchOptions, TaskOptions):
    """The options of a run; two runs with equal options on one machine give equal results.

    ``docs/options.md`` describes each option; the command line's names are the same.
    """

    def __post_init__(self) -> None:
        hints = types_of_options()
        for f in dataclasses.fields(self):  # None stands for what depends on other options
            if (value := getattr(self, f.name)) is not None or f.default is not None:
                check_size(f.name, value)
                object.__setattr__(self, f.name, check_argument(f.name, value, hints[f.name]))
        self._fill(own_defaults(self), where=("", NOT_GIVEN))
        for name, declaration in OPTIONS.items():
            declaration.check(name, getattr(self, name))
        check_values(self)
        # Canonical texts, so that "macs=.5" and "macs=0.5" are the same on resume.
        for name in ("weight_bits", "activation_bits"):
            bits = parse_bits(flag(name), getattr(self, name))
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
        self._fill(training_defaults(self), where=(None,))

    def _fill(self, values: Mapping[str, Any], where: tuple[Any, ...]) -> None:
        """Sets options that are not given, which they are where they have one of some values."""
        for name, value in values.items():
            if getattr(self, name) in where:
                object.__setattr__(self, name, value)

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
        if unknown := sorted(options.keys() - SPELLINGS.keys()):
            raise RunFolderError(
                f"The run was configured with options unknown to this release: {unknown}; "
                f"use the release that wrote it."
            )
        values: dict[str, Any] = {
            SPELLINGS[k]: tuple(v) if isinstance(v, list) else v for k, v in options.items()
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
            f"{flag(f.name)} is {getattr(self, f.name)!r} there and {getattr(other, f.name)!r} now"
            for f in dataclasses.fields(self)
            if OPTIONS[f.name].stage in stages
            and f.name not in but
            and getattr(self, f.name) != getattr(other, f.name)
        ]


OPTIONS = declared(RunConfig)
"""The declarations, by name."""

SPELLINGS = {
    spelling: name
    for name, declaration in OPTIONS.items()
    for spelling in (name, *declaration.aliases, *declaration.formerly)
}
"""What an option is called in files, older ones too -> its name."""


@functools.cache
def types_of_options() -> dict[str, Any]:
    """Returns the type of every option, by name."""
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

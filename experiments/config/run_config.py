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
from amc_compress.config.data_defaults import data_defaults
from amc_compress.config.goals import drop
from amc_compress.config.learner_specs import LEARNERS, LearnerSpec
from amc_compress.config.option import declared, flag, option
from amc_compress.config.options import Options
from amc_compress.config.options.task import TaskOptions
from amc_compress.config.presets import PRESETS
from amc_compress.config.texts import NOT_GIVEN
from amc_compress.config.validation import check_values, validate
from amc_compress.config.values import ONNX_BYTES, check_size
from amc_env import Budget, RunFolderError
from amc_env.budgets.budget import BudgetLike
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


_NO_BUDGET: tuple[Any, ...] = (None, "")  # then it is the learner's own


@dataclass(frozen=True)
class _LearnerOption(TaskOptions):
    learner: str = option(
        "channels",
        "What is done to the network: channels (cuts them; so do group-lasso, remastered "
        "and discrimination, which choose the channels in other ways), sparse (sets single "
        "weights to zero), uniform (rounds weights and activations to integers), codebook "
        "(weights share a few learned values), deep (sparse, then codebooks: the smallest "
        "file), joint (cuts and quantizes, with --density zeros too).",
        stage="search",
        panel="Search",
        choices=LEARNERS.keys(),
        everyday=True,
    )


@dataclass(frozen=True)
class RunConfig(Options, _LearnerOption):
    """The options of a run; two runs with equal options on one machine give equal results.

    ``docs/options.md`` describes each option; the command line's names are the same. The budget is
    given in any form that ``Budget.of`` reads, and is a ``Budget`` from here on.
    """

    def __post_init__(self) -> None:
        if (budget := self.budget) not in _NO_BUDGET:
            self._set("budget", _in_order(budget))
        if self.max_drop is not None:  # a number, from Python
            self._set("max_drop", drop("--max-drop", str(self.max_drop)))
        hints = types_of_options()
        for f in dataclasses.fields(self):  # None stands for what depends on other options
            if (value := getattr(self, f.name)) is not None or f.default is not None:
                check_size(f.name, value)
                self._set(f.name, check_argument(f.name, value, hints[f.name]))
        OPTIONS["learner"].check("learner", self.learner)
        OPTIONS["preset"].check("preset", self.preset)
        self._fill(PRESETS[self.preset], where=(None,))
        self._fill(data_defaults(self.data, self.task, self.model), where=(None,))
        self._fill(self.spec.defaults(), where=("", NOT_GIVEN))
        for name, declaration in OPTIONS.items():
            declaration.check(name, getattr(self, name))
        check_values(self)
        # Canonical texts, so that "2,3,4" and "2-4" are the same on resume.
        for name in ("weight_bits", "activation_bits"):
            self._set(name, bits_text(parse_bits(flag(name), getattr(self, name))))
        if self.first_last_bits is not None:
            parse_bits("--first-last-bits", str(self.first_last_bits))
        self._fill({"agent": "ddpg-one-shot"}, where=("",))
        if self.max_drop is not None:
            self._fill({"minimize": self.spec.costs[0]}, where=("",))
            self._fill({"budget": Budget(**{self.minimize: 1.0})}, where=_NO_BUDGET)
        self._fill({"budget": _in_order(self.spec.default_budget())}, where=_NO_BUDGET)
        self._fill(self.spec.training_defaults(), where=(None,))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _fill(self, values: Mapping[str, Any], where: tuple[Any, ...]) -> None:
        """Sets options that are not given, which they are where they have one of some values."""
        for name, value in values.items():
            if getattr(self, name) in where:
                self._set(name, value)

    @property
    def spec(self) -> LearnerSpec:
        """What the learner does with these options, and how it is built."""
        return LEARNERS[self.learner](self.learner, self)

    def validate(self, stages: Collection[str] = STAGES) -> None:
        """Checks what needs more than one option, or another package, before any work is done.

        Args:
            stages: Those that will be run.

        Raises:
            ValueError: If options contradict each other, one has no effect on the learner, or a
                name is unknown.
        """
        validate(self.spec, stages)

    @property
    def named_costs(self) -> tuple[str, ...]:
        """The costs that budget and goal are about."""
        return (*self.budget.names, *filter(None, [self.minimize]))

    @property
    def has_further_costs(self) -> bool:
        """Whether costs come from tables, code of a user's, or the network's own ONNX file."""
        return bool(self.cost_table or self.cost or ONNX_BYTES in self.named_costs)

    @property
    def shown_costs(self) -> tuple[str, ...]:
        """The costs that say most about a plan: those of the budget, and those it can change."""
        own = self.spec.costs
        return (*own, *(name for name in self.budget.names if name not in own))

    def settled(self, before: RunConfig | None = None) -> RunConfig:
        """Returns the options with the number of plans under way that holds for the whole run.

        Args:
            before: Those that the run began with; None where it begins now.

        Raises:
            ValueError: If it does not follow from the options.
        """
        if self.parallel is not None:
            return self
        if before is None and self.ray is not None and self.workers == 1:
            raise ValueError(
                "Expected --parallel with --ray and no number of --workers: how many plans are "
                "under way is part of the search, so no cluster decides it; twice as many as there "
                "are workers keep them busy."
            )
        begun_with = self.workers if before is None else before.parallel
        return dataclasses.replace(self, parallel=begun_with or 1)

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as plain JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

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
        values.setdefault("parallel", 1)  # as in every run of before there was a choice
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
            f"{flag(name)} is {_plain(there)!r} there and {_plain(now)!r} now"
            for name, declaration in OPTIONS.items()
            if declaration.stage in stages
            and name not in but
            and (there := getattr(self, name)) != (now := getattr(other, name))
        ]


def _in_order(budget: BudgetLike) -> Budget:
    """Reads a budget, with its costs in the order of its text, which is what files hold."""
    return Budget.parse(str(Budget.of(budget)))


def _plain(value: Any) -> Any:
    """Returns the value of an option as JSON holds it."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Budget) else value


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

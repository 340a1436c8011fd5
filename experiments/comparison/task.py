"""A task of a comparison, and where its data and weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RECORDED = "-recorded"
"""The end of a recorded task's name."""

Kind = Literal["channels", "bits", "joint", "recorded", "searched", "own"]


@dataclass(frozen=True)
class ComparisonTask:
    """A compression problem that agents are compared on.

    Args:
        name: What it is called on the command line and in the results.
        title: One line about it.
        kind: ``"channels"``, ``"bits"`` or ``"joint"`` of a network of images; ``"recorded"`` for
            one that a fitted surrogate evaluates; ``"searched"`` for what ``amc search`` would
            solve; ``"own"`` for an environment that a function makes.
        budget: In its text form.
        model: Name of the network; of a searched task as ``--model`` takes it, of an own one the
            function that makes the environment, as ``package.module:factory``.
        data: ``"digits"``, or ``"cifar10"`` for the folder that :class:`Places` names; of a
            searched task a function, as ``--data`` takes it.
        options: Further options of the environment; of a searched task those of ``amc search``,
            ``learner`` and ``task`` among them.
        env_id: Of a recorded task, its Gymnasium id.
        learning_rate: Peak of the fine-tuning; that of a searched task is among its options.
        folder: Of a searched task, the name under which :class:`Places` has the folder that both
            functions are called with as ``folder``; empty if they need none.
    """

    name: str
    title: str
    kind: Kind
    budget: str = ""
    model: str = "digitsnet"
    data: str = "digits"
    options: Mapping[str, Any] = field(default_factory=dict)
    env_id: str = ""
    learning_rate: float = 0.02
    folder: str = ""

    @property
    def is_recorded(self) -> bool:
        """Whether plans are evaluated by a fitted surrogate instead of a network."""
        return self.kind == "recorded"

    @property
    def is_trained(self) -> bool:
        """Whether its winners can be fine-tuned."""
        return self.kind not in ("recorded", "own")

    @property
    def record(self) -> str:
        """Name of a recorded task's record in the package."""
        return self.name.removesuffix(RECORDED)


@dataclass(frozen=True)
class Places:
    """Paths of data and weights that tasks need.

    Args:
        data: Folder with CIFAR-10 as parquet files.
        weights: Model name -> file of its trained weights, or folder of the trained network.
    """

    data: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)

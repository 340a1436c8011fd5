"""What a learner decides about a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from amc_env.costs.storage import StorageFormat
from amc_env.plan import Decision


@dataclass(frozen=True)
class SearchSpace:
    """What a learner decides about a network: known without data or training.

    Attributes:
        decisions: In network order.
        storage: How networks of its plans are stored, as costs count them, without the header of
            the packed file; ``None`` for float tensors, or where only a prepared learner knows.
        left_out: Layers that no decision is about, though they have weights -> the reason.
        notes: Sentences for the user on what no decision is about.
    """

    decisions: tuple[Decision, ...]
    storage: StorageFormat | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

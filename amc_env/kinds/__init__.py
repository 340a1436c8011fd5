"""Kinds of decisions: what one scalar of a plan means."""

from amc_env.kinds.depth import DEPTH
from amc_env.kinds.kind import (
    KINDS,
    OFF_BITS,
    Bar,
    DecisionKind,
    Panel,
    Quantity,
    kind_named,
    register_kind,
    registered,
    resolve_kind,
)
from amc_env.kinds.usual import USUAL_KINDS

__all__ = [
    "DEPTH",
    "KINDS",
    "OFF_BITS",
    "USUAL_KINDS",
    "Bar",
    "DecisionKind",
    "Panel",
    "Quantity",
    "kind_named",
    "register_kind",
    "registered",
    "resolve_kind",
]

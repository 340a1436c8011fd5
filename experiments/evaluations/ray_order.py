"""What a search tells the process that speaks to Ray; without Ray."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amc_compress.evaluations.payload import Payload
from amc_env import __version__


@dataclass(frozen=True)
class Order:
    """What a search wants of Ray.

    Args:
        address: ``"auto"``, ``"local"`` or ``"HOST:PORT"``.
        count: Workers; as many as the cluster has room for if None.
        threads: Processors of each.
        payload: What every worker builds once.
        versions: Of the packages that scores depend on, where the search runs.
        paths: Where the search finds modules; a node may find those of the user's own there, too.
        whole_nodes: Whether every worker has a node for itself, which overrules ``count``.
    """

    address: str
    count: int | None
    threads: int
    payload: Payload
    versions: str
    paths: tuple[str, ...] = ()
    whole_nodes: bool = False


def versions() -> str:
    """Returns the versions that scores depend on, in words."""
    return f"amc-compress {__version__} with torch {torch.__version__}"

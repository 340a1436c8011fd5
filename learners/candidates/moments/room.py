"""What the moments of a network's layers may take."""

from __future__ import annotations

from dataclasses import dataclass

from amc_compress.learners.candidates.second_order.tensor_files import DISK

MEMORY = 2 * 2**30
"""Bytes of moments that are held at once."""


@dataclass(frozen=True)
class Room:
    """What moments may take.

    Args:
        memory: Bytes that are held at once; one layer's are in any case.
        disk: Bytes of files for those that are not held.
    """

    memory: int = MEMORY
    disk: int = DISK

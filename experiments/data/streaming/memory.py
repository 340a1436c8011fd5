"""How much memory decoded images may take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from amc_env.errors import InputDataError

_FEW = 64  # images that are decoded at one time, at least
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class TooLargeError(Exception):
    """Decoded images would need more memory than they may take."""


@dataclass(frozen=True)
class Room:
    """Memory for the images of all splits while a data set is decoded and cut.

    Args:
        memory: Bytes.
        n_images: Of all splits.
    """

    memory: int
    n_images: int

    def check(self, of_image: int) -> None:
        """Raises if the images do not fit.

        Args:
            of_image: Bytes of each image. They count twice: a split is cut by copying.

        Raises:
            TooLargeError: If they need more.
        """
        if 2 * self.n_images * of_image > self.memory:
            raise TooLargeError


def check_few(size: int) -> None:
    """Checks that a batch of images fits into the machine, where a data set need not.

    Args:
        size: Side of an image in pixels.

    Raises:
        InputDataError: If it does not.
    """
    needed, memory = _FEW * 3 * size**2, 2 * usual_memory()
    if needed > memory:
        raise InputDataError(
            f"Even {_FEW} images need {needed / 1e9:,.0f} GB at {size} x {size} pixels, this "
            f"machine has {memory / 1e9:.0f} GB: give a smaller --image-size."
        )


def usual_memory() -> int:
    """Returns half of the machine's memory, or of the container's if that is less."""
    found = [_machine(), *map(_limit, _LIMITS)]
    known = [size for size in found if size]
    return min(known) // 2 if known else 4 * 10**9


def _machine() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return None


def _limit(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no container, or no limit
        return None

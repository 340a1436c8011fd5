"""File names from task and agent names, which may hold any character."""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")
_LONGEST = 80


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Returns a file or folder name for every name, all different whatever the file system.

    Args:
        names: Names of tasks or agents, e.g. ``"one-shot:agent=td3"``.
    """
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = _UNSAFE.sub("_", name).strip(".")[:_LONGEST] or "_"
        candidate, number = plain, 2
        while candidate.lower() in taken:
            candidate, number = f"{plain}_{number}", number + 1
        taken.add(candidate.lower())
        chosen[name] = candidate
    return chosen

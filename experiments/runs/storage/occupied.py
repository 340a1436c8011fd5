"""Checks of a folder before anything is written into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from amc_compress.config.config_file import CONFIG_FORMAT
from amc_env import RunFolderError
from amc_env.validation.json_text import parse_json


def is_used(path: Path) -> bool:
    """Whether a folder holds anything but leftovers of a start that never came to ``config.json``.

    Raises:
        RunFolderError: If ``path`` is a file.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; expected a folder for --out.")
    with contextlib.suppress(FileNotFoundError):
        return any(not entry.name.startswith(".") for entry in path.iterdir())
    return False


def check_place(path: Path, option: str) -> None:
    """Checks that there is a folder, or that nothing stands in the way of making one.

    Raises:
        RunFolderError: If a file is there, or in the place of a folder above.
    """
    path = path.expanduser()
    nearest = next((p for p in (path, *path.parents) if os.path.lexists(p)), None)
    if nearest is not None and not nearest.is_dir():
        raise RunFolderError(
            f"{nearest} is a file or leads nowhere; expected a folder for {option}."
        )


def check_no_run(path: Path, option: str) -> None:
    """Checks that a folder for something else is not that of a run.

    Raises:
        RunFolderError: If it is, or if there can be no folder.
    """
    check_place(path, option)
    if _is_run(path.expanduser() / "config.json"):
        raise RunFolderError(
            f"{path} is the folder of a run, of which nothing may be mixed with other things; "
            f"choose another {option}."
        )


def _is_run(config: Path) -> bool:
    """Whether a file is the ``config.json`` of a run, of whatever version."""
    try:
        document = parse_json(config.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("format") == CONFIG_FORMAT

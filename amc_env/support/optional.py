"""Libraries that not every installation has."""

from __future__ import annotations

import importlib
from typing import Any

from amc_env.errors import MissingDependencyError


def needed(module: str, otherwise: str) -> Any:
    """Imports a module of a library that may not be installed.

    Args:
        module: Its name.
        otherwise: What is said without it: what needs it, and the line that installs it.

    Raises:
        MissingDependencyError: If it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(otherwise) from error

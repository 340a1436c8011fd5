"""Libraries that read what we write, where they are installed."""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec
from typing import Any

from support.networks.zoo import library


def installed(name: str, *modules: str) -> Any:
    """Returns a library, or skips the test that wants it; what it warns of at import is its own.

    Args:
        name: Of the library.
        *modules: Of it, that are imported too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if find_spec("torchvision"):
            library("torchvision")  # which others import where it is installed
        found = library(name)
        for module in modules:
            importlib.import_module(f"{name}.{module}")
    return found

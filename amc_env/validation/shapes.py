"""Schema checks of documents from files.

A shape is a type (``float`` takes whole numbers too, and no NaN), a union of types, a mapping with
the keys that must be there (those that end in ``?`` may be missing), or a ``dict`` or ``list`` type
of them. Keys that a shape does not name may hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amc_env.validation.checks import described, matches, shown


def check_shape(document: Any, shape: Any, where: str = "") -> None:
    """Checks that a document holds what a shape says.

    Args:
        document: As the JSON reader returns it.
        shape: What it must hold.
        where: The keys on the way to it, for the message.

    Raises:
        ValueError: Naming the first key that is missing, or holds something else.
    """
    if not isinstance(shape, Mapping):
        if not matches(document, shape):
            raise ValueError(
                f"expected {where or 'its content'} to be {described(shape)}, got {shown(document)}"
            )
        return
    if not isinstance(document, dict):
        raise ValueError(f"expected {where or 'its content'} to have keys, got {shown(document)}")
    for key, below in shape.items():
        name = key.removesuffix("?")
        path = f"{where}.{name}".lstrip(".")
        if name in document:
            check_shape(document[name], below, path)
        elif name == key:
            raise ValueError(f"expected the key {path}")


def renamed_keys(document: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns a document with the names that its keys have now.

    Args:
        document: As it was written, now or before keys were renamed.
        names: Old key -> new key.

    Raises:
        ValueError: If a key is there by both names, of which one would be lost.
    """
    if twice := [old for old, new in names.items() if old in document and new in document]:
        raise ValueError(f"it says {names[twice[0]]!r} twice, once by its old name {twice[0]!r}")
    return {names.get(key, key): value for key, value in document.items()}

"""Memory that was freed, and that the C library keeps."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Gives freed memory back to the system, where the C library is one that can (glibc).

    It keeps freed blocks of up to 32 MB for the next request, but larger ones, such as moments of
    wide layers, are always mapped afresh: after tracing ResNet-50 it holds 330 MB for nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)

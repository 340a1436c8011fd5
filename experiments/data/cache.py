"""Decoded pixels in the user's cache: decoding 60,000 small JPEGs takes longer than most commands.

A missing, damaged or unwritable cache costs time, never the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from amc_env.validation.json_text import parse_json

_LIMIT = 2 * 1024**3  # bytes of pixels above which decoding again is the smaller nuisance
_VERSION = "v2"


@dataclass(frozen=True)
class Decoded:
    """Pixels uint8 (N, C, H, W), a digest of each image int64 (N,), and facts about them."""

    pixels: Tensor
    digests: Tensor
    facts: dict[str, Any]


def cache_file(files: Sequence[Path], options: Sequence[Any]) -> Path | None:
    """Returns where the pixels of these files are kept; None without a cache.

    Args:
        files: What is decoded.
        options: All else that decides about the pixels, as JSON values.
    """
    folder = os.environ.get("AMC_CACHE_DIR")
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = str(Path(base) / "amc-compress")
    if folder == "" or not files:
        return None
    # The text of [_VERSION, [[path, bytes, time], ...], options], long for a million files.
    digest = hashlib.sha256(f"[{json.dumps(_VERSION)}, [".encode())
    for number, file in enumerate(files):
        facts = file.stat()
        row = json.dumps([str(file.absolute()), facts.st_size, facts.st_mtime_ns])
        digest.update(f"{', ' if number else ''}{row}".encode())
    digest.update(f"], {json.dumps(options)}]".encode())
    return Path(folder) / f"images-{digest.hexdigest()[:24]}.safetensors"


def read_cache(cache: Path | None) -> Decoded | None:
    """Returns what :func:`write_cache` wrote; None where it is missing or damaged."""
    if cache is None or not cache.is_file():
        return None
    try:
        with safetensors.safe_open(cache, "pt") as file:
            facts = parse_json(file.metadata()["facts"])
            return Decoded(file.get_tensor("pixels"), file.get_tensor("digests"), facts)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def write_cache(cache: Path | None, decoded: Decoded) -> None:
    """Keeps pixels for the next time, if there are not too many."""
    if cache is None or decoded.pixels.numel() > _LIMIT:
        return
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(
            {"pixels": decoded.pixels, "digests": decoded.digests},
            temporary,
            metadata={"facts": json.dumps(decoded.facts)},
        )
        os.replace(temporary, cache)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

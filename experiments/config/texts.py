"""From the text of an option, as it stands on the command line or in a file, to its value."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amc_compress.config.bit_widths import parse_bits
from amc_env.validation.references import is_reference

NOT_GIVEN = 0
"""Bits that nothing can have, where None has a meaning of its own."""

_EMBEDDED = ("digits", "digit-scenes", "digit-scenes:boxes", "digit-scenes:masks")
"""Names of data, whatever folders of that name there are."""
TEXTS = {".txt", ".md", ".rst", ".py"}
"""What files of text end in."""
_CONFIGURATIONS = ("config.json", "adapter_config.json")
_OTHERS = {".parquet", ".arrow", ".tar", ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_SIZE = re.compile(rf"{_NUMBER}(?:([kmgt])(i?))?b?")
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m(?:in)?)?(?:{_NUMBER}s?)?")


def place(flag: str, path: str | Path | None) -> str | None:
    """Returns where data or weights lie, independent of the current directory.

    Args:
        flag: Of the option.
        path: A file or folder, ``FILE::KEY``, ``FOLDER:CONFIGURATION``, or a name.
    """
    if path is None:
        return None
    text = str(path)
    if text in _EMBEDDED:
        return text
    if Path(text).exists():
        return os.path.realpath(text)
    if "::" in text:  # weights
        file, key = split_key(text)
        return f"{os.path.realpath(file)}::{key}" if file.exists() else text
    folder, colon, configuration = text.rpartition(":")
    if folder and Path(folder).is_dir():  # data
        return f"{os.path.realpath(folder)}{colon}{configuration}"
    return text


def is_factory(data: str) -> bool:
    """Returns whether the name of data names code; ``FOLDER:CONFIGURATION`` does not."""
    return is_reference(data) and not Path(data.rpartition(":")[0]).is_dir()


def is_own(data: str) -> bool:
    """Returns whether data are no images of a name or folder: a factory's, or text."""
    return is_factory(data) or is_text(data)


def network(flag: str, text: str) -> str:
    """Returns the name of a network; a folder of one, independent of the current directory."""
    return os.path.realpath(Path(text).expanduser()) if is_pretrained(text) else text


def is_pretrained(model: str) -> bool:
    """Returns whether the name of a network is that of a folder of ``transformers`` or peft."""
    return any((Path(model).expanduser() / name).is_file() for name in _CONFIGURATIONS)


def is_text(data: str) -> bool:
    """Returns whether data are text: a file of it, or a folder of such files and no others' data.

    What other kinds of data are in a folder is seen at the first file of theirs.
    """
    if data in _EMBEDDED:
        return False
    if Path(data).is_file():
        return Path(data).suffix.lower() in TEXTS
    found = False
    for _, folders, names in os.walk(data):
        folders.sort()
        endings = {Path(name).suffix.lower() for name in names}
        if endings & _OTHERS:
            return False
        found = found or bool(endings & TEXTS)
    return found


def split_key(path: str | Path) -> tuple[Path, str | None]:
    """Returns the file and the key of ``FILE::key``, as ``--weights`` takes it."""
    if "::" not in str(path) or Path(path).exists():
        return Path(path), None
    name, _, key = str(path).rpartition("::")
    return Path(name), key


def numbers(flag: str, text: str) -> tuple[float, ...]:
    """Reads numbers with commas.

    Raises:
        ValueError: If it is something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"Expected {flag} as numbers with commas, e.g. 0.75,0.5, got {text!r}."
        ) from error


def words(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Returns what was given one by one."""
    return tuple(texts)


def listed(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Returns what was given one by one, or with commas."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    return tuple(part for part in parts if part)


def files(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the paths of files that were given one by one, or with commas."""
    return tuple(os.path.realpath(part) for part in listed(flag, texts))


def folder(flag: str, path: str | Path) -> str:
    """Returns the path of a folder, independent of the current directory."""
    return os.path.realpath(Path(path).expanduser())


def duration(flag: str, text: str | float) -> float:
    """Reads ``"90s"``, ``"10m"``, ``"1.5h"``, ``"1h30m"`` or a number of seconds.

    Returns:
        Seconds.

    Raises:
        ValueError: If it is something else, or not positive.
    """
    words = "".join(str(text).split()).lower()
    match = _DURATION.fullmatch(words)
    seconds = 0.0
    if match is not None:
        parts = zip(match.groups(), (3600.0, 60.0, 1.0), strict=True)
        seconds = sum(float(number) * unit for number, unit in parts if number)
    if not 0.0 < seconds < float("inf"):
        raise ValueError(f"Expected {flag} as a time, e.g. 90s, 10m or 1h30m, got {str(text)!r}.")
    return seconds


def cluster(flag: str, text: str) -> str:
    """Reads ``"auto"``, ``"local"`` or ``"HOST:PORT"``.

    Raises:
        ValueError: If it is something else.
    """
    host, _, port = text.rpartition(":")
    if text in ("auto", "local") or (host and port.isdecimal()):
        return text
    raise ValueError(f"Expected {flag} auto, local or HOST:PORT, e.g. head:6379, got {text!r}.")


def snapshots(flag: str, text: str) -> str:
    """Returns a number of steps, a time or ``none`` as it was written.

    Raises:
        ValueError: If it is something else.
    """
    words = text.strip()
    if words.lower() == "none" or (words.isdecimal() and int(words) > 0):
        return words.lower()
    try:
        duration(flag, words)
    except ValueError as error:
        raise ValueError(
            f"Expected {flag} as a time (10m, 90s), a number of steps (500) or none, got {text!r}."
        ) from error
    return words


def snapshot_settings(text: str) -> dict[str, Any]:
    """Returns what :func:`snapshots` gave as settings of a training."""
    steps = int(text) if text.isdecimal() else None
    seconds = None if text == "none" or steps else duration("", text)
    return {"snapshot_steps": steps, "snapshot_seconds": seconds}


def memory(flag: str, text: str) -> str:
    """Returns a size as it was written; empty where none is given.

    Raises:
        ValueError: If it is something else.
    """
    if text.strip():
        size(flag, text)
    return text.strip()


def size(flag: str, text: str | int) -> int:
    """Reads ``"4GB"``, ``"512MiB"`` or a number of bytes.

    Raises:
        ValueError: If it is something else.
    """
    match = _SIZE.fullmatch("".join(str(text).split()).lower())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"Expected {flag} as a size, e.g. 4GB or 512MB, got {str(text)!r}.")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** ("kmgt".index(match[2]) + 1 if match[2] else 0))


def bits_or_none(flag: str, text: str) -> int | None:
    """Reads one bit-width, or ``none``.

    Raises:
        ValueError: If it is something else.
    """
    if not text:
        return NOT_GIVEN
    if text.strip().lower() == "none":
        return None
    bits = parse_bits(flag, text)
    if len(bits) != 1:
        raise ValueError(f"Expected {flag} as one number or none, got {text!r}.")
    return bits[0]

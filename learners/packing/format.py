"""The bytes of a packed file: bit fields, header, arrays. Plain Python and numpy; no pickle.

``docs/packed_files.md`` describes the format byte by byte.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amc_compress.learners.packing import sparse as packing_sparse
from amc_env.errors import InputDataError
from amc_env.validation.json_text import parse_json

MAGIC = b"AMCPACK\n"
VERSION = 2
_READABLE = (1, 2)  # version 1 has no sparse arrays, and is else the same
PREFIX = struct.Struct("<8sIIQI")  # magic, version, header bytes, payload bytes, CRC-32 of both
ZEROS = 0
"""Kind of an array of zeros, which takes no bytes."""

SPARSE = "s"
"""Kinds of entropy-coded arrays begin with it: ``"s3"``: codes of 3 bits, ``"sf4"``: floats."""

_KINDS = ("f2", "f4", "f8", "i1", "u1", "i2", "i4", "i8", "?")
_BFLOAT = "bf2"
"""Kind of an array of bfloat16: the upper halves of float32."""

_SPARSE_KINDS = tuple(f"{SPARSE}{number}" for number in (*range(1, 9), "f2", "f4", "f8"))
_CHUNK = 1 << 20  # codes unpacked at once; a multiple of 8, so that chunks end at bytes

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.uint8]


def pack_bits(codes: npt.ArrayLike, bits: int) -> bytes:
    """Packs codes densely, least significant bit first.

    Bit ``j`` of code ``i`` is bit ``(i * bits + j) % 8`` of byte ``(i * bits + j) // 8``; what is
    left of the last byte is 0.

    Args:
        codes: Integers in ``0 .. 2 ** bits - 1``, any shape, in C order.
        bits: 1 to 8.

    Returns:
        ``ceil(n * bits / 8)`` bytes.

    Raises:
        ValueError: If ``bits`` or a code is out of range.
    """
    _check_bits(bits)
    flat = np.asarray(codes).reshape(-1)
    if flat.size and not (flat.min() >= 0 and flat.max() < 2**bits):
        raise ValueError(
            f"Expected codes from 0 to {2**bits - 1} for {bits} bits, got {flat.min()} to "
            f"{flat.max()}."
        )
    parts = []
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK].astype(np.uint8)
        fields = np.unpackbits(chunk[:, None], axis=1, bitorder="little")[:, :bits]
        parts.append(np.packbits(fields, bitorder="little").tobytes())
    return b"".join(parts)


def unpack_bits(data: bytes, bits: int, count: int) -> Codes:
    """Returns the ``count`` codes that :func:`pack_bits` packed, uint8, shape ``(count,)``.

    Raises:
        ValueError: If ``bits`` is out of range or there are too few bytes.
    """
    _check_bits(bits)
    if len(data) < packed_size(count, bits):
        raise ValueError(
            f"Expected {packed_size(count, bits)} bytes for {count} codes of {bits} bits, got "
            f"{len(data)}."
        )
    codes: Codes = np.empty(count, dtype=np.uint8)
    source = np.frombuffer(data, np.uint8, packed_size(count, bits))
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        chunk = source[start * bits // 8 : packed_size(stop, bits)]
        fields = np.unpackbits(chunk, count=(stop - start) * bits, bitorder="little")
        codes[start:stop] = np.packbits(fields.reshape(-1, bits), axis=1, bitorder="little")[:, 0]
    return codes


def packed_size(count: int, bits: int) -> int:
    """Returns how many bytes ``count`` codes take."""
    return -(-count * bits // 8)


def _check_bits(bits: int) -> None:
    if bits != int(bits) or not 1 <= bits <= 8:
        raise ValueError(f"Expected 1 to 8 bits, got {bits}.")


# ---------------------------------------------------------------------- arrays


@dataclass(frozen=True)
class Entry:
    """One array of the payload.

    Args:
        name: Key in the state dict.
        kind: Bits of a packed code (1 to 8), 0 for zeros, a numpy type of ``_KINDS``, or
            ``SPARSE`` and one of the former two.
        shape: Shape of the array.
        coded_size: Bytes of an entropy-coded array.

    Raises:
        ValueError: If there is no such kind.
    """

    name: str
    kind: int | str
    shape: tuple[int, ...]
    coded_size: int = 0

    def __post_init__(self) -> None:
        kinds = (*_KINDS, _BFLOAT, *_SPARSE_KINDS)
        if not (self.kind in kinds or (isinstance(self.kind, int) and 0 <= self.kind <= 8)):
            raise ValueError(f"unknown kind {self.kind!r}")

    @property
    def is_sparse(self) -> bool:
        """Whether it is entropy-coded, places and values."""
        return self.kind in _SPARSE_KINDS

    @property
    def bits(self) -> int | None:
        """Bits of a code, ``None`` for other numbers."""
        kind = str(self.kind).removeprefix(SPARSE)
        return int(kind) if kind.isdigit() and kind != "0" else None

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Size in bytes."""
        if self.is_sparse:
            return self.coded_size
        if isinstance(self.kind, int):
            return packed_size(self.count, self.kind)
        return self.count * (2 if self.kind == _BFLOAT else np.dtype(self.kind).itemsize)

    def read(self, data: bytes) -> Array:
        """Returns an array that is not entropy-coded; codes as uint8."""
        if self.kind == ZEROS:
            return np.zeros(self.shape, dtype=np.float32)
        if isinstance(self.kind, int):
            return unpack_bits(data, self.kind, self.count).reshape(self.shape)
        if self.kind == _BFLOAT:
            halves = np.frombuffer(data, "<u2").astype(np.uint32)
            return (halves << 16).view(np.float32).reshape(self.shape)
        return np.frombuffer(data, np.dtype(self.kind).newbyteorder("<")).reshape(self.shape)

    def read_sparse(self, data: bytes) -> tuple[Array, Array]:
        """Returns an entropy-coded array and its mask."""
        number = str(self.kind).removeprefix(SPARSE)
        return packing_sparse.decode(data, self.shape, number, self.bits)


def raw(name: str, array: Array) -> tuple[Entry, bytes]:
    """Returns entry and bytes of an array; integers in the smallest type that holds them all.

    Raises:
        InputDataError: If numbers of that type cannot be stored.
    """
    kind = np.dtype(array.dtype)
    if kind.kind in "iu":
        kind = _smallest(array)
        if not array.any():
            return Entry(name, ZEROS, array.shape), b""
    text = "?" if kind.kind == "b" else kind.str.lstrip("<>|=")
    if text not in _KINDS:
        raise InputDataError(f"Expected real numbers in {name!r}, got {kind}; convert them.")
    return Entry(name, text, array.shape), array.astype(kind.newbyteorder("<")).tobytes()


def _smallest(array: Array) -> np.dtype[Any]:
    for text in ("u1", "i1", "i2", "i4"):
        limits = np.iinfo(text)
        if not array.size or (limits.min <= array.min() and array.max() <= limits.max):
            return np.dtype(text)
    return np.dtype("i8")


def bfloat16(name: str, array: Array) -> tuple[Entry, bytes]:
    """Returns entry and bytes of float32 numbers that bfloat16 has exactly."""
    halves = np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16
    return Entry(name, _BFLOAT, array.shape), halves.astype("<u2").tobytes()


def codes(name: str, array: Codes, bits: int) -> tuple[Entry, bytes]:
    """Returns entry and bytes of packed codes."""
    return Entry(name, int(bits), array.shape), pack_bits(array, bits)


def sparse(
    name: str, array: Array, mask: Array | None, bits: int | None = None
) -> tuple[Entry, bytes]:
    """Returns entry and bytes of an entropy-coded array.

    Args:
        name: Key in the state dict.
        array: Floats, or codes.
        mask: Where numbers count, bool, the same shape; ``None`` if everywhere.
        bits: Of the codes, ``None`` for floats.
    """
    data = packing_sparse.encode(array, mask, bits)
    number = f"f{array.dtype.itemsize}" if bits is None else str(bits)
    return Entry(name, f"{SPARSE}{number}", array.shape, len(data)), data


# ---------------------------------------------------------------------- file


def build_header(document: Mapping[str, Any], entries: list[Entry]) -> bytes:
    """Returns the header as it is stored: compact JSON, compressed."""
    rows: dict[str, list[Any]] = {}
    for entry in entries:
        owner, _, name = entry.name.rpartition(".")
        size = [entry.coded_size] if entry.is_sparse else []
        rows.setdefault(owner, []).append([name, entry.kind, list(entry.shape), *size])
    text = json.dumps({**document, "tensors": rows}, separators=(",", ":"), allow_nan=False)
    return zlib.compress(text.encode(), 9)


def build_file(document: Mapping[str, Any], arrays: list[tuple[Entry, bytes]]) -> bytes:
    """Returns a whole packed file; ``document`` is what the header says besides the arrays."""
    # Entries of one owner are stored together, as the header lists them.
    order: dict[str, list[tuple[Entry, bytes]]] = {}
    for entry, data in arrays:
        order.setdefault(entry.name.rpartition(".")[0], []).append((entry, data))
    arrays = [pair for pairs in order.values() for pair in pairs]
    header = build_header(document, [entry for entry, _ in arrays])
    payload = b"".join(data for _, data in arrays)
    check = zlib.crc32(payload, zlib.crc32(header))
    return PREFIX.pack(MAGIC, VERSION, len(header), len(payload), check) + header + payload


@dataclass(frozen=True)
class Stored:
    """An array as it was read.

    Args:
        entry: What the header says about it.
        array: The numbers; codes as uint8.
        mask: Where numbers were stored, bool, the same shape, of an entropy-coded array.
    """

    entry: Entry
    array: Array
    mask: Array | None = None


def read_file(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Returns what the header says, and the arrays by name.

    Args:
        data: The whole file.
        name: What to call it in messages.

    Raises:
        InputDataError: If it is no packed file, of another version, cut short or damaged.
    """
    if len(data) < PREFIX.size or not data.startswith(MAGIC):
        raise InputDataError(
            f"Expected a packed network, but {name} begins otherwise or is cut short; packed "
            f"files are written by save_packed."
        )
    _, version, n_header, n_payload, check = PREFIX.unpack_from(data)
    if version not in _READABLE:
        raise InputDataError(
            f"Expected a packed network of version 1 or {VERSION}, but {name} has version "
            f"{version}; read it with the release that wrote it."
        )
    if len(data) != PREFIX.size + n_header + n_payload:
        raise InputDataError(
            f"Expected {PREFIX.size + n_header + n_payload} bytes in {name}, got {len(data)}: it "
            f"is cut short or was appended to; copy it again."
        )
    if zlib.crc32(data[PREFIX.size :]) != check:
        raise InputDataError(f"{name} is damaged (its check sum differs); copy it again.")
    try:
        document: dict[str, Any] = parse_json(
            zlib.decompress(data[PREFIX.size : PREFIX.size + n_header])
        )
        return document, _read_arrays(document.pop("tensors"), data, PREFIX.size + n_header)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        # The check sum is right, so another program wrote it.
        raise InputDataError(
            f"The header of {name} is not what this release writes: {error}."
        ) from (error)


def _read_arrays(rows: Mapping[str, list[list[Any]]], data: bytes, at: int) -> dict[str, Stored]:
    arrays = {}
    for owner, entries in rows.items():
        for name, kind, shape, *size in entries:
            key = f"{owner}.{name}" if owner else name
            entry = Entry(key, kind, tuple(int(n) for n in shape), *(int(n) for n in size))
            content = data[at : at + entry.size]
            if entry.is_sparse:
                arrays[key] = Stored(entry, *entry.read_sparse(content))
            else:
                arrays[key] = Stored(entry, entry.read(content))
            at += entry.size
    if at != len(data):
        raise ValueError(f"arrays end at byte {at} of {len(data)}")
    return arrays

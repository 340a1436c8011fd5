"""Weights of sparse networks as bytes: where the non-zeros are, what they are, entropy-coded.

Plain Python and numpy; ``docs/packed_files.md`` describes the format byte by byte. The entropy
coder is Deflate (RFC 1951) as the standard library has it. Its Huffman codes alone are within a
few per cent of the entropy of gaps and of masks, and fall back to the bytes as they are;
repetitions (blocks of zeros) are found as well, where that is smaller.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

EVERYWHERE, BIT_MASK, GAPS, GAPS_BETWEEN_ZEROS, INPUTS_LAST = range(5)
"""How the places of the non-zeros are stored: the first byte of the data."""

_LONG_GAP = 255
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
_MOST_MEMORY = 9  # the longest blocks, of which each begins with a table


def encode(values: Array, mask: Mask | None, bits: int | None) -> bytes:
    """Returns the numbers of an array where its mask is true, and the mask.

    Args:
        values: Floats, or codes in ``0 .. 2 ** bits - 1``, any shape.
        mask: The same shape; ``None`` if all numbers count.
        bits: 1 to 8 for codes, ``None`` for floats.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    places = bytes([EVERYWHERE])
    if mask is not None and not mask.all():
        places, flat = _encode_places(mask), flat[mask.reshape(-1)]
    return places + (_encode_floats(flat) if bits is None else _encode_codes(flat, bits))


def decode(data: bytes, shape: Sequence[int], kind: str, bits: int | None) -> tuple[Array, Mask]:
    """Returns the numbers, 0 where there is none, and the mask; of the given shape each.

    Args:
        data: What :func:`encode` returned.
        shape: Of the array.
        kind: Numpy type of the numbers.
        bits: As for :func:`encode`.

    Raises:
        ValueError: If the data are something else.
    """
    streams = _Streams(data)
    mask = _decode_places(streams, shape)
    n_kept = int(mask.sum())
    if bits is None:
        kept = _decode_floats(streams, n_kept, np.dtype(kind))
    else:
        kept = _decode_codes(streams, n_kept, bits)
    streams.check_end()
    values = np.zeros(mask.shape, dtype=kept.dtype)
    values[mask] = kept
    return values, mask


class _Streams:
    """Single bytes and Deflate streams that follow each other."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def byte(self) -> int:
        if not self._rest:
            raise ValueError("an array ends where it should say how it is stored")
        first, self._rest = self._rest[0], self._rest[1:]
        return first

    def bytes(self, most: int) -> Bytes:
        """Reads one stream of at most so many bytes."""
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One more than there may be: 0 would mean any number of them.
            out = stream.decompress(self._rest, most + 1)
        except zlib.error as error:
            raise ValueError(f"a stream is not Deflate ({error})") from error
        if not stream.eof or len(out) > most:
            raise ValueError(f"a stream is cut short, or longer than {most} bytes")
        self._rest = stream.unused_data
        return np.frombuffer(out, np.uint8)

    def check_end(self) -> None:
        if self._rest:
            raise ValueError(f"{len(self._rest)} bytes are left at the end of an array")


def _deflate(data: bytes) -> bytes:
    return min((_deflate_by(data, strategy) for strategy in _STRATEGIES), key=len)


def _deflate_by(data: bytes, strategy: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, _MOST_MEMORY, strategy)
    return stream.compress(data) + stream.flush()


# ---------------------------------------------------------------------- places


def _encode_places(mask: Mask) -> bytes:
    flat = mask.reshape(-1)
    ways = {BIT_MASK: _bits(flat), GAPS: _gaps(flat), GAPS_BETWEEN_ZEROS: _gaps(~flat)}
    if mask.ndim > 2:
        ways[INPUTS_LAST] = _bits(np.moveaxis(mask, 1, -1))
    return min((bytes([way]) + _deflate(data) for way, data in ways.items()), key=len)


def _bits(mask: Mask) -> bytes:
    return np.packbits(mask, bitorder="little").tobytes()


def _decode_places(streams: _Streams, shape: Sequence[int]) -> Mask:
    way, count = streams.byte(), math.prod(shape)
    if way == EVERYWHERE:
        return np.ones(shape, dtype=np.bool_)
    if way in (BIT_MASK, INPUTS_LAST):
        data = streams.bytes(-(-count // 8))
        if len(data) != -(-count // 8):
            raise ValueError(f"a mask of {count} weights has {len(data)} bytes")
        bits = np.unpackbits(data, count=count, bitorder="little").astype(np.bool_)
        if way == BIT_MASK or len(shape) < 3:
            return bits.reshape(shape)
        return np.moveaxis(bits.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    if way not in (GAPS, GAPS_BETWEEN_ZEROS):
        raise ValueError(f"unknown way {way} to store the places of non-zeros")
    places = _places(streams.bytes(count))
    if places.size and places[-1] >= count:
        raise ValueError(f"a non-zero is at {places[-1]} of {count} weights")
    mask = np.full(count, way == GAPS_BETWEEN_ZEROS, dtype=np.bool_)
    mask[places] = way == GAPS
    return mask.reshape(shape)


def _gaps(mask: Mask) -> bytes:
    """Returns how many false ones lie before each true one; 255 means 255 of them and on."""
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    ends = np.cumsum(gaps // _LONG_GAP + 1)
    data = np.full(ends[-1] if ends.size else 0, _LONG_GAP, dtype=np.uint8)
    data[ends - 1] = gaps % _LONG_GAP
    return data.tobytes()


def _places(data: Bytes) -> npt.NDArray[np.int64]:
    steps = data.astype(np.int64) + (data < _LONG_GAP)
    places: npt.NDArray[np.int64] = (np.cumsum(steps) - 1)[data < _LONG_GAP]
    return places


# ---------------------------------------------------------------------- numbers


def _encode_codes(codes: Array, bits: int) -> bytes:
    """Several codes in one byte, lowest first, where their Huffman codes are shorter together."""
    return min(
        (bytes([n]) + _deflate(_joined(codes, bits, n)) for n in sorted({1, 8 // bits})), key=len
    )


def _joined(codes: Array, bits: int, per_byte: int) -> bytes:
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, dtype=np.int64)
    padded[: codes.size] = codes
    together = padded.reshape(-1, per_byte) @ (1 << bits * np.arange(per_byte))
    return together.astype(np.uint8).tobytes()


def _decode_codes(streams: _Streams, count: int, bits: int) -> Bytes:
    per_byte = streams.byte()
    if per_byte not in (1, 8 // bits):
        raise ValueError(f"unknown number {per_byte} of {bits}-bit codes in a byte")
    expected = -(-count // per_byte)
    data = streams.bytes(expected)
    if len(data) != expected:
        raise ValueError(f"{count} codes take {expected} bytes, not {len(data)}")
    shifts = (bits * np.arange(per_byte)).astype(np.uint8)
    codes: Bytes = (data[:, None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(-1)[:count]


def _encode_floats(values: Array) -> bytes:
    """One stream per byte of the numbers, which are rotated so that the sign comes last.

    The exponents then have the highest byte to themselves (of float32), and only few values.
    """
    size = values.dtype.itemsize
    rotated = _rotated(values.view(f"u{size}"), 1)
    planes = rotated.astype(f"<u{size}").view(np.uint8).reshape(-1, size).T
    return b"".join(_deflate(plane.tobytes()) for plane in planes)


def _decode_floats(streams: _Streams, count: int, kind: np.dtype[Any]) -> Array:
    planes = np.empty((kind.itemsize, count), dtype=np.uint8)
    for plane in planes:
        data = streams.bytes(count)
        if len(data) != count:
            raise ValueError(f"{count} numbers have {len(data)} bytes of one kind")
        plane[:] = data
    rotated = np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{kind.itemsize}")
    return _rotated(rotated, 8 * kind.itemsize - 1).view(f"<f{kind.itemsize}")


def _rotated(numbers: Array, left: int) -> Array:
    width = 8 * numbers.dtype.itemsize
    turned: Array = (numbers << left) | (numbers >> (width - left))
    return turned

"""Codes packed densely: any bits, any count, by definition and by an independent formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.selection import examples

from amc_compress.learners.packing import format as packing_format
from amc_compress.learners.packing.format import pack_bits, packed_size, unpack_bits


def as_one_integer(codes: list[int], bits: int) -> bytes:
    """The definition: code i stands at bit ``i * bits`` of one long little-endian integer."""
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    return number.to_bytes((len(codes) * bits + 7) // 8, "little")


def test_an_example_by_hand():
    #  5 = 101, 3 = 011, 6 = 110, from the lowest bit on: byte 0 = ..110|011|101 cut at 8 bits
    assert pack_bits([5, 3, 6], 3) == bytes([0b10011101, 0b1])
    assert unpack_bits(bytes([0b10011101, 0b1]), 3, 3).tolist() == [5, 3, 6]


@examples(200)
@given(st.integers(1, 8).flatmap(lambda b: st.tuples(
    st.just(b), st.lists(st.integers(0, 2**b - 1), max_size=70))))  # fmt: skip
def test_packing_follows_the_definition_and_round_trips(case):
    bits, codes = case
    data = pack_bits(codes, bits)
    assert data == as_one_integer(codes, bits)
    assert len(data) == packed_size(len(codes), bits)
    found = unpack_bits(data, bits, len(codes))
    assert found.dtype == np.uint8
    assert found.tolist() == codes


@pytest.mark.parametrize("bits", range(1, 9))
def test_long_arrays_are_packed_in_pieces_that_fit_together(bits, monkeypatch):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (37, 41)).astype(np.uint8)
    whole = pack_bits(codes, bits)
    monkeypatch.setattr(packing_format, "_CHUNK", 64)
    assert pack_bits(codes, bits) == whole
    assert np.array_equal(unpack_bits(whole, bits, codes.size), codes.reshape(-1))


def test_codes_that_do_not_fit_are_rejected():
    for codes in ([4], [-1], [0, 1, 300]):
        with pytest.raises(ValueError, match="0 to 3"):
            pack_bits(codes, 2)
    for bits in (0, 9, 2.5):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            pack_bits([0], bits)
        with pytest.raises(ValueError, match="1 to 8 bits"):
            unpack_bits(b"\0", bits, 1)
    with pytest.raises(ValueError, match="Expected 2 bytes"):
        unpack_bits(b"\0", 3, 3)

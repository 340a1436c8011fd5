"""Packed files: compressed networks on disk at the size promised."""

from amc_compress.learners.packing.packed_file import load_packed, save_packed

__all__ = ["load_packed", "save_packed"]

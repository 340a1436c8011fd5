"""How many bytes the weights of sparse networks take: places of the non-zeros, and their values.

The places of ``d n`` non-zeros among ``n`` weights take at least ``n H(d)`` bits, ``H`` being the
binary entropy, and little more when masks or gaps are entropy-coded; constants here are what the
packed file really takes (``learners/quantization/packing_sparse.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc_env.graph import LayerSpec
from amc_env.storage import FLOAT_BITS, StorageFormat, ValueBits

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

# What the coder takes beyond the entropy: a share, and a table that grows with the layer.
_INDEX_EXCESS = 1.008
_INDEX_TABLE = 40.0
_INDEX_HALF_TABLE = 60.0
# Bits of a float32 by the density of its layer, where nobody measured it: sign and mantissa do not
# compress, exponents do, and better so the fewer (the larger) weights are left. Measured on
# Laplacian weights; Gaussian and trained ones differ by less than 2 %.
_FLOAT_BITS: ValueBits = ((0.0, 24.9), (0.1, 25.05), (0.35, 25.45), (0.5, 25.85), (1.0, 26.87))
_VALUE_TABLE = 25.0

_WIDTHS = range(1, 9)
_LEVELS = (*_WIDTHS, FLOAT_BITS)
_GRID: Array = np.unique(
    np.concatenate([[0.0], np.geomspace(1e-4, 0.01, 60), np.linspace(0.01, 1.0, 397)])
)


def entropy(density: Array) -> Array:
    """Returns the binary entropy in bits, 0 at densities of 0 and 1."""
    inside = np.clip(density, 1e-300, 1.0 - 1e-16)
    bits = -inside * np.log2(inside) - (1.0 - inside) * np.log2(1.0 - inside)
    return np.where((density <= 0.0) | (density >= 1.0), 0.0, bits)


def place_bits(density: Array, pattern: str) -> Array:
    """Returns the bits per weight that say which weights are not zero, at least.

    Args:
        density: Shares of non-zeros, any shape.
        pattern: ``"unstructured"``, or ``"N:M"`` with N non-zeros among each M weights: these have
            ``log2(M choose N) / M`` bits.
    """
    bits = entropy(density)
    if pattern == "unstructured":
        return bits
    kept, group = (int(part) for part in pattern.split(":"))
    regular = math.log2(math.comb(group, kept)) / group
    factor: float = regular / float(entropy(np.array(kept / group)))
    return bits * factor


class SparseForm:
    """Bytes of the weights of all layers of a sparse network.

    Called for budgets, a layer's bytes never fall when its density or its bits grow. Exactly that
    can happen: half of the weights of 2 bits, and where they are, take as much as 3/4 of them
    without saying so. There the fewer weights' bytes hold for both; from 4 bits on the difference
    is below 3 % (it is at most ``log2(1 + 2 ** -bits)`` bits per weight).

    Args:
        layers: The layers.
        storage: Measured bits of their values, and the pattern of the zeros.
    """

    def __init__(self, layers: Sequence[LayerSpec], storage: StorageFormat) -> None:
        self._places = place_bits(_GRID, storage.pattern)
        excess = _INDEX_EXCESS * self._places
        plain: list[ValueBits] = [((1.0, float(width)),) for width in _WIDTHS]
        usual = dict(zip(_LEVELS, (*plain, _FLOAT_BITS), strict=True))
        measured = [storage.value_bits.get(x.name, {}) for x in layers]
        shape = (len(layers), len(_LEVELS))
        # The table of the values is part of what was measured.
        tables = _VALUE_TABLE * np.array(
            [[width not in known for width in _LEVELS] for known in measured]
        ).reshape(shape)
        values = np.array(
            [[_value_bits(known.get(w, usual[w])) for w in _LEVELS] for known in measured]
        ).reshape(*shape, len(_GRID))
        stored = values + excess
        growing = np.maximum.accumulate(np.maximum.accumulate(stored, axis=2), axis=1)
        # Bytes per weight, one table for budgets and one for what is stored.
        self._per_weight: Array = np.stack([growing, stored]).reshape(2, -1) / 8
        # Of the table only: it must not fall either, above a density of a half.
        ends = np.where(_GRID < 1.0, self._places, 0.0)
        self._places_once = np.stack([np.maximum.accumulate(self._places), ends]) / 8
        self._tables = np.stack([np.maximum.accumulate(tables, axis=1), tables])
        self._rows = np.arange(len(layers))

    def bytes(
        self, weights: Array, densities: Array, bits: Array, off: Array, *, exact: bool = False
    ) -> tuple[Array, Array]:
        """Returns the bytes ``(as codes of so many bits, as float32)``, shape ``(n_layers,)`` each.

        Args:
            weights: Weights of each layer, zeros included, shape ``(n_layers,)``.
            densities: Shares that are not zero, likewise.
            bits: Bits of the codes, 1 to 8, likewise; between whole numbers it interpolates.
            off: Shares of float32, likewise; if all are 0 the second result is 0.
            exact: What is stored, which may fall when a density grows.
        """
        right = np.clip(np.searchsorted(_GRID, densities), 1, len(_GRID) - 1)
        share = (densities - _GRID[right - 1]) / (_GRID[right] - _GRID[right - 1])
        per_weight, tables = self._per_weight[int(exact)], self._tables[int(exact)]

        def read(width: Index) -> Array:
            at = (self._rows * (len(_WIDTHS) + 1) + width) * len(_GRID) + right
            low, high = per_weight[at - 1], per_weight[at]
            result: Array = weights * (low + share * (high - low)) + tables[self._rows, width]
            return result

        once = self._places_once[int(exact)]
        places = weights * (once[right - 1] + share * (once[right] - once[right - 1]))
        table = _INDEX_TABLE * places / (places + _INDEX_HALF_TABLE)
        codes = floats = np.zeros_like(weights)
        if bits.any():
            level = np.clip(np.floor(bits).astype(np.intp) - 1, 0, len(_WIDTHS) - 2)
            upper = np.clip(bits - 1 - level, 0.0, 1.0)
            below = read(level)
            codes = below + upper * (read(level + 1) - below) + table
        if off.any():
            floats = read(np.full(len(weights), len(_WIDTHS), dtype=np.intp)) + table
        return codes, floats


def _value_bits(points: ValueBits) -> Array:
    """Returns the bits of the values per weight of the layer, on the grid of densities."""
    known = np.array(sorted(points), dtype=np.float64)
    return _GRID * np.interp(_GRID, known[:, 0], known[:, 1])

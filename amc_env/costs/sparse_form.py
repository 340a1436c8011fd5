"""How many bytes the weights of sparse networks take: places of the non-zeros, and their values.

The places of ``d n`` non-zeros among ``n`` weights take at least ``n H(d)`` bits, ``H`` being the
binary entropy, and little more when masks or gaps are entropy-coded; constants here are what the
packed file really takes (``learners/packing/sparse.py``).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from amc_env.costs.storage import FLOAT_BITS, StorageFormat, ValueBits
from amc_env.graph import LayerSpec

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

# What the coder takes beyond the entropy: a share, and a table that grows with the layer.
_INDEX_EXCESS = 1.008
_INDEX_TABLE = 40.0
_INDEX_HALF_TABLE = 60.0
# Bits of a float32 by the density of its layer, where it was not measured: sign and mantissa do not
# compress, exponents do, and better so the fewer (the larger) weights are left. Measured on
# Laplacian weights; Gaussian and trained ones differ by less than 2%.
_FLOAT_BITS: ValueBits = ((0.0, 24.9), (0.1, 25.05), (0.35, 25.45), (0.5, 25.85), (1.0, 26.87))
_VALUE_TABLE = 25.0
_ROUNDING = 1e-9

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


def measured_value_bits(
    size: float, weights: int, density: float, pattern: str = "unstructured"
) -> float:
    """Returns the bits per non-zero weight with which :class:`SparseForm` counts a measured size.

    For ``StorageFormat.value_bits``: what a layer's weights take, places and all, is then
    predicted exactly where it was measured, whatever order is in the places. Less than 0 if that
    order is worth more than the values.

    Args:
        size: Bytes of the layer's weights in a packed file.
        weights: Their number, zeros included.
        density: Share that is not zero.
        pattern: That of the storage.
    """
    of_places, of_table = _places(np.array([float(weights)]), np.array([density]), pattern)
    # Of a layer that takes less than the coder's usual table nothing is left for its weights.
    rest = max(size - of_table[0], 0.0)
    return float(8.0 * (rest - of_places[0]) / (density * weights))


def _places(weights: Array, densities: Array, pattern: str) -> tuple[Array, Array]:
    """Returns the bytes of the places, and of the coder's table for them."""
    places = weights * place_bits(densities, pattern) / 8
    return _INDEX_EXCESS * places, _INDEX_TABLE * places / (places + _INDEX_HALF_TABLE)


class SparseForm:
    """Bytes of the weights of all layers of a sparse network.

    For budgets a layer's bytes never fall when its density or its bits grow. In the file they can:
    half of the weights in 2 bits, and where they are, take more than all of them without saying so.
    There the fewer weights' bytes hold for both. How much that adds falls with the bits: it is at
    most ``log2(1 + 2 ** -bits)`` bits per weight for codes that take all their bits.

    Args:
        layers: The layers.
        storage: Measured bits of their values, and the pattern of the zeros.
        fixed: Layers whose density never changes: their bytes need not grow with it.
    """

    def __init__(
        self, layers: Sequence[LayerSpec], storage: StorageFormat, fixed: Container[str] = ()
    ) -> None:
        _check_value_bits(layers, storage)
        self._fixed = np.array([x.name in fixed for x in layers], dtype=np.bool_)
        self._places = place_bits(_GRID, storage.pattern)
        measured = [storage.value_bits.get(x.name, {}) for x in layers]
        values, tables = _values(measured), _value_tables(measured)
        stored = np.maximum(values + _INDEX_EXCESS * self._places, 0.0)
        denser = np.maximum.accumulate(stored, axis=2)
        denser[self._fixed] = stored[self._fixed]
        growing = np.maximum.accumulate(denser, axis=1)
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

        # As in ``_places``, from the grid.
        low, high = self._places_once[:, right - 1], self._places_once[:, right]
        once = low + share * (high - low)
        places = weights * np.where(self._fixed, once[1], once[int(exact)])
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


Measured = Sequence[Mapping[int, ValueBits]]


def _check_value_bits(layers: Sequence[LayerSpec], storage: StorageFormat) -> None:
    """Checks that no weight takes less than nothing: more of them would make a file smaller.

    Raises:
        ValueError: If one does.
    """
    for layer in layers:
        for width, points in storage.value_bits.get(layer.name, {}).items():
            for density, bits in points:
                place = _INDEX_EXCESS * float(place_bits(np.array(density), storage.pattern))
                if density * bits + place < -_ROUNDING:
                    raise ValueError(
                        f"Expected value_bits of {layer.name!r} that are at least 0 together with "
                        f"the bits of a weight's place, got {bits} for {width} bits at a density "
                        f"of {density}; measure that layer again."
                    )


def _values(measured: Measured) -> Array:
    """Bits of the values per weight, by layer, bits and density."""
    plain: list[ValueBits] = [((1.0, float(width)),) for width in _WIDTHS]
    usual = dict(zip(_LEVELS, (*plain, _FLOAT_BITS), strict=True))
    values = np.empty((len(measured), len(_LEVELS), len(_GRID)))
    for row, known in enumerate(measured):
        for level, width in enumerate(_LEVELS):
            points = np.array(sorted(known.get(width, usual[width])), dtype=np.float64)
            values[row, level] = _GRID * np.interp(_GRID, points[:, 0], points[:, 1])
    return _not_above_the_next(values, measured)


def _value_tables(measured: Measured) -> Array:
    """Bytes of the coder's table for the values, by layer and bits; 0 where it was measured too."""
    missing = [[width not in known for width in _LEVELS] for known in measured]
    tables = _VALUE_TABLE * np.array(missing, dtype=np.float64).reshape(-1, len(_LEVELS))
    return _not_above_the_next(tables, measured)


def _not_above_the_next(numbers: Array, measured: Measured) -> Array:
    """What was not measured for few bits must not count more than what was for more."""
    for row, known in enumerate(measured):
        for level in reversed(range(len(_WIDTHS))):  # those of 8 bits: not above float32's
            if _WIDTHS[level] not in known:
                np.minimum(
                    numbers[row, level], numbers[row, level + 1], out=numbers[row, level, ...]
                )
    return numbers

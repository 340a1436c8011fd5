"""The quantizers of the original network's layers, fitted once for all their bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.quantization.decisions import BitChoice
from amc_env.costs.storage import OFF_BITS
from amc_env.plan import Decision, DecisionKind

Make = Callable[[str, int], Quantizer]
"""``(layer, bits) -> quantizer``."""


class FittedQuantizers:
    """Quantizers of all layers and bits that a plan may ask for; candidates get copies.

    Args:
        layers: What is quantized.
        choice: Bits of each.
        weights: Makes a quantizer of a layer's weights.
        inputs: Makes one of its input.
    """

    def __init__(
        self, layers: Sequence[str], choice: BitChoice, weights: Make, inputs: Make
    ) -> None:
        self._weights: dict[tuple[str, int], Quantizer] = {}
        self._inputs: dict[tuple[str, int], Quantizer] = {}
        for name in layers:
            weight_bits, input_bits = choice.used(name)
            for bits in sorted(weight_bits - {OFF_BITS}):
                self._weights[name, bits] = weights(name, bits)
            for bits in sorted(input_bits - {OFF_BITS}):
                self._inputs[name, bits] = inputs(name, bits)

    def weights(self, name: str, bits: int) -> Quantizer:
        """Returns a copy of the quantizer of a layer's weights."""
        return copy.deepcopy(self._weights[name, bits])

    def inputs(self, name: str, bits: int) -> Quantizer:
        """Returns a copy of the quantizer of a layer's input."""
        return copy.deepcopy(self._inputs[name, bits])

    def of_choices(self, decisions: Sequence[Decision]) -> dict[str, list[Quantizer | None]]:
        """Returns decision key -> the quantizer of each choice, ``None`` for float; no copies."""
        found = {}
        for d in decisions:
            kept = self._weights if d.kind is DecisionKind.WEIGHT_BITS else self._inputs
            found[d.key] = [kept.get((d.target, round(c))) for c in d.choices]
        return found

"""Cache of a layer's weights by density."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.sparsification.patterns import Pattern, mask_for
from amc_compress.learners.sparsification.refit import refit

_REMEMBERED_BYTES = 256 * 2**20


class FittedWeights:
    """Masks by magnitude and re-fitted weights, layer by layer.

    Layers are fitted independently of each other, so that a plan is put together from what was
    solved for others.

    Args:
        network: The original, not changed.
        layers: Moments of the inputs of those layers that can be fitted.
        pattern: Of the zeros.
        reconstruct: Whether to fit at all.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, LayerReconstruction],
        pattern: Pattern,
        reconstruct: bool,
    ) -> None:
        self._network = network
        self._layers = layers
        self._pattern = pattern
        self._reconstruct = reconstruct
        self._solved: OrderedDict[tuple[str, int], tuple[Tensor, Tensor | None]] = OrderedDict()
        self._bytes = 0

    def mask(self, name: str, keep: int) -> Tensor:
        """Returns the mask of a layer with ``keep`` weights."""
        return mask_for(self._network.get_submodule(name), self._pattern, keep)

    def solve(self, name: str, keep: int) -> tuple[Tensor, Tensor | None]:
        """Returns weight (zeros behind the mask) and bias, see ``refit``; not to be changed."""
        key = (name, keep)
        if key in self._solved:
            self._solved.move_to_end(key)
            return self._solved[key]
        mask = self.mask(name, keep)
        if self._reconstruct and name in self._layers:
            found = refit(self._layers[name], mask)
        else:
            weight = self._network.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            found = (weight.detach() * mask, None)
        self._solved[key] = found
        self._bytes += found[0].nbytes
        while self._bytes > _REMEMBERED_BYTES and len(self._solved) > 1:
            self._bytes -= self._solved.popitem(last=False)[1][0].nbytes
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what can be computed again."""
        return vars(self) | {"_solved": OrderedDict(), "_bytes": 0}

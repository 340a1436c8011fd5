"""Weights of a layer by density, solved once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.candidates.second_order.levels import Level, Levels
from amc_compress.learners.layers.weight_forms import form_of
from amc_compress.learners.sparsification.patterns import Pattern, mask_for
from amc_compress.learners.sparsification.refit import refit
from amc_compress.learners.sparsification.sparsegpt import sparsegpt, takes
from amc_env.validation.checks import check_known

REPAIRS = ("least-squares", "sparsegpt")


def check_repair(repair: str, proxy: str, pattern: str) -> None:
    """Checks that zeros can be repaired as is asked for.

    Raises:
        ValueError: If there is no such repair, or it does not go with the proxy or the pattern.
    """
    check_known("repair", repair, REPAIRS)
    if repair != "sparsegpt":
        return
    if "reconstruction" not in proxy:
        raise ValueError(
            f"Expected a proxy with reconstruction for repair='sparsegpt', which is one, got "
            f"{proxy!r}."
        )
    if Pattern.parse(pattern).block > 1:
        raise ValueError(
            f"Expected the pattern 'unstructured' or N:M for repair='sparsegpt', got {pattern!r}; "
            f"blocks have repair='least-squares'."
        )


class FittedWeights:
    """Masks and repaired weights, layer by layer.

    Layers are fitted independently of each other, so that a plan is put together from what was
    solved for others.

    Args:
        network: The original, not changed.
        layers: Moments of the inputs of those layers that can be fitted.
        pattern: Of the zeros.
        reconstruct: Whether to fit at all.
        repair: ``"least-squares"`` behind masks by magnitude, or ``"sparsegpt"``, which chooses the
            mask as it goes; layers that it does not know are fitted by least squares.
        levels: Where solved layers are kept; a place of their own if not given.

    Attributes:
        levels: What was solved so far.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, LayerReconstruction],
        pattern: Pattern,
        reconstruct: bool,
        repair: str = "least-squares",
        levels: Levels | None = None,
    ) -> None:
        device = next((p.device for p in network.parameters()), "cpu")
        self.levels = Levels(device=device) if levels is None else levels
        self._network = network
        self._layers = layers
        self._pattern = pattern
        self._reconstruct = reconstruct
        self._repair = repair

    def mask(self, name: str, keep: int) -> Tensor:
        """Returns the mask of a layer with ``keep`` weights."""
        if self.is_swept(name):
            return self._level(name, keep)["mask"]
        return mask_for(self._network.get_submodule(name), self._pattern, keep)

    def solve(self, name: str, keep: int) -> tuple[Tensor, Tensor | None]:
        """Returns weight (zeros behind the mask) and bias, see ``refit``; not to be changed."""
        level = self._level(name, keep)
        return level["weight"], level.get("bias")

    def _level(self, name: str, keep: int) -> Level:
        return self.levels.get((name, keep), lambda: self._solve(name, keep))

    def _solve(self, name: str, keep: int) -> Level:
        if self.is_swept(name):
            return sparsegpt(self._layers[name], self._pattern, keep)
        mask = self.mask(name, keep)
        if not (self._reconstruct and name in self._layers):
            return {"weight": self._weight(name) * mask}
        weight, bias = refit(self._layers[name], mask)
        return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    def is_swept(self, name: str) -> bool:
        """Whether a layer's mask is chosen by a sweep."""
        if self._repair != "sparsegpt" or not self._reconstruct or name not in self._layers:
            return False
        form = form_of(self._network.get_submodule(name))
        return takes(self._pattern, form.outputs_first(self._weight(name)).shape)

    def _weight(self, name: str) -> Tensor:
        weight = self._network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight.detach()

"""The bias that goes with other weights."""

from __future__ import annotations

from torch import Tensor

from amc_compress.learners.candidates.reconstruction import LayerReconstruction


def bias_for(layer: LayerReconstruction, lost: Tensor) -> Tensor | None:
    """Returns the bias with which a layer emits the same means in spite of other weights.

    Args:
        layer: The original weights and the moments of the layer's inputs.
        lost: The original weights minus the other ones, in the type and shape of ``layer.weight``.

    Returns:
        Shape (outputs,), float32; None for a layer that is fitted without an intercept.
    """
    if layer.bias is None or layer.mean is None:
        return None
    shift = (lost * layer.mean.unsqueeze(1)).sum(2)  # (groups, outputs)
    return (layer.bias + shift.flatten()).float()

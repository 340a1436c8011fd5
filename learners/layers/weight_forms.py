"""Where the inputs and the outputs of a layer's weight are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from amc_compress.learners.layers.shared_weights import take_weight


@dataclass(frozen=True)
class WeightForm:
    """How a weight is stored, and the matrix that it is.

    The usual form has outputs first: shape (outputs, inputs per group, *kernel). A transposed
    convolution keeps (inputs, outputs per group, *kernel), and ``x @ weight`` (inputs, outputs).

    Args:
        inputs_first: Whether the weight is of the second kind.
        groups: Of such a convolution; those that have outputs first need none to be read.
    """

    inputs_first: bool = False
    groups: int = 1

    def outputs_first(self, weight: Tensor) -> Tensor:
        """Returns a stored weight, or a mask of one, with outputs first."""
        return _swapped(weight, self.groups) if self.inputs_first else weight

    def stored(self, weight: Tensor) -> Tensor:
        """Returns what has outputs first as the layer stores it."""
        return _swapped(weight, self.groups) if self.inputs_first else weight


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """Swaps ``(groups * a, b, ...)`` to ``(groups * b, a, ...)``; its own inverse."""
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return split.transpose(1, 2).reshape(-1, split.shape[1], *weight.shape[2:])


OUTPUTS_FIRST = WeightForm()

_MATRIX_LAYERS = {("transformers.pytorch_utils", "Conv1D")}
"""Classes of ``x @ weight + bias``, by name, so that their libraries need not be installed."""


def is_matrix_layer(layer: nn.Module) -> bool:
    """Returns whether a layer is ``x @ weight``: a linear one that has its inputs first."""
    return any((kind.__module__, kind.__name__) in _MATRIX_LAYERS for kind in type(layer).__mro__)


def form_of(layer: nn.Module) -> WeightForm:
    """Returns the form of a convolution's or linear layer's weight."""
    if isinstance(layer, _ConvTransposeNd):
        return WeightForm(True, int(layer.groups))
    return WeightForm(True) if is_matrix_layer(layer) else OUTPUTS_FIRST


def write_layer(
    module: nn.Module,
    weight: Tensor,
    bias: Tensor | None,
    norm: nn.Module | None = None,
    *,
    shares: bool = False,
) -> None:
    """Gives a layer repaired weights.

    Args:
        module: The sliced layer, or one with zeros.
        weight: Its new weight, as it stores it.
        bias: Its new bias, or the intercept that ``norm`` takes.
        norm: The batch norm behind a layer without a bias.
        shares: Whether the weight itself becomes the layer's, where it can; else it is copied.
    """
    with torch.no_grad():
        if shares:
            take_weight(module, weight)
        else:
            assert isinstance(module.weight, Tensor)
            module.weight.copy_(weight)
        if bias is None:
            return
        own = getattr(module, "bias", None)
        if isinstance(own, Tensor):
            own.copy_(bias)
        elif norm is not None and isinstance(norm.running_mean, Tensor):
            norm.running_mean.sub_(bias.to(norm.running_mean.device))

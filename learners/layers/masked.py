"""Layers of which some weights are zero by decision: the mask is part of the layer."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

MASK = "weight_mask"
"""Name of the buffer that holds the mask."""

Twin = TypeVar("Twin", bound=nn.Module)


class Masked(nn.Module):
    """Holds the mask of a layer's weights.

    Attributes:
        weight: The weights as they are trained. Where the mask is false a value stays behind it,
            which has no effect, gets no gradient from the loss, and can come back.
        weight_mask: Which weights count, bool, the shape of ``weight``; ``None`` if all do.
        plain: The class of the layer without a mask.
    """

    weight: Tensor
    weight_mask: Tensor | None
    plain: ClassVar[type[nn.Module]]

    def masked_weight(self) -> Tensor:
        """Returns the weights with zeros where the mask is false."""
        return self.weight if self.weight_mask is None else self.weight * self.weight_mask

    def density(self) -> float:
        """Returns the share of weights that count, in [0, 1]."""
        if self.weight_mask is None:
            return 1.0
        return self.weight_mask.float().mean().item()


class SparseConv2d(Masked, nn.Conv2d):
    """A convolution with a mask."""

    plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution, shape (N, out, H', W')."""
        out: Tensor = self._conv_forward(x, self.masked_weight(), self.bias)
        return out


class SparseLinear(Masked, nn.Linear):
    """A linear layer with a mask."""

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Returns the product, shape (..., out_features)."""
        return F.linear(x, self.masked_weight(), self.bias)


SparseLayer = SparseConv2d | SparseLinear


def twin_of(kind: type[Twin], layer: nn.Module) -> Twin:
    """Returns a module of another class with the settings of a layer; parameters are shared.

    Args:
        kind: Sub- or superclass of the layer's class.
        layer: A layer with weights, masked or not; a mask goes along.
    """
    twin = kind.__new__(kind)
    nn.Module.__init__(twin)
    of_every_module = set(twin.__dict__)
    settings = {k: v for k, v in layer.__dict__.items() if k not in of_every_module}
    twin.__dict__.update(settings)
    for name, parameter in layer._parameters.items():
        twin.register_parameter(name, parameter)
    for name, module in layer._modules.items():
        twin.add_module(name, module)
    for name, buffer in layer._buffers.items():
        if name != MASK:
            twin.register_buffer(name, buffer, name not in layer._non_persistent_buffers_set)
    if isinstance(twin, Masked):
        # In the state dict only where there is a mask: None buffers are left out of it.
        twin.register_buffer(MASK, getattr(layer, MASK, None))
    return twin.train(layer.training)


def sparse_layer(layer: nn.Conv2d | nn.Linear, mask: Tensor) -> SparseLayer:
    """Returns the masked twin of a layer; its parameters are shared, not copied.

    Args:
        layer: A convolution or linear layer.
        mask: Which weights count, bool, the shape of the weights.

    Raises:
        ValueError: If the mask has another shape or is not bool.
    """
    if mask.shape != layer.weight.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"Expected a bool mask of shape {list(layer.weight.shape)}, got {mask.dtype} of shape "
            f"{list(mask.shape)}."
        )
    twin: SparseLayer
    if isinstance(layer, nn.Conv2d):
        twin = twin_of(SparseConv2d, layer)
    else:
        twin = twin_of(SparseLinear, layer)
    twin.register_buffer(MASK, mask.to(layer.weight.device))
    return twin


def mask_of(layer: nn.Module) -> Tensor | None:
    """Returns the mask of a layer's weights, ``None`` if all of them count."""
    return layer.weight_mask if isinstance(layer, Masked) else None


def masked_layers(network: nn.Module) -> dict[str, Masked]:
    """Returns the layers that have a mask by qualified name, in network order.

    Quantized layers with a mask are among them.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Masked) and module.weight_mask is not None
    }

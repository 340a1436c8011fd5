"""Layers of which some weights are zero by decision: the mask is part of the layer."""

from __future__ import annotations

from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.layers.substitution import substituted

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
        prefix: What names of classes that are made as they are needed begin with.
        twins: Plain class -> its twin; each kind of twin, made by :meth:`of_class`, has its own.
    """

    weight: Tensor
    weight_mask: Tensor | None
    plain: ClassVar[type[nn.Module]]
    prefix: ClassVar[str]
    twins: ClassVar[dict[type[nn.Module], type[Any]]]

    @classmethod
    def of_class(cls, kind: type[nn.Module]) -> type[Self]:
        """Returns the class of the twins of the layers of a class."""
        if kind not in cls.twins:
            own = {"plain": kind, "__module__": cls.__module__}
            cls.twins[kind] = type(f"{cls.prefix}{kind.__name__}", (cls, kind), own)
        return cls.twins[kind]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Lets classes that are made as they are needed be copied and pickled."""
        base = next(kind for kind in type(self).__mro__ if "twins" in vars(kind))
        return _empty, (base, self.plain), self.__getstate__()  # type: ignore[no-untyped-call]

    def masked_weight(self) -> Tensor:
        """Returns the weights with zeros where the mask is false."""
        return self.weight if self.weight_mask is None else self.weight * self.weight_mask

    def density(self) -> float:
        """Returns the share of weights that count, in [0, 1]."""
        if self.weight_mask is None:
            return 1.0
        return self.weight_mask.float().mean().item()


class SparseLayer(Masked):
    """A layer with a mask: the forward of its own class, which reads weights with zeros."""

    prefix = "Sparse"
    twins: ClassVar[dict[type[nn.Module], type[Any]]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the layer computes with the weights that count."""
        with substituted(self, {"weight": self.masked_weight()}):
            return super().forward(*args, **kwargs)


class SparseConv2d(SparseLayer, nn.Conv2d):
    """A convolution with a mask."""

    plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution, shape (N, out, H', W')."""
        out: Tensor = self._conv_forward(x, self.masked_weight(), self.bias)
        return out


class SparseLinear(SparseLayer, nn.Linear):
    """A linear layer with a mask."""

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Returns the product, shape (..., out_features)."""
        return F.linear(x, self.masked_weight(), self.bias)


SparseLayer.twins |= {nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}


def _empty(base: type[Masked], kind: type[nn.Module]) -> Masked:
    made = base.of_class(kind)
    return made.__new__(made)


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


def sparse_layer(layer: nn.Module, mask: Tensor) -> SparseLayer:
    """Returns the masked twin of a layer; its parameters are shared, not copied.

    Args:
        layer: A convolution or linear layer of any class, masked or not.
        mask: Which weights count, bool, the shape of the weights.

    Raises:
        ValueError: If the mask has another shape or is not bool.
    """
    assert isinstance(layer.weight, Tensor)
    if mask.shape != layer.weight.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"Expected a bool mask of shape {list(layer.weight.shape)}, got {mask.dtype} of shape "
            f"{list(mask.shape)}."
        )
    plain = layer.plain if isinstance(layer, Masked) else type(layer)
    twin = twin_of(SparseLayer.of_class(plain), layer)
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

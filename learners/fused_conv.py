"""One convolution with its batch norm, residual sum and activation, for inference only.

On a processor these are the fused convolutions that ``torch.compile`` emits
(``torch.ops.mkldnn._convolution_pointwise``), called without a compiler. They are private to
PyTorch, so they are tried once on a tiny tensor; where they are missing or wrong the folded
convolution runs on public operators.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
_LANES = 16  # output channels that one AVX-512 accumulator holds


class FusedConv(nn.Module):
    """``activation(scale * conv(x) + shift [+ other])`` with the scale in the weights.

    Args:
        weight: Folded float32 weight.
        bias: Folded float32 bias.
        geometry: Padding, stride, dilation and groups, as the operators take them.
        activation: ``"none"``, ``"relu"`` or ``"relu6"``.
        dtype: Type of weights and output.
        native: Whether to use oneDNN's fused operators.

    Attributes:
        overwrites: Whether ``other`` may be overwritten by the result.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        geometry: tuple[list[int], list[int], list[int], int],
        activation: str,
        dtype: torch.dtype,
        *,
        native: bool,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.activation = activation
        self.dtype = dtype
        self.native = native
        self.overwrites = False
        # In a list: oneDNN's blocked layout is opaque to the machinery of parameters and buffers.
        self._folded = [weight, bias]
        self._kernel = tuple(weight.shape[2:])
        self._outputs = weight.shape[0]
        self._ready: dict[int, tuple[Any, ...]] = {}

    @classmethod
    def of(
        cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: str, dtype: torch.dtype
    ) -> FusedConv:
        """Folds a convolution and the batch norm behind it; neither is changed."""
        assert not isinstance(conv.padding, str)
        weight, bias = fold_batch_norm(conv, norm)
        geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        native = weight.device.type == "cpu" and onednn_available(dtype)
        return cls(weight, bias, geometry, activation, dtype, native=native)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolves ``x``; ``other`` is added before the activation."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if not self.native:
            weight, bias, padding, stride, dilation, groups = self._arguments(1, x)
            y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
            return self._activate(y if other is None else y + other)
        width = self._size(x, 1)
        pixels = self._pixels(width)
        if other is None:
            return _spread(self._call(x, pixels), pixels, self._outputs)
        shape = (x.shape[0], self._outputs, self._size(x, 0), width)
        if other.shape != shape or self.activation == "relu6":
            y = torch.ops.mkldnn._convolution_pointwise(x, *self._arguments(1, x), "none", [], "")
            return self._activate(y + other)
        other = other.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return _spread(self._sum(x, _pack(other, pixels), pixels), pixels, self._outputs)

    def _call(self, x: Tensor, pixels: int) -> Tensor:
        name, scalars = _ACTIVATIONS[self.activation]
        operator = torch.ops.mkldnn._convolution_pointwise
        result = operator(x, *self._arguments(pixels, x), name, scalars, "")
        assert isinstance(result, Tensor)
        return result

    def _sum(self, x: Tensor, other: Tensor, pixels: int) -> Tensor:
        activation = "relu" if self.activation == "relu" else None
        tail = (*self._arguments(pixels, x), "add", 1.0, activation, [], "")
        if self.overwrites:
            result = torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *tail)
        else:
            result = torch.ops.mkldnn._convolution_pointwise.binary(x, other, *tail)
        assert isinstance(result, Tensor)
        return result

    def _pixels(self, width: int) -> int:
        """Returns how many neighbouring output pixels to compute as one.

        Eight output channels leave half of every vector register empty. Two neighbouring pixels
        of eight channels lie in channels-last memory just as one pixel of sixteen does, so a
        kernel that is one column wider and strides over two pixels fills the register, at 12/18
        of the multiplications (measured: 0.7 of the time).
        """
        _, stride, dilation, groups = self.geometry
        if groups > 1 or stride[1] > 1 or dilation[1] > 1 or self._kernel[1] == 1:
            return 1
        fitting = [p for p in (4, 2) if p * self._outputs <= _LANES and width % p == 0]
        return fitting[0] if fitting else 1

    def _arguments(self, pixels: int, x: Tensor) -> tuple[Any, ...]:
        """Returns weight, bias and geometry of the operator, prepared at the first call.

        The best layout of the weights depends on the size of the input ``x``: without it every
        call may reorder them again (0.9 ms a call for 40 channels).
        """
        if pixels not in self._ready:
            weight, bias = self._folded
            padding, stride, dilation, groups = self.geometry
            if pixels > 1:
                stride = [stride[0], pixels]
                shifted = [F.pad(weight, (p, pixels - 1 - p)) for p in range(pixels)]
                weight, bias = torch.cat(shifted), bias.repeat(pixels)
            geometry = (padding, stride, dilation, groups)
            weight = weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
            if self.native:
                reorder = torch.ops.mkldnn._reorder_convolution_weight
                weight = reorder(weight, *geometry, list(x.shape))
            self._ready[pixels] = (weight, bias.to(self.dtype), *geometry)
        return self._ready[pixels]

    def _activate(self, y: Tensor) -> Tensor:
        if self.activation == "relu":
            return y.relu()
        return F.relu6(y) if self.activation == "relu6" else y

    def _size(self, x: Tensor, axis: int) -> int:
        """Returns the output's size along a spatial axis."""
        padding, stride, dilation, _ = self.geometry
        reach = dilation[axis] * (self._kernel[axis] - 1) + 1
        return (x.shape[2 + axis] + 2 * padding[axis] - reach) // stride[axis] + 1


def _pack(x: Tensor, pixels: int) -> Tensor:
    """Views (N, C, H, W) in channels-last layout as (N, pixels * C, H, W / pixels)."""
    if pixels == 1:
        return x
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).view(n, h, w // pixels, c * pixels).permute(0, 3, 1, 2)


def _spread(x: Tensor, pixels: int, channels: int) -> Tensor:
    """Undoes :func:`_pack`."""
    if pixels == 1:
        return x
    n, _, h, w = x.shape
    return x.permute(0, 2, 3, 1).view(n, h, w * pixels, channels).permute(0, 3, 1, 2)


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Returns ``(weight, bias)`` of the convolution that does both in one."""
    weight = conv.weight.detach().float()
    bias = weight.new_zeros(weight.shape[0]) if conv.bias is None else conv.bias.detach().float()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.float() + norm.eps)
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale = scale * norm.weight.detach().float()
        shift = norm.bias.detach().float()
    bias = (bias - norm.running_mean.float()) * scale + shift
    return weight * scale.view(-1, 1, 1, 1), bias


@lru_cache
def onednn_available(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused convolutions exist here and agree with the public operator."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, 3, 3, generator=generator)
    bias = torch.randn(8, generator=generator)
    images = torch.randn(2, 3, 6, 6, generator=generator)
    other = torch.randn(2, 8, 4, 4, generator=generator)
    module = FusedConv(weight, bias, ([0, 0], [1, 1], [1, 1], 1), "relu", dtype, native=True)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found = [module(images), module(images, other)]
            module.overwrites = True
            found.append(module(images, other.clone()))
            exact = F.conv2d(images, weight, bias)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    expected = [exact.relu(), (exact + other).relu(), (exact + other).relu()]
    tolerance = 1e-4 if dtype == torch.float32 else 0.25
    return all(
        torch.allclose(a.float(), b, atol=tolerance) for a, b in zip(found, expected, strict=True)
    )

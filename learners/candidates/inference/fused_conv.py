"""One convolution with its batch norm, residual sum and activation, for inference only.

On a processor these are the fused convolutions that ``torch.compile`` emits
(``torch.ops.mkldnn._convolution_pointwise``), called without a compiler. They are private to
PyTorch, and some are wrong for some shapes: each is proved for a shape before its first use
(``kernel_proof.py``). Where one is missing or fails, the folded convolution runs on public
operators, and where those fail in bfloat16, in float32.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.numerics.kernel_proof import (
    framed,
    normal_values,
    proved,
    right_twice,
    tiled_like,
)
from amc_compress.learners.numerics.proved_operators import run_proved

_ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
_LANES = 16  # output channels that one AVX-512 accumulator holds
_PUBLIC = 0  # instead of a number of pixels: the public operator


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
        self._folded = [weight.to(dtype), bias.to(dtype)]
        self._kernel = tuple(weight.shape[2:])
        self._outputs = weight.shape[0]
        self._ready: dict[Hashable, tuple[Any, ...]] = {}
        self._forms: dict[Hashable, int] = {}

    @classmethod
    def of(
        cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: str, dtype: torch.dtype
    ) -> FusedConv:
        """Folds a convolution and the batch norm behind it; neither is changed."""
        assert not isinstance(conv.padding, str)
        weight, bias = fold_batch_norm(conv, norm)
        geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        native = weight.device.type == "cpu" and onednn_available()
        return cls(weight, bias, geometry, activation, dtype, native=native)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolves ``x``; ``other`` is added before the activation."""
        # All here is proved, or asks for a proof itself: nothing has to watch the single calls,
        # which would take an eighth of an episode of a small network.
        with torch._C.DisableTorchFunction():
            return self._convolve(x, other)

    def _convolve(self, x: Tensor, other: Tensor | None) -> Tensor:
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if other is None:
            return self._run(x, None, self.activation)
        shape = (x.shape[0], self._outputs, self._size(x, 0), self._size(x, 1))
        if other.shape != shape or self.activation == "relu6":
            return _activate(self._run(x, None, "none") + other, self.activation)
        other = other.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self._run(x, other, self.activation)

    def _run(self, x: Tensor, other: Tensor | None, activation: str) -> Tensor:
        """Computes by the fastest form that is proved for these shapes.

        All are in channels-last layout and of this module's type.
        """
        key = (x.shape, x.stride(), other is None, activation)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = self._choose(x, other, activation)
        if form == _PUBLIC:
            y = self._public(x)
            return _activate(y if other is None else y + other, activation)
        return self._native(self._arguments(form, x), form, x, other, activation)

    def _choose(self, x: Tensor, other: Tensor | None, activation: str) -> int:
        """Returns the most pixels to compute as one by a proved kernel, or the public operator."""
        if not self.native or x.numel() == 0:
            return _PUBLIC
        sums = None if other is None else self.overwrites
        geometry = tuple(tuple(g) if isinstance(g, list) else g for g in self.geometry)
        kind = ("fused convolution", self.dtype, activation, sums, geometry)
        summand = None if other is None else other.stride()
        shapes = (self._folded[0].shape, x.shape, x.stride(), summand)
        for pixels in self._bundles(self._size(x, 1)):
            key = (*kind, *shapes, pixels)
            if proved(key, lambda p=pixels: self._trial(p, x, other, activation)):  # type: ignore[misc]
                return pixels
        return _PUBLIC

    def _trial(self, pixels: int, x: Tensor, other: Tensor | None, activation: str) -> bool:
        """Tries a form on random weights and images of these shapes."""
        shape = self._folded[0].shape
        # Outputs of standard deviation 3: every activation bends some of them.
        scale = 3 / max(shape[1:].numel(), 1) ** 0.5
        weight = normal_values(shape.numel(), 1).view(shape) * scale
        bias = normal_values(shape[0], 2)
        batch, images = tiled_like(x, self.dtype, 3)
        rounded = [part.to(self.dtype).float() for part in (weight, bias)]
        with torch.autocast("cpu", enabled=False):
            expected = _convolve(images, rounded[0], rounded[1], self.geometry)
        summand: Tensor | None = None
        if other is not None:
            summand, few = tiled_like(other, self.dtype, 4)
            expected = expected + few
        expected = _activate(expected, activation)
        arguments = self._prepare(pixels, weight, bias, x.shape)

        def run() -> list[Tensor]:
            # A sum may be written over its summand.
            fresh = None if summand is None else framed(summand, summand.stride())
            return [self._native(arguments, pixels, batch, fresh, activation)]

        sizes = [n * x.element_size() for n in (x.numel(), expected[0].numel() * x.shape[0])]
        return right_twice(run, [expected], self.dtype, sizes)

    def _public(self, x: Tensor) -> Tensor:
        weight, bias, padding, stride, dilation, groups = self._arguments(_PUBLIC, x)
        y = run_proved(F.conv2d, (x, weight, bias, stride, padding, dilation, groups), {})
        assert isinstance(y, Tensor)
        return y

    def _native(
        self,
        arguments: tuple[Any, ...],
        pixels: int,
        x: Tensor,
        other: Tensor | None,
        activation: str,
    ) -> Tensor:
        """Computes by oneDNN's fused operators, ``pixels`` neighbouring outputs as one."""
        operators = torch.ops.mkldnn
        if other is None:
            name, scalars = _ACTIVATIONS[activation]
            y = operators._convolution_pointwise(x, *arguments, name, scalars, "")
            return _spread(y, pixels, self._outputs)
        other = _pack(other, pixels)
        tail = (*arguments, "add", 1.0, "relu" if activation == "relu" else None, [], "")
        if self.overwrites:
            y = operators._convolution_pointwise_.binary(other, x, *tail)
        else:
            y = operators._convolution_pointwise.binary(x, other, *tail)
        return _spread(y, pixels, self._outputs)

    def _bundles(self, width: int) -> list[int]:
        """Returns how many neighbouring output pixels may be computed as one, fastest first.

        Eight output channels leave half of every vector register empty. Two neighbouring pixels
        of eight channels lie in channels-last memory just as one pixel of sixteen does, so a
        kernel that is one column wider and strides over two pixels fills the register, at 12/18
        of the multiplications (measured: 0.7 of the time).
        """
        _, stride, dilation, groups = self.geometry
        if groups > 1 or stride[1] > 1 or dilation[1] > 1 or self._kernel[1] == 1:
            return [1]
        return [p for p in (4, 2) if p * self._outputs <= _LANES and width % p == 0] + [1]

    def _arguments(self, pixels: int, x: Tensor) -> tuple[Any, ...]:
        """Returns weight, bias and geometry of the operator, prepared at the first call."""
        key = (pixels, x.shape if self.native else None)
        if key not in self._ready:
            self._ready[key] = self._prepare(pixels, self._folded[0], self._folded[1], x.shape)
        return self._ready[key]

    def _prepare(
        self, pixels: int, weight: Tensor, bias: Tensor, size: Sequence[int]
    ) -> tuple[Any, ...]:
        """Returns weight, bias and geometry as the operator takes them.

        The best layout of the weights depends on the size of the input: without it every call may
        reorder them again (0.9 ms a call for 40 channels).
        """
        padding, stride, dilation, groups = self.geometry
        if pixels > 1:
            stride = [stride[0], pixels]
            shifted = [F.pad(weight, (p, pixels - 1 - p)) for p in range(pixels)]
            weight, bias = torch.cat(shifted), bias.repeat(pixels)
        geometry = (padding, stride, dilation, groups)
        weight = weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if pixels != _PUBLIC:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight = reorder(weight, *geometry, list(size))
        return weight, bias.to(self.dtype), *geometry

    def _size(self, x: Tensor, axis: int) -> int:
        """Returns the output's size along a spatial axis."""
        padding, stride, dilation, _ = self.geometry
        reach = dilation[axis] * (self._kernel[axis] - 1) + 1
        return (x.shape[2 + axis] + 2 * padding[axis] - reach) // stride[axis] + 1


def _activate(y: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return y.relu()
    return F.relu6(y) if activation == "relu6" else y


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    geometry: tuple[list[int], list[int], list[int], int],
) -> Tensor:
    """Convolves by a matrix product: independent of oneDNN, and no kernel has to be compiled."""
    padding, stride, dilation, groups = geometry
    if groups > 1:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in (0, 1)
    )
    columns = F.unfold(x, *map(tuple, (weight.shape[2:], dilation, padding, stride)))
    y = weight.flatten(1) @ columns + bias[:, None]
    return y.view(x.shape[0], weight.shape[0], height, width)


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


def onednn_available() -> bool:
    """Whether oneDNN's fused convolutions exist here; what they compute is proved per shape."""
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    return bool(torch.backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in names
    )

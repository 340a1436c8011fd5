"""What operations compute where some channels are not there: the definition of a cut.

A channel that is cut holds NaN in a network of full size. A statistic (a mean, a variance, a norm
made of them) is taken over the numbers that are there, by formulas of its own here; a layer leaves
out what is not there; padding leaves it so; everything else passes NaN on. So whatever would have
another meaning over fewer channels (a sum, a softmax, an order) spoils the output, and is never
taken for right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Absence(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a network in whose parameters NaN stands for what is not there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Executes one ATen operation."""
        kwargs = kwargs or {}
        rule = _RULES.get(func.overloadpacket.__name__)
        out = None if rule is None else rule(func, *args, **kwargs)
        return func(*args, **kwargs) if out is None else out


# ---------------------------------------------------------------------- statistics


def _moments(x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns count, mean, and squared distances from it of what is there; axes stay, of size 1.

    Where nothing is there, they are 0, NaN and 0.
    """
    axes = list(axes)
    there = ~x.isnan()
    count = there.sum(axes, keepdim=True)
    mean = torch.where(there, x, 0.0).sum(axes, keepdim=True) / count
    squares = torch.where(there, x - mean, 0.0).square().sum(axes, keepdim=True)
    return count, mean, squares


def _axes(x: Tensor, dim: Any) -> list[int]:
    listed = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return [int(axis) % x.dim() for axis in listed]


def _shaped(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return x if keepdim else x.squeeze(tuple(axes))


def _mean(
    _: Any, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor | None:
    if not x.is_floating_point() or not x.dim():
        return None
    axes = _axes(x, dim)
    return _shaped(_moments(x, axes)[1], axes, keepdim).to(dtype or x.dtype)


def _variance(root: bool, with_mean: bool) -> Callable[..., Tensor | tuple[Tensor, Tensor] | None]:
    def rule(
        func: Any, x: Tensor, dim: Any = None, *rest: Any, correction: Any = None,
        keepdim: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor] | None:  # fmt: skip
        if rest or func._overloadname != "correction" or not x.dim():
            return None
        axes = _axes(x, dim)
        count, mean, squares = _moments(x, axes)
        variance = squares / (count - (1 if correction is None else correction)).clamp(min=0)
        variance = torch.where(count > 0, variance, math.nan)
        spread = _shaped(variance.sqrt() if root else variance, axes, keepdim)
        return (spread, _shaped(mean, axes, keepdim)) if with_mean else spread

    return rule


def _normalised(x: Tensor, axes: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    count, mean, squares = _moments(x, axes)
    factor = (squares / count + eps).rsqrt()
    return (x - mean) * factor, mean, factor


def _layer_norm(
    _: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, factor = _normalised(x, list(range(x.dim() - len(shape), x.dim())), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, factor


def _group_norm(
    _: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, batch: int, width: int,
    pixels: int, groups: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, mean, factor = _normalised(x.reshape(batch, groups, -1), [2], eps)
    y = _affine(y.reshape(batch, width, -1), weight, bias).reshape(x.shape)
    return y, mean[..., 0], factor[..., 0]


def _batch_norm(
    func: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, training: bool, momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    if not training:  # every channel for itself
        return None
    func(x, None, None, running_mean, running_var, True, momentum, eps)  # running statistics
    y, mean, factor = _normalised(x, [axis for axis in range(x.dim()) if axis != 1], eps)
    return _affine(y, weight, bias), mean.flatten(), factor.flatten()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scales and shifts channels, which are axis 1."""
    shape = [-1, *[1] * (x.dim() - 2)]
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


# ---------------------------------------------------------------------- padding


def _pad(func: Any, x: Tensor, pads: Sequence[int], value: Any = 0) -> Tensor | None:
    """Pads one axis after the other: a border around a channel that is not there is not there."""
    if not x.is_floating_point():
        return None
    for start in range(0, len(pads), 2):
        axis = x.dim() - 1 - start // 2
        missing = x.isnan().all(axis, keepdim=True)
        padded = func(x, [*[0] * start, *pads[start : start + 2]], value)
        x = torch.where(missing, math.nan, padded)
    return x


# ---------------------------------------------------------------------- layers


def _convolution(
    func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int,
) -> Tensor | None:  # fmt: skip
    missing = weight.isnan()
    whole = missing.flatten(1).all(1)
    split = missing.flatten(2).all(2).view(groups, -1, weight.shape[1]).all(1).flatten()
    columns, rows = (whole, split) if transposed else (split, whole)
    shape = [-1, *[1] * (x.dim() - 2)]
    # What no weight reads does not count; other numbers that are not there spoil the result.
    y = func(
        torch.where(columns.view(shape), 0.0, x), torch.where(missing, 0.0, weight), bias, stride,
        padding, dilation, transposed, output_padding, groups,
    )  # fmt: skip
    return torch.where(rows.view(shape), math.nan, y)


def _mm(func: Any, x: Tensor, weight: Tensor) -> Tensor:
    return _product(x, weight)


def _addmm(
    func: Any, bias: Tensor, x: Tensor, weight: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    result: Tensor = beta * bias + alpha * _product(x, weight)
    return result


def _product(x: Tensor, weight: Tensor) -> Tensor:
    missing = weight.isnan()
    inner, outer = missing.all(1), missing.all(0)
    y = torch.ops.aten.mm(torch.where(inner, 0.0, x), torch.where(missing, 0.0, weight))
    return torch.where(outer, math.nan, y)


_RULES: dict[str, Callable[..., Any]] = {
    "mean": _mean,
    "var": _variance(root=False, with_mean=False),
    "std": _variance(root=True, with_mean=False),
    "var_mean": _variance(root=False, with_mean=True),
    "std_mean": _variance(root=True, with_mean=True),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "constant_pad_nd": _pad,
    "convolution": _convolution,
    "mm": _mm,
    "addmm": _addmm,
}

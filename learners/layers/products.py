"""What a layer multiplies its weight with, seen while it runs.

What a layer computes is read from the one operation that gets its weight, not from its class: a
subclass may pad its input in its own way before it convolves, and a layer of another library may
be a bare product. What a layer does before that operation is in the operation's input, and what it
does after it does not change what the weights have to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amc_compress.learners.layers.weight_forms import OUTPUTS_FIRST, WeightForm
from amc_compress.learners.tasks.inputs import hooked


@dataclass(frozen=True)
class Product:
    """One use of a weight: ``outputs = columns of the inputs @ weight``.

    Args:
        inputs: Padded, shape (samples, channels, *size); of a product without a kernel
            (samples, *tokens, features).
        form: How the weight is stored.
        kernel: Size of the patches, empty for none.
        stride: From one patch to the next.
        dilation: Inside of a patch.
        groups: Of channels that do not see each other.
        is_flipped: Whether patches are read backwards along all axes, as in a transposed
            convolution, which is one over its inputs with zeros in between.
        bias: What was added at once, the layer's own or another, if anything was.
    """

    inputs: Tensor
    form: WeightForm = OUTPUTS_FIRST
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    is_flipped: bool = False
    bias: Tensor | None = None


@dataclass(frozen=True)
class Use:
    """A product in a layer.

    Args:
        product: What it was.
        adds_bias: Whether the layer's own bias was added at once.
        is_output: Whether the layer returns it, or passes it on through nothing that changes it.
    """

    product: Product
    adds_bias: bool
    is_output: bool


Report = Callable[[Use], None]


@contextmanager
def watching(layers: Mapping[nn.Module, Report]) -> Iterator[None]:
    """Reports every product of some layers with their ``weight``, while a network runs.

    Args:
        layers: Layer -> what is told of its products, after each of its calls.
    """
    handles: list[Any] = []
    for layer, report in layers.items():
        handles += _Watch(report).hook(layer)
    with hooked(handles):
        yield


class _Watch:
    """Watches the calls of one layer."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._running: list[_Seen] = []  # a layer that calls itself has several

    def hook(self, layer: nn.Module) -> Iterable[Any]:
        yield layer.register_forward_pre_hook(self._enter)
        yield layer.register_forward_hook(self._leave, always_call=True)

    def _enter(self, layer: nn.Module, _: Any) -> None:
        seen = _Seen(layer.weight)  # type: ignore[arg-type]
        seen.__enter__()  # type: ignore[no-untyped-call]
        self._running.append(seen)

    def _leave(self, layer: nn.Module, _: Any, output: Any) -> None:
        seen = self._running.pop()
        seen.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        bias = getattr(layer, "bias", None)
        for product, result, version in seen.found:
            self._report(
                Use(
                    product,
                    adds_bias=product.bias is not None and product.bias is bias,
                    is_output=result is output and result._version == version,
                )
            )


@dataclass
class _Seen(TorchFunctionMode):
    """The products with a weight since it was entered, their results, and how often changed."""

    weight: Tensor
    found: list[tuple[Product, Tensor, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and notes it if it multiplies with the weight."""
        told = kwargs or {}
        result = func(*args, **told)
        read = _READ.get(func)
        if read is not None and any(x is self.weight for x in (*args[1:], *told.values())):
            product = read(self.weight, *args, **told)
            if product is not None:
                self.found.append((product, result, result._version))
        return result


# ---------------------------------------------------------------------- what operations do


def _linear(used: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Product:
    return Product(input, bias=bias)


def _matmul(used: Tensor, input: Tensor, other: Tensor) -> Product | None:
    return Product(input, WeightForm(True)) if other is used and other.dim() == 2 else None


def _addmm(
    used: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Product | None:
    if mat2 is not used or beta != 1 or alpha != 1:
        return None
    return Product(mat1, WeightForm(True), bias=input)


def _convolution(
    used: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Product:
    kernel = tuple(weight.shape[2:])
    strides, dilations = _each(stride, kernel), _each(dilation, kernel)
    if isinstance(padding, str):
        totals = [d * (k - 1) * (padding == "same") for d, k in zip(dilations, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(size, size) for size in _each(padding, kernel)]
    padded = F.pad(_batched(input, kernel), _reversed(sides))
    return Product(padded, OUTPUTS_FIRST, kernel, strides, dilations, groups, bias=bias)


def _transposed_convolution(
    used: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Product:
    kernel = tuple(weight.shape[2:])
    batched = _batched(input, kernel)
    strides, dilations, cuts, more = (
        _each(value, kernel) for value in (stride, dilation, padding, output_padding)
    )
    sizes = [(n - 1) * s + 1 for n, s in zip(batched.shape[2:], strides, strict=True)]
    spread = batched.new_zeros(*batched.shape[:2], *sizes)
    places: tuple[Any, ...] = (..., *(slice(None, None, s) for s in strides))
    spread[places] = batched
    edges = [d * (k - 1) - cut for d, k, cut in zip(dilations, kernel, cuts, strict=True)]
    sides = [(edge, edge + extra) for edge, extra in zip(edges, more, strict=True)]
    padded = F.pad(spread, _reversed(sides))
    once = (1,) * len(kernel)
    form = WeightForm(True, groups)
    return Product(padded, form, kernel, once, dilations, groups, is_flipped=True, bias=bias)


def _each(value: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * len(kernel) if len(values) == 1 else values


def _reversed(sides: Iterable[tuple[int, int]]) -> list[int]:
    """Returns the padding of every axis as ``F.pad`` takes it: the last axis first."""
    return [size for pair in reversed(list(sides)) for size in pair]


def _batched(inputs: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Adds the axis of samples where a convolution has got one sample without."""
    return inputs.unsqueeze(0) if inputs.dim() == len(kernel) + 1 else inputs


_READ: dict[Any, Callable[..., Product | None]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.mm: _matmul,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        _transposed_convolution,
    ),
}
"""Operation -> what its arguments say of it; the weight that is meant comes first."""

"""PyTorch's own bfloat16 operators on a processor, proved for each shape like any fast kernel.

They are the same oneDNN kernels that fused convolutions use. An operator that fails its trial
computes in float32 and rounds its result: the types in the network stay what they were. So does
an operator that has no kernel for bfloat16, or none for both types at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from amc_compress.learners.numerics.kernel_proof import (
    normal_values,
    proved,
    random_like,
    right_twice,
    tiled_like,
)

_BATCHED: set[Callable[..., Any]] = {
    torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d,
    torch.conv_transpose3d, F.linear,
}  # fmt: skip
_PRODUCTS: set[Callable[..., Any]] = {
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.Tensor.matmul,
    torch.Tensor.mm, torch.Tensor.bmm, torch.Tensor.__matmul__,
}  # fmt: skip
PROVED: frozenset[Callable[..., Any]] = frozenset(_BATCHED | _PRODUCTS)
"""Operators that are tried. Recurrent layers and fused attention are not among them."""

_PRODUCTS_OF_A_CALL = 4e8  # a little more than 128 images in a layer of ResNet-20
_IMAGES_OF_A_PART = 16

_FLOATS = (torch.float32, torch.bfloat16)


def _opened(function: FunctionType) -> Callable[..., Any]:
    """Returns a Python function of PyTorch's that lets a mode see what it calls.

    The function itself asks whether a mode is active, and hands itself over as a whole; the mode
    is off while it runs then.
    """
    names = function.__globals__ | {"has_torch_function": lambda _: False}
    opened = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


_OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    f: _opened(f)
    for f in (F.multi_head_attention_forward,)
    if isinstance(f, FunctionType) and "has_torch_function" in f.__code__.co_names
}


class ProvedOperators(TorchFunctionMode):
    """Within it every operator of :data:`PROVED` on a processor is proved for its shapes.

    Enter it with ``torch.autocast("cpu", torch.bfloat16)``: that is what the operators are tried
    under, forwards and, where gradients are asked for, backwards.

    Attributes:
        exact: Names of other operators that have failed in bfloat16, and run in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exact: dict[str, None] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls ``func``, in float32 if it is not proved."""
        kwargs = kwargs or {}
        if func in PROVED:
            return run_proved(func, args, kwargs)
        if func in _OPENED:
            with self:
                return _OPENED[func](*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):
            name = getattr(func, "__name__", str(func))
            # What writes into its arguments would write into copies of them.
            if name.endswith("_") or "out" in kwargs or not _rounded(args, kwargs):
                raise
            # Raises again where the type is not what is wrong.
            result = _exact(func, args, kwargs)
            self.exact[name] = None
            return result


def _rounded(*values: Any) -> bool:
    return any(isinstance(v, Tensor) and v.dtype == torch.bfloat16 for v in tree_leaves(values))


def _exact(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Calls an operator in float32 and rounds its results."""
    with torch.autocast("cpu", enabled=False):
        result = func(*tree_map(_widened, args), **tree_map(_widened, dict(kwargs)))
    return tree_map(_narrowed, result)


def _widened(value: Any) -> Any:
    is_short = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_short else value


def _narrowed(value: Any) -> Any:
    is_long = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16) if is_long else value


def run_proved(func: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls an operator in bfloat16 if that is proved for these shapes, else in float32.

    Args:
        func: One of :data:`PROVED`.
        args: What it takes: tensors, numbers and lists of numbers.
        kwargs: The same by name.
    """
    if func is torch.conv2d and (parts := _parts(args, kwargs)) > 1:
        return _convolved(parts, args, kwargs)
    if func is F.linear and args:
        args = (_without_gaps(args[0]), *args[1:])
    return _run(func, args, kwargs)


def _without_gaps(x: Any) -> Any:
    """Returns tensors of more than two axes contiguous, others as they are.

    Of tokens that lie sample by sample, but are indexed first, as ``nn.MultiheadAttention`` has
    them, PyTorch multiplies each token's samples alone: 20 times as slow in bfloat16.
    """
    return x.contiguous() if isinstance(x, Tensor) and x.is_cpu and x.dim() > 2 else x


def _parts(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Returns in how many parts of its batch a convolution is computed, without gradient only.

    A trial costs two batches of its size, and every plan has other widths: where a batch is much
    work, parts of it are as fast, and proved in a fraction of the time. Images had the same bits in
    parts as in the whole batch, for all shapes that were tried.
    """
    x, weight = (*args, None, None)[:2]
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or torch.is_grad_enabled():
        return 1
    if x.dim() != 4 or not x.is_cpu or len(x) < 2 * _IMAGES_OF_A_PART:
        return 1
    stride = args[3] if len(args) > 3 else kwargs.get("stride", 1)
    skipped = math.prod(stride) if isinstance(stride, tuple | list) else stride**2
    products = weight.numel() * x.shape[2] * x.shape[3] / skipped * len(x)
    return len(x) // _IMAGES_OF_A_PART if products > _PRODUCTS_OF_A_CALL else 1


def _convolved(parts: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Convolves parts of a batch, into one tensor that is laid out as each of them."""
    whole: Tensor | None = None
    start = 0
    for part in args[0].tensor_split(parts):
        found: Tensor = _run(torch.conv2d, (part, *args[1:]), kwargs)
        if whole is None:
            size = (len(args[0]), *found.shape[1:])
            whole = found.new_empty_strided(size, found.stride())
        whole[start : start + len(part)] = found
        start += len(part)
    assert whole is not None
    return whole


def _run(func: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls an operator as :func:`run_proved` does, all of it at once."""
    grad = torch.is_grad_enabled()
    # All that decides, in one pass: this runs before every operator of every network.
    facts = [
        (v.shape, v.stride(), v.dtype, v.is_cpu, grad and v.requires_grad)
        if isinstance(v, Tensor)
        else (tuple(v) if isinstance(v, list) else v)
        for v in (*args, *kwargs.values())
    ]
    rounds = torch.is_autocast_enabled("cpu")
    key = (func, tuple(kwargs), tuple(facts), rounds)
    if proved(key, lambda: _is_right(func, args, kwargs, rounds=rounds)):
        return func(*args, **kwargs)
    with torch.autocast("cpu", enabled=False):
        exact = func(*map(_float, args), **{name: _float(v) for name, v in kwargs.items()})
    return exact.to(torch.bfloat16)


def _is_right(
    func: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any], *, rounds: bool
) -> bool:
    """Whether the operator may run as it is: it has nothing to round here, or passes its trial."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not all(t.is_cpu and t.dtype in _FLOATS and t.numel() for t in tensors):
        return True
    if not rounds and all(t.dtype == torch.float32 for t in tensors):
        return True
    # One flag per tensor: which gradients are computed decides which kernels run.
    grad = torch.is_grad_enabled()
    return _trial(func, args, kwargs, [grad and t.requires_grad for t in tensors])


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _trial(
    func: Callable[..., Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    learns: Sequence[bool],
) -> bool:
    """Tries an operator on random values of the arguments' shapes."""
    names = list(kwargs)
    values = [*args, *kwargs.values()]
    short = list(values)
    # Gradients of weights are sums over all images, so all of them count.
    tiles = func in _BATCHED and not any(learns) and len(args) > 0
    # Weights of a convolution have as many axes as a batch of images.
    axes = max(value.dim() for value in values if isinstance(value, Tensor))
    batched = 2 if func is F.linear else axes
    for index, value in enumerate(values):
        if not isinstance(value, Tensor):
            continue
        if index == 0 and tiles and value.dim() >= batched:
            values[0], short[0] = tiled_like(value, torch.bfloat16, index)
        else:
            values[index] = random_like(value, torch.bfloat16, index)
            short[index] = values[index].float()

    def outcome(given: Sequence[Any]) -> list[Tensor]:
        leaves = [v.detach() if isinstance(v, Tensor) else v for v in given]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        wanted = [t.requires_grad_() for t, needed in zip(tensors, learns, strict=True) if needed]
        n = len(given) - len(names)
        result = func(*leaves[:n], **dict(zip(names, leaves[n:], strict=True)))
        if not wanted:
            return [result]
        weight = normal_values(result.numel(), len(given)).view(result.shape).to(torch.bfloat16)
        gradients = torch.autograd.grad(result, wanted, weight.to(result.dtype))
        return [result.detach(), *gradients]

    with torch.autocast("cpu", enabled=False):
        expected = outcome(short)

    def run() -> list[Tensor]:
        # Without its cache: that of the surrounding context would keep the trial's weights.
        nested = torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", torch.bfloat16, enabled=nested, cache_enabled=False):
            return outcome(values)

    # Results are bfloat16; gradients and inputs may be float32.
    sizes = [v.numel() * v.element_size() for v in values if isinstance(v, Tensor)]
    sizes += [e.numel() * size for e in expected for size in (2, 4)]
    if isinstance(args[0] if args else None, Tensor) and tiles:
        sizes.append(2 * expected[0][0].numel() * args[0].shape[0])
    return right_twice(run, expected, torch.bfloat16, sizes)

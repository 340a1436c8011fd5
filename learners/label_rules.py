"""How each operation passes labels on: the rules behind tracing.

The rules listen to ATen, the small closed set of operations that everything a network does ends
in; so modules, functions, methods, operators, in-place variants and control flow need no cases of
their own. An operation without a rule freezes what enters it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learners.labels import LabelTable, compact, varies

# Parameters with more numbers than this are never labelled one by one (embedding tables).
_MAX_LABELLED = 1 << 20

MOVEMENTS = frozenset(
    "permute transpose t expand slice select split split_with_sizes unbind cat stack unsqueeze"
    " squeeze repeat roll flip index_select index pixel_shuffle pixel_unshuffle channel_shuffle"
    " native_channel_shuffle narrow movedim diagonal unfold".split()
)
RESHAPES = frozenset(("view", "_unsafe_view", "reshape", "_reshape_copy"))
IDENTITIES = frozenset("clone detach alias contiguous lift_fresh _to_copy view_as".split())
PADS = frozenset(("constant_pad_nd",))
STRUCTURAL = MOVEMENTS | RESHAPES | IDENTITIES | PADS
_POINTWISE = frozenset("hardswish _prelu_kernel rrelu native_dropout copy".split())
_NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"
    " cudnn_batch_norm miopen_batch_norm _batch_norm_no_update".split()
)
_REDUCTIONS = frozenset(
    "sum mean amax amin max min var std var_mean std_mean linalg_vector_norm norm prod logsumexp"
    " argmax argmin any all".split()
)
_ALONG = frozenset("_softmax _log_softmax _safe_softmax cumsum cumprod sort topk".split())
_SPATIAL = ("max_pool", "avg_pool", "adaptive_", "_adaptive_", "upsample_", "_upsample_",
            "reflection_pad", "replication_pad", "grid_sampler", "mkldnn_max_pool")  # fmt: skip
_SILENT = frozenset(("zero_", "fill_", "_assert_async", "resize_", "set_", "is_same_size"))


@dataclass
class Call:
    """One matrix product or convolution, as it was executed.

    Args:
        weight: The parameter, None for a product of activations.
        module: Innermost module that was running.
        kernel: Spatial kernel.
        stride: Spatial stride.
        groups: Groups of the convolution.
        positions: How often the weight was applied, over the whole batch.
        shape: ``(batch, rows, inner, columns)`` of an activation product; else the weight's shape.
        has_bias: Whether a bias was added.
        input_size: Spatial size of the input.
        factors: Labels along ``shape`` for an activation product, None where fixed.
    """

    weight: Tensor | None
    module: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    positions: int = 1
    has_bias: bool = False
    input_size: tuple[int, ...] = ()
    factors: tuple[Tensor | None, ...] = ()


class LabelMode(TorchDispatchMode):
    """Runs a network for real and lets labels follow its data.

    Args:
        table: Where ids are made and tied.
        parameters: ``id(tensor) -> name`` of every parameter and buffer.
    """

    def __init__(self, table: LabelTable, parameters: dict[int, str]) -> None:
        super().__init__()
        self.table = table
        self.parameters = parameters
        self.axis_labels: dict[int, tuple[Tensor, Tensor]] = {}  # weights: ids of axis 0, axis 1
        self.depthwise: set[int] = set()
        self.parameter_labels: dict[int, Tensor] = {}  # other parameters: an id per coordinate
        self.calls: list[Call] = []
        self.modules: list[str] = [""]  # stack of running modules
        self.movers: set[str] = set()  # modules whose own code moves labelled data
        self.observed: list[set[str]] = []  # kinds of operations, for whoever pushed a set
        self._labels: dict[int, Tensor | None] = {}
        self._transposed: dict[int, Tensor] = {}
        self._alive: list[object] = []  # ids of Python objects are only unique while they live

    # ------------------------------------------------------------------ bookkeeping

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Executes one ATen operation and passes the labels on."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self._alive.append((tensors, out))
        if not tensors or name in _SILENT:
            return out
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        pointwise = torch.Tag.pointwise in func.tags or plain in _POINTWISE
        kind = "movement" if plain in STRUCTURAL else "other"
        for seen in self.observed:
            seen.add(kind)
        try:
            self._apply(plain, pointwise, args, kwargs, out)
        except Exception as error:  # a rule that fails must never lose the network
            self._freeze_all(tensors, f"{name} could not be followed ({error})")
        return out

    def label(self, tensor: Tensor) -> Tensor | None:
        """Returns the ids of a tensor's coordinates, None where all are fixed."""
        key = id(tensor)
        if key in self._labels:
            return self._labels[key]
        if key in self.parameters and tensor.dim() and tensor.numel() <= _MAX_LABELLED:
            if key not in self.parameter_labels:
                ids = self.table.fresh(tensor.numel()).view(tensor.shape)
                self.parameter_labels[key] = ids
            return self.parameter_labels[key]
        return None

    def set_label(self, tensor: Any, labels: Tensor | None) -> None:
        """Notes the ids of a result."""
        if isinstance(tensor, Tensor):
            self._alive.append(tensor)
            if labels is not None and labels.shape != tensor.shape:
                raise ValueError(f"labels {tuple(labels.shape)} for {tuple(tensor.shape)}")
            self._labels[id(tensor)] = labels

    def _freeze_all(self, tensors: Sequence[Tensor], reason: str) -> None:
        for tensor in tensors:
            if id(tensor) in self._transposed:
                tensor = self._transposed[id(tensor)]
                self._freeze_weight(tensor, reason)
            self.table.freeze(self.label(tensor), reason)

    def _freeze_weight(self, weight: Tensor, reason: str) -> None:
        if weight.dim() >= 2:
            for ids in self._axes(weight):
                self.table.freeze(ids, reason)

    def _axes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        key = id(weight)
        if key not in self.axis_labels:
            rows, columns = weight.shape[:2]
            self.axis_labels[key] = (self.table.fresh(rows), self.table.fresh(columns))
        return self.axis_labels[key]

    # ------------------------------------------------------------------ dispatch

    def _apply(self, name: str, pointwise: bool, args: Any, kwargs: Any, out: Any) -> None:
        handler: Callable[..., None] | None = getattr(self, f"_op_{name.lstrip('_')}", None)
        if handler is not None:
            handler(*args, out=out, **kwargs)
        elif name in IDENTITIES:
            self._same(args[0], out)
        elif name in RESHAPES or name in MOVEMENTS:
            self._movement(name, args, kwargs, out)
        elif pointwise:
            self._pointwise(args, kwargs, out)
        else:
            self._apply_family(name, args, kwargs, out)

    def _apply_family(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if name in _NORMS:
            self._batch_norm(args, out)
        elif name in _REDUCTIONS:
            self._reduction(name, args, kwargs, out)
        elif name in _ALONG:
            self._along(name, args, out)
        elif name.startswith(_SPATIAL):
            self._spatial(name, args[0], out)
        elif name.startswith("_scaled_dot_product_"):
            self._attention(args[0], args[1], args[2], out)
        elif name in ("zeros_like", "ones_like", "full_like", "empty_like"):
            known = self.label(args[0])
            if known is not None:
                self.set_label(out, self.table.fresh(out.numel()).view(out.shape))
        else:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self._freeze_all(tensors, f"it enters the operation {name}, which is not understood")

    def _same(self, source: Tensor, out: Any) -> None:
        if id(source) in self._transposed:
            self._transposed[id(out)] = self._transposed[id(source)]
            return
        self.set_label(out, self.label(source))

    # ------------------------------------------------------------------ data movement

    def _movement(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        first = args[0]
        if isinstance(first, Tensor) and self._note_transposed(name, args, first, out):
            return
        tensors = list(first) if isinstance(first, (list, tuple)) else [first]
        labels = [self.label(tensor) for tensor in tensors]
        if all(label is None for label in labels):
            return
        self.movers.add(self.modules[-1])
        ids = [
            torch.zeros((), dtype=torch.int64).expand(tensor.shape) if label is None else label
            for tensor, label in zip(tensors, labels, strict=True)
        ]
        moved: Any
        if name in RESHAPES:
            moved = ids[0].reshape(args[1])
        elif isinstance(first, (list, tuple)):
            moved = getattr(torch.ops.aten, name)(ids, *args[1:], **kwargs)
        else:
            moved = getattr(torch.ops.aten, name)(ids[0], *args[1:], **kwargs)
        if isinstance(out, Tensor):
            self.set_label(out, moved)
        else:
            for result, label in zip(out, moved, strict=True):
                self.set_label(result, label)

    def _note_transposed(self, name: str, args: Any, first: Tensor, out: Any) -> bool:
        """Remembers ``t(weight)``: a linear layer is a product with it."""
        if id(first) not in self.parameters or first.dim() != 2:
            return False
        if not isinstance(first, nn.Parameter):
            return False
        axes = tuple(axis % 2 for axis in tree_leaves(args[1:]) if isinstance(axis, int))
        if name == "t" or (name == "transpose" and axes in ((0, 1), (1, 0))) or (
            name == "permute" and axes == (1, 0)
        ):  # fmt: skip
            self._transposed[id(out)] = first
            return True
        return False

    def _op_constant_pad_nd(self, source: Tensor, pads: Sequence[int], *_: Any, out: Tensor) -> None:
        labels = self.label(source)
        if labels is None:
            return
        self.movers.add(self.modules[-1])
        for index in range(0, len(pads), 2):
            axis = source.dim() - 1 - index // 2
            before, after = pads[index], pads[index + 1]
            if before or after:
                labels = self._padded(labels, axis, before, after)
        self.set_label(out, labels)

    def _padded(self, labels: Tensor, axis: int, before: int, after: int) -> Tensor:
        size = labels.shape[axis]
        target = [*labels.shape[:axis], size + before + after, *labels.shape[axis + 1 :]]
        if not varies(labels, axis):
            return labels.narrow(axis, 0, 1).expand(target)
        start, end = max(0, -before), size - max(0, -after)
        parts = [labels.narrow(axis, start, end - start)]
        for count, position in ((max(0, before), 0), (max(0, after), 1)):
            if count:
                shape = [1] * labels.dim()
                shape[axis] = count
                ids = self.table.fresh(count).view(shape)
                ids = ids.expand([*labels.shape[:axis], count, *labels.shape[axis + 1 :]])
                parts.insert(len(parts) if position else 0, ids)
        return torch.cat(parts, axis)

    # ------------------------------------------------------------------ pointwise

    def _op_copy(self, target: Tensor, source: Tensor, *_: Any, out: Any) -> None:
        self._pointwise((target, source), {}, out)

    def _pointwise(self, args: Any, kwargs: Any, out: Any) -> None:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        shape = results[0].shape
        known = [(x, self.label(x)) for x in tensors if x.dim()]
        labelled = [(x, ids.expand(shape)) for x, ids in known if ids is not None]
        if not labelled:
            return
        moving = [
            [varies(ids, axis) for axis in range(len(shape))] for _, ids in labelled
        ]  # which axes carry different channels, per operand
        kept: list[Tensor] = []
        for index, (tensor, ids) in enumerate(labelled):
            others = [flags for other, flags in enumerate(moving) if other != index]
            if self._is_broadcast_over(tensor, shape, others):
                self.table.freeze(ids, "it is broadcast over the channels of another tensor")
            else:
                kept.append(ids)
        for tensor, label in known:
            if label is None and self._meets_varying(tensor, shape, moving):
                for _, ids in labelled:
                    self.table.freeze(ids, "it is combined with a tensor of fixed width")
        for ids in kept[1:]:
            self.table.tie(kept[0], ids)
        for result in results:
            self.set_label(result, kept[0] if kept else labelled[0][1])

    @staticmethod
    def _is_broadcast_over(tensor: Tensor, shape: torch.Size, others: list[list[bool]]) -> bool:
        offset = len(shape) - tensor.dim()
        return any(
            (axis < offset or tensor.shape[axis - offset] == 1)
            and shape[axis] > 1
            and any(flags[axis] for flags in others)
            for axis in range(len(shape))
        )

    @staticmethod
    def _meets_varying(tensor: Tensor, shape: torch.Size, moving: list[list[bool]]) -> bool:
        offset = len(shape) - tensor.dim()
        return any(
            tensor.shape[axis - offset] > 1 and any(flags[axis] for flags in moving)
            for axis in range(offset, len(shape))
        )

    # ------------------------------------------------------------------ layers

    def _op_convolution(
        self, source: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
        dilation: Any, transposed: bool, output_padding: Any, groups: int, *, out: Tensor,
    ) -> None:  # fmt: skip
        pixels = (source if transposed else out)[0, 0].numel()
        self.calls.append(
            Call(
                weight if self._is_weight(weight) else None, self.modules[-1], tuple(weight.shape),
                tuple(weight.shape[2:]), tuple(stride), groups, pixels * source.shape[0],
                bias is not None, tuple(source.shape[2:]),
            )
        )  # fmt: skip
        if transposed or not self._is_weight(weight):
            reason = "it meets a " + ("transposed" if transposed else "computed") + " weight"
            if self._is_weight(weight):
                self._freeze_weight(weight, reason)
            self._freeze_all([x for x in (source, weight, bias) if x is not None], reason)
            return
        rows, columns = self._axes(weight)
        labels = self.label(source)
        inputs = None if labels is None else self.table.tie_axis(labels, 1)
        self._tie_convolution(weight, rows, columns, inputs, groups)
        self._tie_bias(bias, rows)
        self.set_label(out, rows.view(-1, *[1] * (out.dim() - 2)).expand(out.shape))

    def _tie_convolution(
        self, weight: Tensor, rows: Tensor, columns: Tensor, inputs: Tensor | None, groups: int
    ) -> None:
        depthwise = groups > 1 and weight.shape[1] == 1
        if depthwise:
            self.depthwise.add(id(weight))
        if inputs is None:
            reason = "it reads data of fixed width"
            self.table.freeze(rows if depthwise else columns, reason)
        elif depthwise:
            self.table.tie(rows, inputs.repeat_interleave(len(rows) // groups))
        else:
            self.table.tie(inputs.view(groups, -1), columns)
        if groups > 1 and not depthwise:
            # The same position in every group, so that all groups stay equally wide.
            by_group = rows.view(groups, -1)
            self.table.tie(by_group[:1], by_group)

    def _tie_bias(self, bias: Tensor | None, rows: Tensor) -> None:
        labels = None if bias is None else self.label(bias)
        if labels is not None:
            self.table.tie(labels, rows)
        elif bias is not None:
            self.table.freeze(rows, "its bias is computed")

    def _is_weight(self, tensor: Tensor) -> bool:
        return id(tensor) in self.parameters and isinstance(tensor, nn.Parameter)

    def _op_addmm(self, bias: Tensor, first: Tensor, second: Tensor, *, out: Tensor, **_: Any) -> None:
        self._op_mm(first, second, out=out, bias=bias)

    def _op_mm(self, first: Tensor, second: Tensor, *, out: Tensor, bias: Tensor | None = None) -> None:
        weight = self._transposed.get(id(second))
        if weight is None:
            self._product(first, second, out)
            if bias is not None:
                self._pointwise((bias, out), {}, out)
            return
        self.calls.append(
            Call(weight, self.modules[-1], tuple(weight.shape), positions=first.shape[0],
                 has_bias=bias is not None)
        )  # fmt: skip
        rows, columns = self._axes(weight)
        labels = self.label(first)
        if labels is None:
            self.table.freeze(columns, "it reads data of fixed width")
        else:
            self.table.tie(self.table.tie_axis(labels, 1), columns)
        self._tie_bias(bias, rows)
        self.set_label(out, rows.view(1, -1).expand(out.shape))

    def _op_bmm(self, first: Tensor, second: Tensor, *, out: Tensor) -> None:
        self._product(first, second, out)

    def _op_baddbmm(self, bias: Tensor, first: Tensor, second: Tensor, *, out: Tensor, **_: Any) -> None:
        self._product(first, second, out)
        self._pointwise((bias, out), {}, out)

    # ------------------------------------------------------------------ products of activations

    def _activation_label(self, tensor: Tensor) -> Tensor | None:
        """Labels of an activation; a raw parameter in a product is of fixed width."""
        if id(tensor) in self._transposed or id(tensor) in self.parameters:
            self._freeze_all([tensor], "its weight is used in a bare matrix product")
            return None
        return self.label(tensor)

    def _product(self, first: Tensor, second: Tensor, out: Tensor) -> None:
        a, b = self._activation_label(first), self._activation_label(second)
        if first.dim() == 2:
            a = None if a is None else a.unsqueeze(0)
            b = None if b is None else b.unsqueeze(0)
        rows, inner = first.shape[-2:]
        columns = second.shape[-1]
        batch = first.shape[0] if first.dim() == 3 else 1
        result = self._contract(a, b, (batch, rows, inner, columns))
        if result is not None:
            self.set_label(out, result.view(out.shape) if first.dim() == 2 else result)

    def _contract(
        self, a: Tensor | None, b: Tensor | None, shape: tuple[int, int, int, int]
    ) -> Tensor | None:
        """Labels of ``einsum('zik,zkj->zij', a, b)``; notes what the product costs."""
        batch, rows, _, columns = shape
        either = a if a is not None else b
        axes = (
            None if either is None else either[:, 0, 0],
            None if a is None else a[0, :, 0],
            None if a is None else a[0, 0, :],
            None if b is None else b[0, 0, :],
        )
        self.calls.append(Call(None, self.modules[-1], shape, factors=axes))
        if either is None:
            return None
        if a is None or b is None:
            inner_axis = 2 if b is None else 1
            if varies(either, inner_axis) or varies(either, 0):
                self.table.freeze(either, "it is multiplied with a matrix of fixed size")
            one = either.narrow(inner_axis, 0, 1)
            return one.expand(batch, rows, columns)
        left, right = a[:, :, :1], b[:, :1, :]
        self.table.tie(left, a)
        self.table.tie(right, b)
        self.table.tie(left, right)
        return left.expand(batch, rows, columns)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, out: Any) -> None:
        shape = query.shape[:-2]
        q, k, v = (
            None if labels is None else labels.reshape(-1, *labels.shape[-2:])
            for labels in map(self._activation_label, (query, key, value))
        )
        tokens, inner = query.shape[-2:]
        memory, width = value.shape[-2:]
        heads = shape.numel()
        transposed = None if k is None else k.transpose(1, 2)
        scores = self._contract(q, transposed, (heads, tokens, inner, memory))
        if scores is not None and varies(scores, 2):
            self.table.freeze(scores, "a softmax runs over it")
        result = self._contract(scores, v, (heads, tokens, memory, width))
        if result is not None:
            self.set_label(out[0], result.reshape(*shape, tokens, width))

    # ------------------------------------------------------------------ norms, pools, reductions

    def _batch_norm(self, args: Any, out: Any) -> None:
        labels = self.label(args[0])
        if labels is None:
            return
        channels = self.table.tie_axis(labels, 1)
        for vector in args[1:5]:
            known = self.label(vector) if isinstance(vector, Tensor) else None
            if known is not None:
                self.table.tie(known, channels)
            elif isinstance(vector, Tensor):
                self.table.freeze(channels, "its normalisation has computed parameters")
        self.set_label(tree_leaves(out)[0], labels)

    def _op_native_layer_norm(
        self, source: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float, *, out: Any
    ) -> None:
        labels = self.label(source)
        if labels is None:
            return
        if any(varies(labels, source.dim() - 1 - index) for index in range(len(shape))):
            self.table.freeze(labels, "a layer norm runs over it")
        for vector in (weight, bias):
            if isinstance(vector, Tensor):
                self.table.freeze(self.label(vector), "a layer norm runs over it")
        self.set_label(out[0], labels)

    def _op_native_group_norm(
        self, source: Tensor, weight: Any, bias: Any, batch: int, width: int, pixels: int,
        groups: int, eps: float, *, out: Any,
    ) -> None:  # fmt: skip
        labels = self.label(source)
        if labels is None:
            return
        channels = self.table.tie_axis(labels, 1)
        by_group = channels.view(groups, -1)
        self.table.tie(by_group[:, :1], by_group)
        for vector in (weight, bias):
            if isinstance(vector, Tensor):
                known = self.label(vector)
                if known is not None:
                    self.table.tie(known, channels)
        self.set_label(out[0], labels)

    def _reduction(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        source = args[0]
        labels = self.label(source)
        if labels is None:
            return
        position = 2 if name in ("linalg_vector_norm", "norm") else 1
        chosen = args[position] if len(args) > position else kwargs.get("dim")
        listed = [chosen] if isinstance(chosen, int) else list(chosen or range(source.dim()))
        axes = sorted({int(axis) % source.dim() for axis in listed})
        if any(varies(labels, axis) for axis in axes):
            self.table.freeze(labels, f"{name} runs over it")
        for axis in axes:
            labels = labels.narrow(axis, 0, 1)
        for result in tree_leaves(out):
            if isinstance(result, Tensor) and result.dim() and result.numel() == labels.numel():
                self.set_label(result, labels.reshape(result.shape))

    def _along(self, name: str, args: Any, out: Any) -> None:
        labels = self.label(args[0])
        if labels is None:
            return
        axis = next(x for x in (*args[1:], -1) if isinstance(x, int)) if name != "topk" else -1
        if varies(labels, axis % labels.dim()):
            self.table.freeze(labels, f"{name.strip('_')} runs over it")
        for result in tree_leaves(out):
            if isinstance(result, Tensor) and result.shape == labels.shape:
                self.set_label(result, labels)

    def _spatial(self, name: str, source: Tensor, out: Any) -> None:
        labels = self.label(source)
        if labels is None:
            return
        n_axes = next((int(name[i - 1]) for i in range(1, len(name)) if name[i] == "d"
                       and name[i - 1].isdigit()), source.dim() - 2)  # fmt: skip
        axes = range(source.dim() - n_axes, source.dim())
        if any(varies(labels, axis) for axis in axes):
            self.table.freeze(labels, f"{name} runs over it")
        for axis in axes:
            labels = labels.narrow(axis, 0, 1)
        result = tree_leaves(out)[0]
        self.set_label(result, labels.expand(result.shape))


__all__ = ["Call", "LabelMode", "STRUCTURAL", "compact"]

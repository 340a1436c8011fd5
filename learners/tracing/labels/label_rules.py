"""How each operation passes labels on: the rules behind tracing.

The rules listen to ATen, the small closed set of operations that everything a network does ends
in; so modules, functions, methods, operators, in-place variants and control flow need no cases of
their own. An operation without a rule freezes what enters it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc_compress.learners.tracing.labels.counting import operation_macs
from amc_compress.learners.tracing.labels.label_state import Call
from amc_compress.learners.tracing.labels.labels import compact, varies
from amc_compress.learners.tracing.labels.layer_rules import LayerRules
from amc_compress.learners.tracing.labels.movement_rules import (
    IDENTITIES,
    MOVEMENTS,
    RESHAPES,
    STRUCTURAL,
)
from amc_compress.learners.tracing.labels.norm_rules import BATCH_NORMS, REDUCTIONS

_POINTWISE = frozenset(
    ["hardswish", "_prelu_kernel", "rrelu", "rrelu_with_noise", "native_dropout"]
)
_ALONG = frozenset(
    ["_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "topk"]
)
_SPATIAL = ("max_pool", "avg_pool", "adaptive_", "_adaptive_", "upsample_", "_upsample_",
            "reflection_pad", "replication_pad", "grid_sampler", "mkldnn_max_pool")  # fmt: skip
# What is drawn at random is as wide as the tensor that it fills, or whose shape it has.
_DRAWS = frozenset(["bernoulli", "uniform", "normal", "exponential", "cauchy", "log_normal",
                    "geometric", "random", "poisson"])  # fmt: skip
_LIKE = frozenset(["zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
                   "randn_like", "randint_like"])  # fmt: skip
_NEW = frozenset(["new_empty", "new_full", "new_ones", "new_zeros"])
_SILENT = frozenset(("zero_", "fill_", "_assert_async", "resize_", "set_", "is_same_size"))


class LabelMode(LayerRules):  # type: ignore[no-untyped-call]
    """The mode under which a network runs while labels follow its data.

    Args:
        table: Where ids are made and tied.
        parameters: ``id(tensor) -> name`` of every parameter and buffer.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Executes one ATen operation and passes the labels on."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self._alive.append((tensors, out))
        self.touched.update(id(x) for x in tensors if id(x) in self.parameters)
        if not tensors or name in _SILENT:
            return out
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        pointwise = torch.Tag.pointwise in func.tags or plain in _POINTWISE
        kind = "movement" if plain in STRUCTURAL else "other"
        for seen in self.observed:
            seen.add(kind)
        known = len(self.calls)
        self._note_origin(plain, pointwise, tensors, out)
        try:
            if self._is_inside_weight(plain, tensors):
                self._apply_inside(plain, pointwise, args, kwargs, out)
            else:
                self._apply(plain, pointwise, args, kwargs, out)
        except Exception as error:  # a rule that fails must never lose the network
            self._freeze_all(tensors, f"{name} could not be followed ({error})")
        self._pass_statistics(plain, pointwise, tensors, out)
        missing = operation_macs(func, args, kwargs, out)
        missing -= sum(call.macs for call in self.calls[known:])
        if missing > 0:
            # Whole channels keep what is missing the same in every cut network.
            self._freeze_all(tensors, f"it enters the operation {name}, whose cost is fixed")
            self.calls.append(Call(None, self.modules[-1], (missing,), operation=plain))
        if self.blind:
            results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            self.freeze_if_blind([*tensors, *results], self.modules[-1])
        return out

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
        if name in BATCH_NORMS:
            self._batch_norm(args, out)
        elif name in REDUCTIONS:
            self._reduction(name, args, kwargs, out)
        elif name in _ALONG:
            self._along(name, args, out)
        elif name.startswith(_SPATIAL):
            self._spatial(name, args[0], out)
        elif name.startswith("_scaled_dot_product_"):
            query, key, value, *rest = args
            self._attention(query, key, value, (*rest, *kwargs.values()), out)
        elif name in _LIKE | _NEW:
            self._filled(args[0], out)
        elif name in _DRAWS and isinstance(out, Tensor) and out.shape == args[0].shape:
            self._same(args[0], out)
        else:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self._freeze_all(tensors, f"it enters the operation {name}, which is not understood")

    def _filled(self, source: Tensor, out: Tensor) -> None:
        """A new tensor with axes of a labelled one has ids of its own where that one has."""
        known = self.label(source)
        if known is None or source.dim() != out.dim():
            return
        for axis, size in enumerate(out.shape):
            if size != source.shape[axis]:  # dropout of whole channels draws a number for each
                if size != 1 or varies(known, axis):
                    return
                known = known.narrow(axis, 0, 1)
        shape = compact(known).shape
        self.set_label(out, self.table.fresh(shape.numel()).view(shape).expand(out.shape))

    # ------------------------------------------------------------------ pools, orders

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
        for axis in axes:  # positions are read together, as in position embeddings that are resized
            first = labels.narrow(axis, 0, 1)
            self.table.tie(first, labels)
            labels = first
        result = tree_leaves(out)[0]
        self.set_label(result, labels.expand(result.shape))

    # ------------------------------------------------------------------ packed sequences

    def _op_pack_padded_sequence(
        self, source: Tensor, lengths: Tensor, batch_first: bool, *, out: Any
    ) -> None:
        labels = self.label(source)
        if labels is None:
            return
        for axis in (0, 1):  # steps and samples are read by one layer
            first = labels.narrow(axis, 0, 1)
            self.table.tie(first, labels)
            labels = first
        self.set_label(out[0], labels[0].expand(out[0].shape))

    def _op_pad_packed_sequence(self, data: Tensor, *_: Any, out: Any) -> None:
        labels = self.label(data)
        if labels is None:
            return
        first = labels[:1]
        self.table.tie(first, labels)
        self.set_label(out[0], first[None].expand(out[0].shape))

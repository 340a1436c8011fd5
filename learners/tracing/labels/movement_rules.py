"""How labels pass through data movement and pointwise arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from amc_compress.learners.tracing.labels.label_state import LabelState
from amc_compress.learners.tracing.labels.labels import varies

MOVEMENTS = frozenset(
    [
        "permute",
        "transpose",
        "t",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unsafe_split",
        "unsafe_chunk",
        "unbind",
        "cat",
        "stack",
        "unsqueeze",
        "squeeze",
        "repeat",
        "roll",
        "flip",
        "index_select",
        "index",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "narrow",
        "movedim",
        "diagonal",
        "unfold",
    ]
)
RESHAPES = frozenset(("view", "_unsafe_view", "reshape", "_reshape_copy"))
IDENTITIES = frozenset(
    ["clone", "detach", "alias", "contiguous", "lift_fresh", "_to_copy", "view_as"]
)
STRUCTURAL = MOVEMENTS | RESHAPES | IDENTITIES | {"constant_pad_nd"}


class MovementRules(LabelState):  # type: ignore[no-untyped-call]
    """Rules that execute a movement on the ids, or tie what meets in a pointwise operation."""

    def _same(self, source: Tensor, out: Any) -> None:
        if id(source) in self._transposed:
            self._transposed[id(out)] = self._transposed[id(source)]
            return
        self.set_label(out, self.label(source))

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
        # Ids live on the processor, wherever the network runs.
        rest = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, args[1:])
        moved: Any
        if name in RESHAPES:
            moved = ids[0].reshape(args[1])
        elif isinstance(first, (list, tuple)):
            moved = getattr(torch.ops.aten, name)(ids, *rest, **kwargs)
        else:
            moved = getattr(torch.ops.aten, name)(ids[0], *rest, **kwargs)
        if isinstance(out, Tensor):
            self.set_label(out, moved)
        else:
            for result, label in zip(out, moved, strict=True):
                self.set_label(result, label)

    def _note_transposed(self, name: str, args: Any, first: Tensor, out: Any) -> bool:
        """Remembers ``t(weight)``: a linear layer is a product with it."""
        if not self.is_parameter(first) or first.dim() != 2:
            return False
        axes = tuple(axis % 2 for axis in tree_leaves(args[1:]) if isinstance(axis, int))
        if name == "t" or (name == "transpose" and axes in ((0, 1), (1, 0))) or (
            name == "permute" and axes == (1, 0)
        ):  # fmt: skip
            self._transposed[id(out)] = first
            return True
        return False

    def _op_constant_pad_nd(
        self, source: Tensor, pads: Sequence[int], *_: Any, out: Tensor
    ) -> None:
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

    def _op_as_strided(
        self, source: Tensor, size: Sequence[int], stride: Sequence[int], *_: Any, out: Tensor
    ) -> None:
        """Follows a new layout in memory, which pools write down for images of one pixel."""
        places = [(a, b) for a, b, n in zip(stride, source.stride(), size, strict=False) if n > 1]
        if tuple(size) == tuple(source.shape) and all(a == b for a, b in places):
            self._same(source, out)
        else:
            self._freeze_all(
                [source], "it enters the operation as_strided, which is not understood"
            )

    def _op_gather(self, source: Tensor, axis: int, index: Tensor, *_: Any, out: Tensor) -> None:
        """Follows a choice along one axis, the same kind of numbers in each of its places."""
        labels = self.label(source)
        if labels is None:
            return
        axis %= source.dim()
        if varies(self._settled(labels), axis):
            self.table.freeze(labels, "it is chosen from by numbers of fixed width")
        for other, size in enumerate(index.shape):
            labels = labels.narrow(other, 0, 1 if other == axis else size)
        self.set_label(out, labels.expand(out.shape))

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
        # Which axes carry different channels, per operand.
        settled = [self._settled(ids) for _, ids in labelled]
        moving = [[varies(ids, axis) for axis in range(len(shape))] for ids in settled]
        kept: list[Tensor] = []
        for index, (tensor, ids) in enumerate(labelled):
            others = [flags for other, flags in enumerate(moving) if other != index]
            if self._is_broadcast_over(tensor, shape, others):
                self.table.freeze(ids, "it is broadcast over the channels of another tensor")
            else:
                kept.append(ids)
        for tensor, label in known:
            if label is None and self._meets_varying(tensor, shape, moving):
                made = self._made_alike(tensor, shape, moving)
                if made is not None and kept:
                    kept.append(made)
                    continue
                for _, ids in labelled:
                    self.table.freeze(ids, "it is combined with a tensor of fixed width")
        for ids in kept[1:]:
            self.table.tie(kept[0], ids)
        for result in results:
            self.set_label(result, kept[0] if kept else labelled[0][1])

    def _made_alike(
        self, tensor: Tensor, shape: torch.Size, moving: list[list[bool]]
    ) -> Tensor | None:
        """Returns new ids of a tensor that holds the same for all channels, None for any other.

        Zeros made for a number of heads are such a tensor: made for another, they are right. That
        the code makes them so is what the proof finds out.
        """
        axes = [axis for axis in range(len(shape)) if any(flags[axis] for flags in moving)]
        is_along = tensor.dim() == len(shape) and all(tensor.shape[x] == shape[x] for x in axes)
        if not is_along or not tensor.is_floating_point():
            return None
        one = tensor
        for axis in axes:
            one = one.narrow(axis, 0, 1)
        if not torch.equal(tensor, one.expand(tensor.shape)):
            return None
        sizes = torch.Size(shape[x] if x in axes else 1 for x in range(len(shape)))
        ids = self.table.fresh(sizes.numel()).view(sizes)
        self.set_label(tensor, ids.expand(tensor.shape))
        return ids.expand(shape)

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

"""How labels pass through weights that are computed from a parameter before a layer uses them.

Weight standardisation normalises every row of a kernel over its inputs, other networks scale
rows, columns or all of it. A number of such a weight has two ids, that of its row and that of its
column: the operations between the parameter and the layer are followed once for each. A parameter
is known to be of this kind once a first run has seen a layer use what was computed from it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc_compress.learners.tracing.labels.labels import compact, varies
from amc_compress.learners.tracing.labels.movement_rules import STRUCTURAL
from amc_compress.learners.tracing.labels.norm_rules import BATCH_NORMS, REDUCTIONS, NormRules

_TRANSPOSITIONS = frozenset(("t", "transpose", "permute"))
_LAYERS = frozenset(("convolution", "mm", "addmm"))


class ComputedWeights(NormRules):  # type: ignore[no-untyped-call]
    """Follows what is computed from single weights."""

    @abstractmethod
    def _apply(self, name: str, pointwise: bool, args: Any, kwargs: Any, out: Any) -> None:
        """Passes the labels on through an operation."""

    # ------------------------------------------------------------------ where weights come from

    def _note_origin(self, name: str, pointwise: bool, tensors: Sequence[Tensor], out: Any) -> None:
        """Remembers what is computed from parameters alone, and from which weight if it is one."""
        if not (pointwise or name in STRUCTURAL or name in BATCH_NORMS | REDUCTIONS):
            return
        origin: Tensor | None = None
        for tensor in tensors:
            known = tensor if self._is_weight(tensor) else self._origins.get(id(tensor))
            if known is None:
                is_data = id(tensor) not in self.parameters and id(tensor) not in self._origins
                if is_data and self.label(tensor) is not None:
                    return
            elif origin is None:
                origin = known
            elif origin is not known:
                return
        for result in tree_leaves(out):
            if isinstance(result, Tensor):
                self._origins[id(result)] = origin

    def _is_weight(self, tensor: Tensor) -> bool:
        return self.is_parameter(tensor) and sum(size > 1 for size in tensor.shape) > 1

    def _note_computed(self, weight: Tensor) -> None:
        """Notes that a layer uses a weight that is computed from a parameter, if it is."""
        origin = self._origins.get(id(weight))
        if origin is not None:
            self.computed_found.add(self.parameters[id(origin)])

    # ------------------------------------------------------------------ both sides

    def _has_sides(self, tensor: Tensor) -> bool:
        if id(tensor) in self._sides[0]:
            return True
        if not self.is_parameter(tensor) or self.parameters[id(tensor)] not in self.computed:
            return False
        for side, ids in enumerate(self._axes(tensor)):
            shape = [len(ids) if axis == side else 1 for axis in range(tensor.dim())]
            self._sides[side][id(tensor)] = ids.view(shape).expand(tensor.shape)
        return True

    def _is_inside_weight(self, name: str, tensors: Sequence[Tensor]) -> bool:
        """Whether an operation is one between a parameter and the layer that uses it."""
        if not self.computed or name in _LAYERS:
            return False
        if name in _TRANSPOSITIONS and self.is_parameter(tensors[0]) and tensors[0].dim() == 2:
            return False  # a linear layer's plain weight
        return any(self._has_sides(tensor) for tensor in tensors)

    def _apply_inside(self, name: str, pointwise: bool, args: Any, kwargs: Any, out: Any) -> None:
        """Passes the ids of rows and columns on, one after the other."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = pointwise or name in STRUCTURAL or name in BATCH_NORMS | REDUCTIONS
        if not known and name != "native_layer_norm":
            self._freeze_sides(tensors, f"its weight enters {name}, which is not understood")
            return
        hidden = [self._unrelated(name, tensors, side) for side in (0, 1)]
        for side in (0, 1):
            with self._seen_from(side, hidden[side]):
                self._apply(name, pointwise, args, kwargs, out)
            for result in tree_leaves(out):
                if isinstance(result, Tensor):  # a mean over columns has none
                    self._sides[side].setdefault(id(result), None)

    def _unrelated(self, name: str, tensors: Sequence[Tensor], side: int) -> frozenset[int]:
        """Returns the other tensors that do not vary along an axis that a side varies along."""
        moving: set[int] = set()
        for tensor in tensors:
            if self._has_sides(tensor):
                moving |= _varying(self._sides[side][id(tensor)])
        hidden = set()
        for tensor in tensors:
            if self._has_sides(tensor) or not tensor.dim():
                continue
            axes = _varying(self.label(tensor))
            if name in BATCH_NORMS:  # vectors, of which each has a number per channel
                axes = {1 - tensors[0].dim()} if axes else axes
            if not axes & moving:
                hidden.add(id(tensor))
        return frozenset(hidden)

    @contextmanager
    def _seen_from(self, side: int, hidden: frozenset[int]) -> Iterator[None]:
        self._side, self._hidden = side, hidden
        try:
            yield
        finally:
            self._side, self._hidden = None, frozenset()

    def _freeze_sides(self, tensors: Sequence[Tensor], reason: str) -> None:
        for tensor in tensors:
            if not self._has_sides(tensor):
                self.table.freeze(self.label(tensor), reason)
                continue
            for side in (0, 1):
                self.table.freeze(self._sides[side][id(tensor)], reason)

    # ------------------------------------------------------------------ what a layer gets

    def _computed_axes(
        self, weight: Tensor, axes: tuple[int, int] = (0, 1)
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Returns the parameter behind a computed weight, and the ids of its rows and columns.

        Args:
            weight: What a layer uses; of a linear layer also some of the parameter's rows.
            axes: Those of its rows and of its columns.

        Returns:
            None if that is not one parameter, or rows and columns are no longer apart.
        """
        origin = self._origins.get(id(weight))
        if origin is None or id(weight) not in self._sides[0]:
            return None
        height, width = (weight.shape[axis] for axis in axes)
        is_part = weight.dim() == 2 and height < len(origin)
        if width != origin.shape[1] or (height != len(origin) and not is_part):
            return None
        found = []
        for side, axis in enumerate(axes):
            ids = self._sides[side][id(weight)]
            if ids is None or _varying(ids) - {axis - weight.dim()}:
                return None
            found.append(ids.movedim(axis, 0).flatten(1)[:, 0])
        rows, columns = found
        # Zeros in the parameter do not take a column out of the weight that is computed from it.
        self.averaged.append(columns)
        self.computed_layers.setdefault(self.parameters[id(origin)])
        return origin, rows, columns


def _varying(labels: Tensor | None) -> set[int]:
    """Returns the axes along which labels differ, counted from the last one, which is -1."""
    if labels is None:
        return set()
    ids = compact(labels)
    return {axis - ids.dim() for axis in range(ids.dim()) if varies(ids, axis)}

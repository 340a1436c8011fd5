"""Labels: which coordinates of a network's tensors can only be cut together.

Every coordinate of every activation and parameter carries an integer id. An operation that moves
data is executed on the ids themselves; one that mixes coordinates *ties* their ids in a
union-find. What is tied in the end is cut together; what is frozen is never cut.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FIXED = 0  # the id of coordinates that cannot be cut


def compact(labels: Tensor) -> Tensor:
    """Returns the labels with every axis along which they are constant narrowed to length 1."""
    for axis, size in enumerate(labels.shape):
        if size > 1 and (labels.stride(axis) == 0 or not varies(labels, axis)):
            labels = labels.narrow(axis, 0, 1)
    return labels


def varies(labels: Tensor, axis: int) -> bool:
    """Whether the labels differ along an axis."""
    if labels.shape[axis] <= 1 or labels.stride(axis) == 0 or labels.numel() == 0:
        return False
    return not bool((labels == labels.narrow(axis, 0, 1)).all())


class LabelTable:
    """A union-find over ids, with the reason for every frozen id.

    Example:
        >>> table = LabelTable()
        >>> a, b = table.fresh(4), table.fresh(4)
        >>> table.tie(a, b)
        >>> table.freeze(b[:1], "an example")
        >>> table.frozen_reason(int(a[0]))
        'an example'
    """

    def __init__(self) -> None:
        self._parent: list[int] = [FIXED]
        self._reasons: dict[int, str] = {FIXED: "it meets data of fixed width"}

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Tensor:
        """Returns ``count`` new ids, each in a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        """Returns the representative of an id's class."""
        parent = self._parent
        root = label
        while parent[root] != root:
            root = parent[root]
        while parent[label] != root:
            parent[label], label = root, parent[label]
        return root

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Ties two tensors of ids coordinate by coordinate (they must broadcast)."""
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
        first, second = first.expand(shape), second.expand(shape)
        first, second = self._narrowed(first, second)
        if torch.equal(first, second):
            return
        pairs = torch.stack((first.reshape(-1), second.reshape(-1)))
        base = len(self._parent)
        for code in torch.unique(pairs[0] * base + pairs[1]).tolist():
            self._union(code // base, code % base)

    @staticmethod
    def _narrowed(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        for axis, size in enumerate(first.shape):
            if size > 1 and first.stride(axis) == 0 and second.stride(axis) == 0:
                first, second = first.narrow(axis, 0, 1), second.narrow(axis, 0, 1)
        return first, second

    def _union(self, first: int, second: int) -> None:
        first, second = self.find(first), self.find(second)
        if first == second:
            return
        low, high = min(first, second), max(first, second)
        self._parent[high] = low
        # The reason that came first is the one a reader looks for.
        if high in self._reasons:
            reason = self._reasons.pop(high)
            self._reasons.setdefault(low, reason)

    def tie_axis(self, labels: Tensor, axis: int) -> Tensor:
        """Ties everything that shares a coordinate of ``axis``; returns one id per coordinate."""
        size = labels.shape[axis]
        narrow = compact(labels).movedim(axis, 0)
        rows = narrow.reshape(narrow.shape[0], -1).expand(size, -1)
        if rows.shape[1] > 1:
            self.tie(rows[:, :1], rows)
        return rows[:, 0]

    def freeze(self, labels: Tensor | None, reason: str, *, is_better: bool = False) -> None:
        """Freezes all ids of a tensor.

        Args:
            labels: The ids, None for those of fixed width.
            reason: Why.
            is_better: Whether it takes the place of a reason that was found before.
        """
        if labels is None:
            return
        for label in torch.unique(compact(labels)).tolist():
            if is_better and self.find(label) != FIXED:
                self._reasons.pop(self.find(label), None)
            self.freeze_id(label, reason)

    def freeze_id(self, label: int, reason: str) -> None:
        """Freezes one id."""
        self._reasons.setdefault(self.find(label), reason)

    def frozen_reason(self, label: int) -> str | None:
        """Returns why an id is frozen, None if it is free."""
        return self._reasons.get(self.find(label))

    def classes(self) -> Tensor:
        """Returns the representative of every id, shape ``(len(self),)``."""
        parent = torch.tensor(self._parent)
        while True:
            above = parent[parent]
            if torch.equal(above, parent):
                return parent
            parent = above

    def roots(self) -> Tensor:
        """Returns the representative of every id, FIXED for frozen ones; shape ``(len(self),)``."""
        parent = self.classes()
        frozen = torch.zeros(len(self._parent), dtype=torch.bool)
        frozen[[self.find(label) for label in self._reasons]] = True
        return torch.where(frozen[parent], FIXED, parent)

    def first_reason(self, labels: Iterable[int]) -> str | None:
        """Returns the reason of the first frozen id among ``labels``."""
        for label in labels:
            reason = self.frozen_reason(label)
            if reason is not None:
                return reason
        return None

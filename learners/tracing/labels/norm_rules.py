"""How labels pass through norms and reductions, and which of these a cut redefines.

A mean, a variance, or a norm made of them is symmetric in the channels that it runs over, and its
value does not grow with their number. Over fewer channels it is the same statistic, of those that
stay: that is how a cut network computes it. A sum, a maximum, a Euclidean norm or an order over
channels is not of that kind: what comes after it was made for a number of channels, often as a
constant in the code, so that their channels stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc_compress.learners.tracing.labels.labels import compact, varies
from amc_compress.learners.tracing.labels.movement_rules import STRUCTURAL, MovementRules

BATCH_NORMS = frozenset(
    [
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "_batch_norm_no_update",
    ]
)
AVERAGES = frozenset(["mean", "var", "std", "var_mean", "std_mean"])
REDUCTIONS = AVERAGES | {
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "linalg_vector_norm",
    "norm",
    "prod",
    "logsumexp",
    "argmax",
    "argmin",
    "any",
    "all",
}


class NormRules(MovementRules):  # type: ignore[no-untyped-call]
    """Rules for batch, layer and group norms, and for reductions."""

    # ------------------------------------------------------------------ what a reduction meets

    def _runs_over(self, labels: Tensor, axes: Iterable[int]) -> bool:
        """Whether different channels lie along some of the axes."""
        ids = self._settled(labels)
        return any(varies(ids, axis) for axis in axes)

    def _averages(self, labels: Tensor, axes: Sequence[int], what: str, least: int = 1) -> bool:
        """Notes a statistic over channels, to be taken over those that stay.

        Args:
            labels: Of its source.
            axes: That it runs over.
            what: What it is.
            least: How many numbers it needs.

        Returns:
            Whether it is one. Where different channels lie along other axes, too, nothing says
            which of them belong to which value of the statistic: all of them are frozen then.
        """
        if not self._runs_over(labels, axes):
            return False
        others = [axis for axis in range(labels.dim()) if axis not in axes]
        if self._runs_over(labels, others):
            if len(self.classes):
                self.table.freeze(labels, f"{what} runs over it")
            return False
        for axis in others:
            labels = labels.narrow(axis, 0, 1)
        if self._side is None and not any(axis > min(axes) for axis in others):
            self.norm_shapes[self.modules[-1]] = labels[(0,) * min(axes)]
        ids = compact(labels).reshape(-1)
        self.averaged.append(ids)
        if least > 1 and labels.numel() == len(torch.unique(ids)):  # one number of every channel
            self.many.append(ids)
        return True

    def _pass_statistics(
        self, name: str, pointwise: bool, tensors: Sequence[Tensor], out: Any
    ) -> None:
        """Remembers what is made of statistics over channels alone: as an output it is of all."""
        if not self.statistics or not (pointwise or name in STRUCTURAL or name in REDUCTIONS):
            return
        found = [ids for x in tensors for ids in self.statistics.get(id(x), ())]
        for result in tree_leaves(out) if found else ():
            if isinstance(result, Tensor) and self.label(result) is None:
                self.statistics[id(result)] = found

    # ------------------------------------------------------------------ norms

    def _batch_norm(self, args: Any, out: Any) -> None:
        labels = self.label(args[0])
        if labels is None:
            return
        others = [axis for axis in range(labels.dim()) if axis != 1]
        if self._side is not None and not varies(labels, 1):  # the columns of a weight's rows
            self._averages(labels, others, "a batch norm", 2)
            self.set_label(tree_leaves(out)[0], labels)
            return
        channels = self.table.tie_axis(labels, 1)
        self.norm_channels[self.modules[-1]] = channels
        self._tie_vectors(args[1:5], channels)
        self.set_label(tree_leaves(out)[0], labels)

    def _tie_vectors(self, vectors: Sequence[Any], channels: Tensor) -> None:
        for vector in vectors:
            known = self.label(vector) if isinstance(vector, Tensor) else None
            if known is not None:
                self.table.tie(known, channels)
            elif isinstance(vector, Tensor):
                self.table.freeze(channels, "its normalisation has computed parameters")

    def _op_native_layer_norm(
        self, source: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float, *, out: Any
    ) -> None:
        labels = self.label(source)
        if labels is None:
            return
        first = source.dim() - len(shape)
        if self._averages(labels, range(first, source.dim()), "a layer norm"):
            channels = labels[(0,) * first]
            self.table.tie(compact(labels), channels)
            self._tie_vectors((weight, bias), channels)
        else:
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
        self.norm_channels[self.modules[-1]] = channels
        if groups > 1 or not self._averages(labels, range(1, source.dim()), "a group norm"):
            # Whole groups leave: the others are normalised as before.
            by_group = channels.view(groups, -1)
            self.table.tie(by_group[:, :1], by_group)
        for vector in (weight, bias):
            if isinstance(vector, Tensor):
                known = self.label(vector)
                if known is not None:
                    self.table.tie(known, channels)
        self.set_label(out[0], labels)

    # ------------------------------------------------------------------ reductions

    def _reduction(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        source = args[0]
        labels = self.label(source)
        if labels is None:
            return
        position = 2 if name in ("linalg_vector_norm", "norm") else 1
        chosen = args[position] if len(args) > position else kwargs.get("dim")
        listed = [chosen] if isinstance(chosen, int) else list(chosen or range(source.dim()))
        axes = sorted({int(axis) % source.dim() for axis in listed})
        if self._runs_over(labels, axes):
            least = 1 if name == "mean" or kwargs.get("correction") == 0 else 2
            if name not in AVERAGES:
                self.table.freeze(labels, f"{name} runs over it")
            elif self._averages(labels, axes, name, least):
                for result in tree_leaves(out):
                    self.statistics[id(result)] = [labels]
            return  # what is made of several channels belongs to none
        for axis in axes:
            labels = labels.narrow(axis, 0, 1)
        for result in tree_leaves(out):
            if isinstance(result, Tensor) and result.dim() and result.numel() == labels.numel():
                self.set_label(result, labels.reshape(result.shape))

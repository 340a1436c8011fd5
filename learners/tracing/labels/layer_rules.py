"""How labels pass through layers with weights and through products of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amc_compress.learners.tracing.labels.computed_weights import ComputedWeights
from amc_compress.learners.tracing.labels.label_state import Call
from amc_compress.learners.tracing.labels.labels import varies

SHARED = "its only head of keys and values serves the queries of all heads"


class LayerRules(ComputedWeights):  # type: ignore[no-untyped-call]
    """Rules for convolutions, linear layers, matrix products and attention."""

    def _op_convolution(
        self, source: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
        dilation: Any, transposed: bool, output_padding: Any, groups: int, *, out: Tensor,
    ) -> None:  # fmt: skip
        pixels = (source if transposed else out)[0, 0].numel()
        used = self._used_weight(weight, (0, 1))
        # The weight of a transposed convolution stands upside down, but not that of a depthwise
        # one: its outputs are its inputs.
        depthwise = groups > 1 and groups == (
            len(weight) if transposed else groups * weight.shape[1]
        )
        upside_down = transposed and not depthwise
        self.calls.append(
            Call(
                None if used is None else used[0], self.modules[-1], tuple(weight.shape),
                tuple(weight.shape[2:]), tuple(stride), groups, pixels * source.shape[0],
                bias if self.is_parameter(bias) else None,
                tuple(source.shape[2:]), is_transposed=upside_down,
            )
        )  # fmt: skip
        if used is None:
            tensors = [x for x in (source, weight, bias) if x is not None]
            self._freeze_all(tensors, "it meets a computed weight")
            return
        owner, *axes = used
        self._orient(owner, upside_down)
        labels = self.label(source)
        inputs = None if labels is None else self.table.tie_axis(labels, 1)
        if upside_down:
            outputs = self._tie_transposed(axes, inputs, groups)
        else:
            outputs = self._tie_convolution(axes, inputs, groups, depthwise)
            # Of a depthwise one that is transposed, every row makes several outputs.
            outputs = outputs.repeat_interleave(out.shape[1] // len(outputs))
        self._tie_bias(bias, outputs)
        self.set_label(out, outputs.view(-1, *[1] * (out.dim() - 2)).expand(out.shape))

    def _orient(self, weight: Tensor, upside_down: bool) -> None:
        """Notes which axis of a weight holds its outputs."""
        ours, others = self.transposed, self.upright
        if not upside_down:
            ours, others = others, ours
        if id(weight) in others:
            self._freeze_weight(weight, "its weight is used both ways round")
        else:
            ours.add(id(weight))

    def _tie_transposed(self, axes: Sequence[Tensor], inputs: Tensor | None, groups: int) -> Tensor:
        """Ties the inputs to axis 0; returns the labels of the outputs, which are on axis 1."""
        rows, columns = axes
        if inputs is None:
            self.table.freeze(rows, "it reads data of fixed width")
        else:
            self.table.tie(inputs, rows)
        # The same position in every group, so that all groups stay equally wide.
        by_group = rows.view(groups, -1)
        self.table.tie(by_group[:1], by_group)
        return columns.repeat(groups)

    def _used_weight(
        self, weight: Tensor, axes: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Returns the parameter that a layer uses, itself or computed on, with its two axes."""
        if self.is_parameter(weight):
            return weight, *self._axes(weight)
        self._note_computed(weight)
        return self._computed_axes(weight, axes)

    def _tie_convolution(
        self, axes: Sequence[Tensor], inputs: Tensor | None, groups: int, depthwise: bool
    ) -> Tensor:
        """Ties the inputs to axis 1; returns the labels of the outputs, which are on axis 0."""
        rows, columns = axes
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
        return rows

    def _tie_bias(self, bias: Tensor | None, rows: Tensor) -> None:
        labels = None if bias is None else self.label(bias)
        if labels is not None:
            self.table.tie(labels, rows)
        elif bias is not None:
            self.table.freeze(rows, "its bias is computed")

    def _op_addmm(
        self, bias: Tensor, first: Tensor, second: Tensor, *, out: Tensor, **_: Any
    ) -> None:
        self._op_mm(first, second, out=out, bias=bias)

    def _op_mm(
        self, first: Tensor, second: Tensor, *, out: Tensor, bias: Tensor | None = None
    ) -> None:
        plain = self._transposed.get(id(second), second)
        # As the ``Conv1D`` of GPT-2 holds it.
        upside_down = plain is second and self.is_parameter(second)
        used = self._used_weight(plain, (1, 0))
        if used is None:
            self._product(first, second, out)
            if bias is not None:
                self._pointwise((bias, out), {}, out)
            return
        weight, rows, columns = used
        is_part = len(rows) < len(weight) and not upside_down
        self.calls.append(
            Call(weight, self.modules[-1], tuple(weight.shape),
                 positions=0 if is_part else first.shape[0],
                 bias=bias if self.is_parameter(bias) else None, is_transposed=upside_down)
        )  # fmt: skip
        if is_part:  # attention to another sequence: the rows of queries run at other positions
            shape = (1, *first.shape, len(rows))
            factors = (None, None, columns, rows)
            self.calls.append(Call(None, self.modules[-1], shape, factors=factors))
        self._orient(weight, upside_down)
        if upside_down:
            rows, columns = columns, rows
        labels = self.label(first)
        if labels is None:
            self.table.freeze(columns, "it reads data of fixed width")
        else:
            self.table.tie(self.table.tie_axis(labels, 1), columns)
        self._tie_bias(bias, rows)
        self.set_label(out, rows.view(1, -1).expand(out.shape))

    def _op_bmm(self, first: Tensor, second: Tensor, *, out: Tensor) -> None:
        self._product(first, second, out)

    def _op_baddbmm(
        self, bias: Tensor, first: Tensor, second: Tensor, *, out: Tensor, **_: Any
    ) -> None:
        self._product(first, second, out)
        self._pointwise((bias, out), {}, out)

    def _op_embedding(self, weight: Tensor, indices: Tensor, *_: Any, out: Tensor) -> None:
        """Rows of a table are looked up; its columns are the channels."""
        if not self.is_parameter(weight):
            self._freeze_all([weight], "it is looked up in")
            return
        self.tables.setdefault(id(weight), len(self.calls))
        columns = self._axes(weight)[1]
        self.set_label(out, columns.expand(out.shape))

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
        for own, common, axis in ((a, b, 1), (b, a, 2)):
            if self._is_shared(own, common, axis):
                self.table.tie(common[:1, :1, :1], common)
                self.table.freeze(common, SHARED, is_better=True)
                one = own[:, :1, :1]
                self.table.tie(one, own)
                return one.expand(batch, rows, columns)
        left, right = a[:, :, :1], b[:, :1, :]
        self.table.tie(left, a)
        self.table.tie(right, b)
        self.table.tie(left, right)
        return left.expand(batch, rows, columns)

    def _is_shared(self, own: Tensor, common: Tensor, axis: int) -> bool:
        """Whether one matrix stands in all products of a batch, as the keys of all queries do.

        What leaves the batch leaves that matrix as it is.

        Args:
            own: Labels of what is another matrix in each of them.
            common: Labels of the other factor.
            axis: The one of ``own`` that the product keeps.
        """
        is_shared = varies(own, 0) and not varies(common, 0)
        return is_shared and not varies(self._settled(own), axis)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, rest: Sequence[Any], out: Any
    ) -> None:
        shape = query.shape[:-2]
        q, k, v = (
            None if labels is None else labels.reshape(-1, *labels.shape[-2:])
            for labels in (
                self._activation_label(query),
                self._shared_heads(key, shape),
                self._shared_heads(value, shape),
            )
        )
        tokens, inner = query.shape[-2:]
        memory, width = value.shape[-2:]
        heads = shape.numel()
        transposed = None if k is None else k.transpose(1, 2)
        scores = self._contract(q, transposed, (heads, tokens, inner, memory))
        for added in rest:
            if scores is not None and isinstance(added, Tensor):
                scores = self._added(scores, added, torch.Size((*shape, tokens, memory)))
        if scores is not None and varies(scores, 2):
            self.table.freeze(scores, "a softmax runs over it")
        result = self._contract(scores, v, (heads, tokens, memory, width))
        if result is not None:
            self.set_label(out[0], result.reshape(*shape, tokens, width))

    def _added(self, scores: Tensor, added: Tensor, shape: torch.Size) -> Tensor:
        """Ties what is added to scores to them: a bias of positions has a number for each head."""
        if self.label(added) is None:  # a mask: whether it fits what stays is left to the proof
            return scores
        before, after = (torch.empty(()).expand(shape) for _ in range(2))
        self.set_label(before, scores.reshape(shape))
        self._pointwise((before, added), {}, after)
        labels = self.label(after)
        return scores if labels is None else labels.reshape(scores.shape)

    def _shared_heads(self, tensor: Tensor, shape: torch.Size) -> Tensor | None:
        """Labels of keys or values, one per head of the query: several may share a key."""
        labels = self._activation_label(tensor)
        if labels is None or labels.shape[:-2] == shape:
            return labels
        return labels.repeat_interleave(shape[-1] // labels.shape[-3], dim=-3)

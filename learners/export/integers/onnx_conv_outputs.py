"""Outputs of convolutions in 8 bits, where nothing else rounds them.

ONNX Runtime computes a convolution in integers only where its output, or the activation behind it,
becomes 8 bits at once. Where something else reads it, such as a batch norm behind the activation,
it decodes the weights at every call and convolves in float32, without the layout that makes float
convolutions fast: 57 times as slow for the second layer of a pitch tracker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from amc_compress.learners.export.onnx_graph import add_constant, maker, only_reader
from amc_compress.learners.export.runtime import explained, open_session
from amc_compress.learners.quantization.uniform.quantizer import affine_parameters

_ACTIVATIONS = ("Relu", "Clip")  # the runtime computes them with the convolution
_MOVERS = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice")
_BATCH = 32


def round_conv_outputs(
    model: ir.Model, plain: onnx.ModelProto, calibration: Mapping[str, Tensor]
) -> None:
    """Rounds what integer convolutions give to float operations, to ranges that are measured.

    Args:
        model: With pairs of ``QuantizeLinear`` and ``DequantizeLinear``; changed in place.
        plain: The same in float, with the same names.
        calibration: Input -> samples for the ranges.
    """
    known = {name for node in plain.graph.node for name in node.output}
    found = {str(value.name): value for value in _unrounded(model) if value.name in known}
    if not found:
        return
    for name, (low, high) in _ranges(plain, list(found), calibration).items():
        scale, zero = affine_parameters(low[None], high[None], 8, symmetric=False)
        steps = [
            add_constant(model, f"{name}_scale", scale[0].numpy()),
            add_constant(model, f"{name}_zero", zero[0].numpy().astype(np.uint8)),
        ]
        uses, made = found[name].uses(), found[name].producer()
        assert made is not None
        rounded = ir.node("QuantizeLinear", [found[name], *steps])
        decoded = ir.node("DequantizeLinear", [rounded.outputs[0], *steps])
        made.append([rounded, decoded])
        for reader, index in uses:
            reader.replace_input_with(index, decoded.outputs[0])


def _unrounded(model: ir.Model) -> list[ir.Value]:
    """Returns what integer convolutions give, activated, that nothing rounds; not the outputs."""
    found = []
    for node in model.graph:
        decoded = [maker(value, "DequantizeLinear") for value in node.inputs[:2]]
        if node.op_type != "Conv" or None in decoded:
            continue
        last = node.outputs[0]
        for kind in _ACTIVATIONS:
            if (activation := only_reader(last, kind)) is not None:
                last = activation.outputs[0]
        if not _is_rounded(last) and last.consumers() and last not in model.graph.outputs:
            found.append(last)
    return found


def _is_rounded(value: ir.Value) -> bool:
    """Whether a tensor is rounded, perhaps behind operators that the runtime swaps with that."""
    return any(
        reader.op_type == "QuantizeLinear"
        or (reader.op_type in _MOVERS and _is_rounded(reader.outputs[0]))
        for reader in value.consumers()
    )


def _ranges(
    plain: onnx.ModelProto, names: Sequence[str], calibration: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns the smallest and the largest number of tensors over all samples."""
    watched = onnx.ModelProto()
    watched.CopyFrom(plain)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(watched)
    read = {source.name for source in session.get_inputs()}
    count = max(len(x) for n, x in calibration.items() if n in read and x.ndim)
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, count, _BATCH):
        fed = {
            name: (x[start : start + _BATCH] if x.ndim else x).contiguous().numpy()
            for name, x in calibration.items()
            if name in read
        }
        with explained(fed):
            found = session.run(list(names), fed)
        for name, numbers in zip(names, found, strict=True):
            seen[name].append(torch.stack(torch.from_numpy(numbers).aminmax()))
    ends = {name: torch.stack(parts) for name, parts in seen.items()}
    return {name: (x[:, 0].min(), x[:, 1].max()) for name, x in ends.items()}

"""Integers of weights in blocks, as ``MatMulNBits`` of ONNX Runtime holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from amc_compress.learners.export.onnx_graph import add_constant
from amc_compress.learners.export.onnx_options import BLOCK_SIZES
from amc_compress.learners.layers.bit_layers import along
from amc_compress.learners.layers.quantized import QuantizedWeight
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer

BITS = 4
DOMAIN = "com.microsoft"
_MIDDLE = 8  # the zero point of an operator that has none

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Blocks:
    """Weights ``scale * (code - zero)`` of a layer, an output a row.

    Args:
        codes: 0 to 15, uint8, shape (outputs, inputs).
        scales: float32, shape (outputs, blocks).
        zeros: 0 to 15, uint8, shape (outputs, blocks).
        size: Inputs per block; the last one may be shorter.
    """

    codes: Array
    scales: Array
    zeros: Array
    size: int

    def values(self) -> Tensor:
        """Returns the weights, float32, shape (outputs, inputs)."""
        block = np.arange(self.codes.shape[1]) // self.size
        steps = self.codes.astype(np.float32) - self.zeros[:, block]
        return torch.from_numpy(steps * self.scales[:, block])

    def store(self, model: ir.Model, name: str) -> list[ir.Value]:
        """Adds the constants of the operator to a model: codes, scales, zero points.

        Zero points that are all 8 need not be there.
        """
        codes, zeros = self.codes, self.zeros
        shift = _MIDDLE - int(zeros.flat[0])
        if (zeros == zeros.flat[0]).all() and -int(codes.min()) <= shift <= 15 - int(codes.max()):
            codes, zeros = (codes + shift).astype(np.uint8), zeros + shift
        filled = np.pad(codes, ((0, 0), (0, -codes.shape[1] % self.size)))
        shape = (*self.scales.shape, self.size // 2)
        constants = {"codes": _nibbles(filled).reshape(shape), "scales": self.scales}
        if (zeros != _MIDDLE).any():
            constants["zeros"] = _nibbles(zeros)
        return [add_constant(model, f"{name}.{key}", held) for key, held in constants.items()]


def _nibbles(codes: Array) -> Array:
    """Two codes a byte along the last axis, the first one in the low bits."""
    filled = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: Array = filled[:, ::2] | filled[:, 1::2] << 4
    return packed


def own_blocks(weight: QuantizedWeight, size: int) -> Blocks | None:
    """Returns the integers of a quantized weight as blocks; None where they do not lie so.

    Args:
        weight: Of a linear layer, of up to 4 bits.
        size: Inputs per block, of weights with a scale per tensor or channel; groups have their
            own.
    """
    quantizer, values = weight.quantizer, weight.values.detach()
    if not isinstance(quantizer, UniformQuantizer) or quantizer.bits > BITS or values.dim() != 2:
        return None
    grouped = quantizer.granularity == "group"
    size = quantizer.bucket_size if grouped else size
    if quantizer.granularity == "split" or size not in BLOCK_SIZES:
        return None
    turned = quantizer.axis == 1
    rows, columns = reversed(values.shape) if turned else values.shape
    count = -(-columns // size)

    def by_block(tensor: Tensor) -> Array:
        if not grouped:
            tensor = along(tensor, 0, 2)
        numbers: Array = tensor.detach().reshape(-1, count if grouped else 1).cpu().numpy()
        return np.ascontiguousarray(np.broadcast_to(numbers, (rows, count)))

    zeros = by_block(quantizer.zero_point).astype(np.int64) - quantizer.quant_min
    codes = quantizer.encode(values).cpu().numpy()
    codes = np.ascontiguousarray(codes.T if turned else codes)
    if weight.mask is not None:
        mask = weight.mask.cpu().numpy()
        at = zeros[:, np.arange(columns) // size]
        codes = np.where(mask.T if turned else mask, codes, at).astype(np.uint8)
    scales = by_block(quantizer.scale).astype(np.float32)
    return Blocks(codes, scales, zeros.astype(np.uint8), size)


def rounded_blocks(weight: Tensor, size: int, *, symmetric: bool) -> Blocks:
    """Rounds float weights to 4 bits as ONNX Runtime's own quantizer does.

    Args:
        weight: Shape (outputs, inputs).
        size: Inputs per block.
        symmetric: Whether all zero points are 8.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=size, is_symmetric=symmetric, bits=BITS)
    numbers = np.ascontiguousarray(weight.detach().float().cpu().numpy().T)
    packed, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(numbers)
    rows, columns = weight.shape
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1)[:, :columns]
    points = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)[:, : scales.shape[1]]
    if symmetric:
        points = np.full_like(points, 8)
    return Blocks(np.ascontiguousarray(codes), scales, np.ascontiguousarray(points), size)


def multiplication(model: ir.Model, name: str, inputs: ir.Value | None, blocks: Blocks) -> ir.Node:
    """Returns the node that multiplies by weights in blocks."""
    rows, columns = blocks.codes.shape
    facts = {"K": columns, "N": rows, "bits": BITS, "block_size": blocks.size}
    model.graph.opset_imports[DOMAIN] = 1
    return ir.node(
        "MatMulNBits", [inputs, *blocks.store(model, name)], facts, domain=DOMAIN, name=name
    )

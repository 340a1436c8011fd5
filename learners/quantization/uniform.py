"""Uniform quantization of weights and activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learners.base import Batches
from learners.quantization.calibration import Observation
from learners.quantization.inputs import input_quantizer
from learners.quantization.learner import QuantizationLearner
from learners.quantization.quantizer import Quantizer
from learners.quantization.ranges import check_rule, clipping_ranges
from learners.quantization.uniform_quantizer import (
    UniformQuantizer,
    affine_parameters,
    integer_range,
    split_buckets,
)


class UniformQuantization(QuantizationLearner):
    """Equally spaced values for weights and activations; a plan holds bits per layer.

    Args:
        model: See :class:`QuantizationLearner`, as the next three and all further ``options``.
        example_input: One batch as the network takes it.
        calibration: Batches for ranges.
        validation: Batches to judge candidates on.
        symmetric: Whether weights are signed with zero point 0 (what integer kernels are fast
            at), or affine.
        weight_range: Name in ``RANGE_RULES``: how the range of weights is found.
        learned_steps: Whether :meth:`finetune` trains the scales of weights and activations too
            (LSQ, Esser et al. 2020); the weights' scales then start at ``2 <|w|> / sqrt(Q_p)``
            if ``weight_range`` is ``"lsq"``.
        **options: Everything else.

    Raises:
        ValueError: If an option has no such value.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        calibration: Batches,
        validation: Batches,
        *,
        symmetric: bool = True,
        weight_range: str = "mse",
        learned_steps: bool = False,
        **options: Any,
    ) -> None:
        if weight_range != "lsq":
            check_rule(weight_range)
        self.symmetric = symmetric
        self.weight_range = weight_range
        self.learned_steps = learned_steps
        super().__init__(model, example_input, calibration, validation, **options)

    def _make_weight_quantizer(self, name: str, weight: Tensor, bits: int) -> Quantizer:
        scale, zero = weight_scales(
            weight,
            bits,
            self.weight_range,
            symmetric=self.symmetric,
            granularity=self.granularity,
            bucket_size=self.bucket_size,
            name=f"the weights of layer {name!r}",
        )
        return UniformQuantizer(
            bits,
            scale,
            zero,
            symmetric=self.symmetric,
            granularity=self.granularity,
            bucket_size=self.bucket_size,
            learned=self.learned_steps,
        )

    def _make_input_quantizer(self, name: str, bits: int, seen: Observation) -> Quantizer:
        return input_quantizer(
            seen.inputs[name], bits, self.activation_range, name, learned=self.learned_steps
        )

    def _bucket_storage(self) -> tuple[float, bool]:
        # A file stores zero points as one byte: they are at most 255.
        return (4.0 if self.symmetric else 5.0), False


def weight_scales(
    weight: Tensor,
    bits: int,
    rule: str,
    *,
    symmetric: bool,
    granularity: str,
    bucket_size: int,
    name: str = "the weights",
) -> tuple[Tensor, Tensor]:
    """Returns scale and zero point of every bucket of a layer's weights.

    Args:
        weight: Weights, shape (out, in, ...).
        bits: Bits per weight.
        rule: Name in ``RANGE_RULES``, or ``"lsq"``: ``2 <|w|> / sqrt(Q_p)`` (Esser et al. 2020).
        symmetric: Whether the zero point is 0.
        granularity: What shares a scale.
        bucket_size: Weights per bucket of ``"split"``.
        name: What to call the weights in messages.

    Raises:
        InputDataError: If a weight is NaN or infinite.
    """
    if granularity == "split":
        rows = split_buckets(weight, bucket_size)
    else:
        rows = weight.reshape(weight.shape[0] if granularity == "channel" else 1, -1)
    if rule == "lsq":
        steps = integer_range(bits, symmetric)[1]
        scale = 2 * rows.abs().mean(1) / torch.tensor(float(steps)).sqrt()
        high = scale * steps / (1 if symmetric else 2)
        return affine_parameters(-high, high, bits, symmetric)
    low, high = clipping_ranges(rows, [bits], rule, symmetric=symmetric, name=name)
    return affine_parameters(low[0], high[0], bits, symmetric)

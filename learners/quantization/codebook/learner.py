"""Quantization of weights by codebooks; activations are quantized uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from amc_compress.learners.base import Batches
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.quantization.calibration import Observation
from amc_compress.learners.quantization.codebook.init import INITS
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_compress.learners.quantization.decisions import BitPair
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.training.config import TrainingConfig
from amc_env.costs.storage import StorageFormat

MODES = ("weights", "clusters", "both")

# The gradient of a centroid is a sum over all its weights, so that rates which suit the weights
# are too large; ResNet-20 at 2 bits loses everything at 0.01, and 7 points at 0.003.
LEARNING_RATES = {"weights": 0.003, "clusters": 0.001, "both": 0.001}


class CodebookQuantization(QuantizationLearner):
    """Codebooks of ``2 ** bits`` centroids for weights, equal steps for activations.

    Args:
        model: See :class:`QuantizationLearner`, as the next three and all further ``options``.
        example_input: One batch as the network takes it.
        calibration: Batches for ranges.
        validation: Batches to evaluate candidates on.
        granularity: What shares a codebook: ``"tensor"`` (a layer), ``"channel"`` or ``"split"``.
        mode: What :meth:`finetune` trains: ``"weights"`` (everything but the centroids),
            ``"clusters"`` (the centroids and nothing else, assignments fixed) or ``"both"``.
        init: Where centroids start: ``"kmeans"``, ``"quantile"`` or ``"uniform"``.
        channel_scales: Whether the channels of a layer share its codebook up to a factor of each.
            A folded norm makes channels differ in size by more than a codebook of four centroids
            can follow. For ``granularity="tensor"``; the others follow anyway.
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
        granularity: str = "tensor",
        mode: str = "both",
        init: str = "kmeans",
        channel_scales: bool = True,
        **options: Any,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Unknown mode {mode!r}; choose one of {list(MODES)}.")
        if init not in INITS:
            raise ValueError(f"Unknown init {init!r}; choose one of {list(INITS)}.")
        self.mode = mode
        self.init = init
        self.channel_scales = channel_scales and granularity == "tensor"
        super().__init__(
            model, example_input, calibration, validation, granularity=granularity, **options
        )
        self.proxy = replace(self.proxy, learning_rate=LEARNING_RATES[mode])

    def _make_weight_quantizer(
        self, name: str, weight: Tensor, mask: Tensor | None, bits: int
    ) -> Quantizer:
        return CodebookQuantizer.fit(
            weight,
            bits,
            granularity=self.granularity,
            bucket_size=self.bucket_size,
            init=self.init,
            channel_scales=self.channel_scales,
            mask=mask,
        )

    def _stored_form(self) -> StorageFormat:
        per_channel = 4.0 if self.channel_scales else 0.0
        form = replace(super()._stored_form(), bytes_per_bucket=0.0, codebook=True)
        return replace(form, bytes_per_channel=per_channel)

    def _training_defaults(self) -> TrainingConfig:
        rate = LEARNING_RATES[self.mode]
        return replace(super()._training_defaults(), learning_rate=rate)

    def _build(
        self, folded: nn.Module, bits: Mapping[str, BitPair], seen: Observation
    ) -> nn.Module:
        network = super()._build(folded, bits, seen)
        set_mode(network, self.mode)
        return network


def set_mode(network: nn.Module, mode: str) -> None:
    """Sets what training changes in a network with codebooks, in place.

    Args:
        network: The network.
        mode: ``"weights"``: everything but the centroids; weights move to other centroids.
            ``"clusters"``: the centroids and nothing else; no weight moves to another centroid.
            ``"both"``: everything.

    Raises:
        ValueError: If there is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown mode {mode!r}; choose one of {list(MODES)}.")
    network.requires_grad_(mode != "clusters")
    for layer in quantized_layers(network).values():
        quantizer = layer.weight_quantizer
        if isinstance(quantizer, CodebookQuantizer):
            quantizer.codebook.requires_grad_(mode != "weights")
            quantizer.fix_assignments(layer.weight if mode == "clusters" else None)

"""Quantization of weights by codebooks; activations are quantized uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from amc_compress.learners.candidates.proxy import Proxy
from amc_compress.learners.layers.quantized import quantized_weights
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.quantization.calibration import Observation
from amc_compress.learners.quantization.codebook.init import INITS
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_compress.learners.quantization.decisions import BitChoice, BitPair
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.quantization.options import QuantizationOptions
from amc_compress.learners.training.config import TrainingConfig
from amc_env.costs.storage import StorageFormat
from amc_env.validation.checks import check_known, checked

MODES = ("weights", "clusters", "both")

# The gradient of a centroid is a sum over all its weights, so that rates which suit the weights
# are too large; ResNet-20 at 2 bits loses everything at 0.01, and 7 points at 0.003.
LEARNING_RATES = {"weights": 0.003, "clusters": 0.001, "both": 0.001}


@checked
@dataclass(frozen=True, kw_only=True)
class CodebookOptions(QuantizationOptions):
    """What quantization by codebooks is told besides; see :class:`QuantizationOptions`.

    Attributes:
        granularity: What shares a codebook: ``"tensor"`` (a layer), ``"channel"`` or ``"split"``.
        mode: What ``finetune`` trains: ``"weights"`` (everything but the centroids),
            ``"clusters"`` (the centroids and nothing else, assignments fixed) or ``"both"``.
        init: Where centroids start: ``"kmeans"``, ``"quantile"`` or ``"uniform"``.
        channel_scales: Whether the channels of a layer share its codebook up to a factor of each.
            A folded norm makes channels differ in size by more than a codebook of four centroids
            can follow. For ``granularity="tensor"``; the others follow anyway.
    """

    granularity: str = "tensor"
    mode: str = "both"
    init: str = "kmeans"
    channel_scales: bool = True

    def __post_init__(self) -> None:
        check_known("mode", self.mode, MODES)
        check_known("init", self.init, INITS)
        super().__post_init__()
        if self.granularity == "group":
            raise ValueError(
                "Expected the granularity 'tensor', 'channel' or 'split' for codebooks, got "
                "'group': a codebook for every few weights of a row takes more bytes than their "
                "codes; take 'split' with a large bucket_size."
            )

    @property
    def scales_channels(self) -> bool:
        """Whether every channel has a factor."""
        return self.channel_scales and self.granularity == "tensor"

    def repairs(self) -> Proxy:
        """Returns what a candidate gets before it is evaluated."""
        return replace(super().repairs(), learning_rate=LEARNING_RATES[self.mode])

    def storage(self, choice: BitChoice, folded: Mapping[str, str]) -> StorageFormat:
        """Returns how layers are stored: by codebooks, and a factor per channel."""
        form = replace(super().storage(choice, folded), bytes_per_bucket=0.0, codebook=True)
        return replace(form, bytes_per_channel=4.0 if self.scales_channels else 0.0)


class CodebookQuantization(QuantizationLearner):
    """Codebooks of ``2 ** bits`` centroids for weights, equal steps for activations.

    The options are those of :class:`CodebookOptions`.
    """

    Options = CodebookOptions
    options: CodebookOptions

    def _make_weight_quantizer(
        self, name: str, weight: Tensor, mask: Tensor | None, bits: int
    ) -> Quantizer:
        return CodebookQuantizer.fit(
            weight,
            bits,
            granularity=self.options.granularity,
            bucket_size=self.options.bucket_size,
            axis=self.axis(name),
            init=self.options.init,
            channel_scales=self.options.scales_channels,
            mask=mask,
        )

    def training_defaults(self) -> TrainingConfig:
        """The settings of :meth:`finetune` where none are given."""
        rate = LEARNING_RATES[self.options.mode]
        return replace(super().training_defaults(), learning_rate=rate)

    def _build(
        self,
        folded: nn.Module,
        bits: Mapping[str, BitPair],
        seen: Observation,
        *,
        shares: bool = False,
    ) -> nn.Module:
        network = super()._build(folded, bits, seen, shares=shares)
        set_mode(network, self.options.mode)
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
    check_known("mode", mode, MODES)
    network.requires_grad_(mode != "clusters")
    for weight in quantized_weights(network).values():
        quantizer = weight.quantizer
        if isinstance(quantizer, CodebookQuantizer):
            quantizer.codebook.requires_grad_(mode != "weights")
            quantizer.fix_assignments(weight.values if mode == "clusters" else None)

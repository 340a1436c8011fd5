"""What a joint compression is told: the options that its parts share, and those of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from amc_compress.learners.candidates.learner import PartLearner
from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_compress.learners.quantization.codebook.learner import CodebookQuantization
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.quantization.uniform.learner import UniformQuantization
from amc_compress.learners.sparsification.learner import WeightSparsification
from amc_env.validation.checks import check_known, checked

QUANTIZERS: dict[str, type[QuantizationLearner]] = {
    "uniform": UniformQuantization,
    "codebook": CodebookQuantization,
}
"""Name -> learner that quantizes in that way."""


def quantizer_named(name: str) -> type[QuantizationLearner]:
    """Returns the learner that quantizes in that way.

    Raises:
        ValueError: If there is none of that name.
    """
    check_known("quantizer", name, sorted(QUANTIZERS))
    return QUANTIZERS[name]


# What the joint learner does itself, once for all parts.
_OF_THE_WHOLE = ("finetune_steps", "train", "n_validation")


@checked
@dataclass(frozen=True, kw_only=True)
class JointOptions(CandidateOptions):
    """What a joint compression is told; see ``CandidateOptions`` for what all learners are.

    Attributes:
        quantizer: Name in :data:`QUANTIZERS`.
        pruning: Further options of ``ChannelPruning``, e.g. ``{"round_to": 4}``; ``{}`` cuts
            channels with its defaults, ``None`` cuts none.
        sparsification: Such of ``WeightSparsification``, e.g. ``{"pattern": "2:4"}``; ``None``
            decides no densities.
        quantization: Such of the quantizer, e.g. ``{"activation_bits": 16}``.
    """

    quantizer: str = "uniform"
    pruning: Mapping[str, Any] | None = field(default_factory=dict)
    sparsification: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> list[tuple[type[PartLearner[Any, Any]], dict[str, Any]]]:
        """Returns the learners in the order in which they are carried out, and their options.

        Raises:
            ValueError: If there is no such quantizer.
        """
        names = [f.name for f in fields(CandidateOptions) if f.name not in _OF_THE_WHOLE]
        shared = {name: getattr(self, name) for name in names}
        matching = "recalibration" if "recalibration" in self.proxy else "none"
        found: list[tuple[type[PartLearner[Any, Any]], dict[str, Any]]] = []
        if self.pruning is not None:
            found.append((ChannelPruning, {**shared, **self.pruning}))
        if self.sparsification is not None:
            found.append((WeightSparsification, {**shared, **self.sparsification}))
        bits = {**shared, "proxy": matching, **self.quantization}
        return [*found, (quantizer_named(self.quantizer), bits)]

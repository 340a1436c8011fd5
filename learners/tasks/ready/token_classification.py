"""Token classification: a class for every token, cross entropy, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import Call, Inputs
from amc_compress.learners.tasks.ready.shared.class_per_place import (
    ClassPerPlace,
    entropy_of,
    right_of,
)
from amc_compress.learners.tasks.ready.shared.means import Means, Sums, exponential
from amc_compress.learners.tasks.task import Measure, Meter

IGNORED = -100
"""The label of tokens that do not count, as in ``transformers``."""


class TokenClassification(ClassPerPlace):
    """Labels (N, tokens), -100 ignored; logits (N, tokens, classes).

    Tokens whose ``attention_mask`` is 0 do not count either. The score is the share of the tokens
    with the right class. Masked language models fit too, with ``metric="perplexity"``: label the
    masked tokens, and -100 all others.
    """

    name = "token-classification"
    metric = "accuracy"
    best_score = 1.0
    offered: ClassVar[Mapping[str, Measure]] = {
        "cross_entropy": Measure(higher_is_better=False, best=0.0),
        "perplexity": Measure(higher_is_better=False, best=1.0),
    }
    ignored = IGNORED
    class_dim = -1
    place = "token"

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """Returns inputs and labels, int64, those of padding ignored."""
        inputs, labels = super().split(batch)
        if isinstance(labels, Tensor) and not labels.is_floating_point():
            labels = unpadded(labels.long(), inputs)
        return inputs, labels

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``accuracy`` and, where asked for, entropy and perplexity."""
        return Means(self._reported if reported else self._accuracy, _finished, "token")

    def _accuracy(self, outputs: Tensor, targets: Tensor) -> Sums:
        return {"accuracy": right_of(*self.counted(outputs, targets))}

    def _reported(self, outputs: Tensor, targets: Tensor) -> Sums:
        counted = self.counted(outputs, targets)
        return {"accuracy": right_of(*counted), "cross_entropy": entropy_of(*counted)}


def _finished(means: dict[str, float]) -> dict[str, float]:
    if "cross_entropy" in means:
        means["perplexity"] = exponential(means["cross_entropy"])
    return means


def unpadded(labels: Tensor, inputs: Inputs, mask: str = "attention_mask") -> Tensor:
    """Returns labels (N, tokens) with those of padding ignored, where a mask tells it."""
    found = inputs.kwargs.get(mask) if isinstance(inputs, Call) else None
    if not isinstance(found, Tensor) or found.shape != labels.shape:
        return labels
    return torch.where(found.to(labels.device) == 0, IGNORED, labels)

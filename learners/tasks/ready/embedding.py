"""Embedding: vectors that are compared by their direction; cosine to those of the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import Inputs, count, mask_of
from amc_compress.learners.tasks.ready.shared.from_original import FromOriginal
from amc_compress.learners.tasks.ready.shared.likeness import cosine, perpendicular
from amc_compress.learners.tasks.ready.shared.means import Means, Sums
from amc_compress.learners.tasks.ready.shared.pair_ranking import PairRanking
from amc_compress.learners.tasks.task import Measure, Meter
from amc_env.errors import InputDataError

KEYS = ("sentence_embedding", "image_embeds", "text_embeds", "embeddings", "last_hidden_state")
"""Where networks keep their embeddings, if they return an object or a dictionary."""

_DRAWN = 0  # seed


class Embedding(FromOriginal):
    """One vector per sample; no labels: the original's vectors are the targets.

    The score is the mean cosine of a network's vectors to those of the original. Vectors of tokens,
    (N, tokens, width), are averaged over the tokens that the ``attention_mask`` names; without a
    mask all numbers of a sample are one vector. Offered besides is ``ranking``: whether the same
    pairs of samples are alike, see :class:`PairRanking`.

    Criteria take gradients against random directions at a right angle to the original's vectors:
    against these themselves a gradient is 0. Their second moment is the curvature of the cosine.
    """

    name = "embedding"
    metric = "cosine"
    offered: ClassVar[Mapping[str, Measure]] = {"ranking": Measure(best=1.0)}

    def outputs(self, raw: Any) -> Any:
        """Returns the embeddings of an object or dictionary, or the first of a tuple."""
        for key in KEYS:
            found = raw.get(key) if isinstance(raw, Mapping) else getattr(raw, key, None)
            if isinstance(found, Tensor):
                return found
        return super().outputs(raw)

    def targets_of(self, outputs: Any, inputs: Inputs) -> Any:
        """Returns the original's embeddings, and with those of tokens the mask."""
        mask = mask_of(inputs)
        if isinstance(outputs, Tensor) and outputs.ndim == 3 and mask is not None:
            return {"embeddings": outputs, "mask": mask}
        return outputs

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that the embeddings have the shape of the original's."""
        expected = targets["embeddings"] if isinstance(targets, Mapping) else targets
        if not isinstance(expected, Tensor) or not expected.is_floating_point():
            raise InputDataError(
                f"Expected an original network that returns embeddings, one tensor, got "
                f"{type(expected).__name__}: return it alone, first, or under one of "
                f"{', '.join(KEYS)}."
            )
        if not isinstance(outputs, Tensor) or outputs.shape != expected.shape:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputDataError(
                f"Expected the {who} to answer {count(targets)} samples with embeddings of shape "
                f"{list(expected.shape)} like the original{mode}, got {got}: keep their width."
            )

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """1 less the mean cosine."""
        return 1.0 - cosine(*_pair(outputs, targets, torch.float32)).mean()

    def distillation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """1 less the mean cosine to the teacher's embeddings."""
        return 1.0 - cosine(student.float(), teacher.float()).mean()

    def drawn(self, targets: Any) -> Any:
        """Returns directions at a right angle to the original's embeddings."""
        if not isinstance(targets, Mapping):
            return perpendicular(targets, _DRAWN)
        tokens = targets["embeddings"]
        _, means = _pair(tokens, targets, torch.float32)
        found = perpendicular(means, _DRAWN)[:, None].expand(tokens.shape)
        return {**targets, "embeddings": found.to(tokens.dtype)}

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``cosine`` and, where asked for, ``ranking``."""
        return _Reported() if reported else Means(_cosines)

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Mean cosine, each at least 0."""
        with torch.no_grad():
            return float(cosine(outputs.double(), reference.double()).clamp(0.0, 1.0).mean())


class _Reported:
    """Measures all metrics."""

    def __init__(self) -> None:
        self._meters: tuple[Meter, ...] = (Means(_cosines), PairRanking(_vectors))

    def update(self, outputs: Any, targets: Any) -> None:
        """Takes in a batch."""
        for meter in self._meters:
            meter.update(outputs, targets)

    def compute(self) -> dict[str, float]:
        """Returns ``cosine`` first."""
        return {key: value for meter in self._meters for key, value in meter.compute().items()}


def _vectors(outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    return _pair(outputs, targets, torch.float64)


def _cosines(outputs: Tensor, targets: Any) -> Sums:
    found = cosine(*_vectors(outputs, targets))
    return {"cosine": (found.sum(), len(found))}


def _pair(outputs: Tensor, targets: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the vectors (N, width) of network and original."""
    if not isinstance(targets, Mapping):
        return outputs.to(dtype), targets.to(dtype)
    mask = targets["mask"].to(dtype)[:, :, None]
    tokens = mask.sum(1).clamp(min=1)
    sums = [(x.to(dtype) * mask).sum(1) for x in (outputs, targets["embeddings"])]
    return sums[0] / tokens, sums[1] / tokens

"""Language modelling: the next token at every place, cross entropy, perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import Call, Inputs, tensors_of
from amc_compress.learners.tasks.ready.shared.class_per_place import (
    ClassPerPlace,
    entropy_of,
    right_of,
)
from amc_compress.learners.tasks.ready.shared.means import Means, Sums, exponential
from amc_compress.learners.tasks.ready.token_classification import IGNORED, unpadded
from amc_compress.learners.tasks.task import Measure, Meter
from amc_env.errors import InputDataError


class LanguageModelling(ClassPerPlace):
    """Token ids (N, tokens); logits (N, tokens, vocabulary) for the token that follows.

    Labels may be missing, then the ids are; or be the ids, as in ``transformers``, -100 ignored; or
    be the ids that follow, at the place that they follow on. Which of the last two is seen by
    comparing them with the ids; they are shifted accordingly, in :meth:`split`. An
    ``attention_mask`` tells padding, which does not count. With an encoder the ids are
    ``decoder_input_ids``.

    The score is the negative perplexity, e to the power of the mean cross entropy of all tokens
    that count.
    """

    name = "language-modelling"
    metric = "perplexity"
    higher_is_better = False
    best_score = -1.0
    offered: ClassVar[Mapping[str, Measure]] = {
        "cross_entropy": Measure(higher_is_better=False, best=0.0),
        "accuracy": Measure(best=1.0),
    }
    ignored = IGNORED
    class_dim = -1
    place = "token"

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """Returns inputs, and for each place the token that follows, -100 where none counts.

        Raises:
            InputDataError: If there are no token ids, or the labels are neither those nor what
                follows them.
        """
        inputs, labels = super().split(batch)
        ids, mask = _token_ids(inputs)
        if labels is None:
            return inputs, _shifted(unpadded(ids.long(), inputs, mask))
        if not isinstance(labels, Tensor) or labels.shape != ids.shape:
            got = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise InputDataError(
                f"Expected labels of the shape of the token ids, {list(ids.shape)}, got {got}: "
                f"leave the labels out, or give the ids."
            )
        labels = unpadded(labels.long(), inputs, mask)
        counted = labels != IGNORED
        if bool((labels == ids)[counted].all()):
            return inputs, _shifted(labels)
        if bool((labels[:, :-1] == ids[:, 1:])[counted[:, :-1]].all()):
            return inputs, labels
        raise InputDataError(
            "Expected the token ids as labels, or at each place the id that follows, got other "
            "ones: correct the labels, or leave them out; for masked language models and tags "
            "choose the task 'token-classification'."
        )

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``perplexity`` and, where asked for, entropy and accuracy."""
        return Means(self._reported if reported else self._entropy, _finished, "token")

    def _entropy(self, outputs: Tensor, targets: Tensor) -> Sums:
        return {"cross_entropy": entropy_of(*self.counted(outputs, targets))}

    def _reported(self, outputs: Tensor, targets: Tensor) -> Sums:
        counted = self.counted(outputs, targets)
        return {"cross_entropy": entropy_of(*counted), "accuracy": right_of(*counted)}


def _finished(means: dict[str, float]) -> dict[str, float]:
    # Not torchmetrics' Perplexity: it takes the logarithm of a softmax, which is infinite for a
    # token that the network thinks very unlikely.
    return {"perplexity": exponential(means["cross_entropy"]), **means}


def _token_ids(inputs: Inputs) -> tuple[Tensor, str]:
    """Returns the ids (N, tokens) that are continued, and the name of their mask."""
    if isinstance(inputs, Call):
        for key, mask in (
            ("decoder_input_ids", "decoder_attention_mask"),
            ("input_ids", "attention_mask"),
        ):
            if isinstance(found := inputs.kwargs.get(key), Tensor) and found.ndim == 2:
                return found, mask
    for found in tensors_of(inputs):
        if found.ndim == 2 and not (found.is_floating_point() or found.dtype == torch.bool):
            return found, "attention_mask"
    raise InputDataError(
        "Expected token ids, an integer tensor of shape [samples, tokens], among the inputs of "
        "'language-modelling', got none: give 'input_ids', or ids alone."
    )


def _shifted(labels: Tensor) -> Tensor:
    """Returns at each place the label of the next one."""
    return torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1)

"""Token distribution: what the original thinks of the next token, without labels; KL to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from amc_compress.learners.tasks.classification import divergence
from amc_compress.learners.tasks.inputs import Call, Inputs, count, joined, rows
from amc_compress.learners.tasks.ready.shared.from_original import FromOriginal
from amc_compress.learners.tasks.ready.shared.means import Means, Sums
from amc_compress.learners.tasks.task import Measure, Meter
from amc_env.errors import InputDataError

KEPT = 256
"""Tokens of a place whose probability is kept; the others are kept as one."""

_WHOLE = 3 * KEPT  # vocabularies that take no more memory whole: no token has to be named
_AT_ONCE = 2**25  # numbers of the original's answer that are there at a time
_NEVER = -1e4  # the logarithm of a probability of 0, finite in float16
_DRAWN = 0  # seed

Measured = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""Logits (places, vocabulary) and what is held of the original's -> a number for each place."""


class TokenDistribution(FromOriginal):
    """Logits (N, tokens, vocabulary), or (N, vocabulary); no labels.

    The score is the negative KL divergence of a network's distribution of the token at each place
    from that of the original, ``sum p (log p - log q)``, the mean over the places that count:
    those of padding, which an ``attention_mask`` tells, do not.

    Of every place the :data:`KEPT` most probable tokens are held, and the probability of all
    others in one sum: 1.5 kB a place, whatever the size of the vocabulary, where all logarithms in
    float32 take 128 kB for 32,000 tokens. The divergence of distributions with some outcomes
    merged is a lower bound of the whole one (data processing inequality). Vocabularies of up to
    768 tokens are held whole. Logarithms are held in float16, which is exact to 0.0005 of them, and
    sum up to 1 again when they are read, so that no network is nearer than the original.

    A gradient at the original itself is 0, so that it tells nothing about what may be cut.
    Criteria take it against tokens that are drawn from the original's distribution: their second
    moment is the Fisher information, which is the curvature of this divergence (Martens 2020,
    https://jmlr.org/papers/v21/17-678.html).
    """

    name = "token-distribution"
    metric = "kl_divergence"
    higher_is_better = False
    best_score = 0.0
    offered: ClassVar[Mapping[str, Measure]] = {"agreement": Measure(best=1.0)}
    keeps_types = True

    def complete(self, inputs: Inputs, targets: Any) -> Any:
        """Returns the original's distributions; it is asked for a few samples at a time."""
        if targets is not None:
            return targets
        ask, total = super().complete, count(inputs)
        # Without what an earlier batch told: an original that is asked in other batches in the
        # next pass over a loader answers with other roundings.
        found = [ask(rows(inputs, slice(0, 1)), None)]
        size = max(1, _AT_ONCE // (found[0]["counted"].numel() * found[0]["vocabulary"]))
        for start in range(1, total, size):
            found.append(ask(rows(inputs, slice(start, start + size)), None))
        return joined(found)

    def targets_of(self, outputs: Any, inputs: Inputs) -> dict[str, Any]:
        """Returns what is held of the original's logits, see the class."""
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.ndim < 2:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputDataError(
                f"Expected an original network that answers with logits of shape [samples, tokens, "
                f"vocabulary] for the task {self.name!r}, got {got}: return the logits."
            )
        logs = functional.log_softmax(outputs.float(), dim=-1)
        found = {"counted": _counted(inputs, logs), "vocabulary": logs.shape[-1]}
        if logs.shape[-1] <= _WHOLE:
            return found | {"logs": logs.half()}
        kept, tokens = logs.topk(KEPT, dim=-1)
        rest = _of_others(logs, tokens)
        logs = torch.cat([kept, rest[..., None]], dim=-1).clamp(min=_NEVER)
        return found | {"logs": logs.half(), "tokens": tokens.int()}

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that there are as many logits as the original gives."""
        expected = [*targets["counted"].shape, targets["vocabulary"]]
        if not isinstance(outputs, Tensor) or list(outputs.shape) != expected:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputDataError(
                f"Expected the {who} to answer with logits of shape {expected} like the original"
                f"{mode}, got {got}: keep its vocabulary."
            )

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Mean divergence over the places that count; 0 where none does."""
        logits, held = _places(outputs, targets)
        return _divergences(logits, held).sum() / max(1, len(logits))

    def loss_terms(self, inputs: Inputs, targets: Any) -> float:
        """The places that count."""
        return float(targets["counted"].sum())

    def distillation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean over all places of the divergence, as in ``Classification.distillation``."""
        return divergence(student.flatten(0, -2), teacher.flatten(0, -2), temperature)

    def drawn(self, targets: Any) -> Any:
        """Returns a token of the original's distribution for each place, as certain."""
        logs = targets["logs"].float()
        if "tokens" in targets:
            logs = logs[..., :-1]
        generator = torch.Generator(logs.device).manual_seed(_DRAWN)
        shares = functional.softmax(logs, dim=-1).flatten(0, -2)
        places = torch.multinomial(shares, 1, generator=generator)
        places = places.reshape(*logs.shape[:-1], 1)
        tokens = targets["tokens"].long().gather(-1, places) if "tokens" in targets else places
        certain = logs.new_tensor([0.0, _NEVER]).expand(*logs.shape[:-1], 2)
        return {**targets, "logs": certain, "tokens": tokens}

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``kl_divergence`` and, where asked for, ``agreement``."""
        return Means(_reported if reported else _measured, None, "token")

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Share of places with the same most probable token."""
        return float((outputs.argmax(-1) == reference.argmax(-1)).double().mean())


def _counted(inputs: Inputs, logs: Tensor) -> Tensor:
    """Returns which places count, bool, of shape (N, tokens) or (N,)."""
    known = inputs.kwargs if isinstance(inputs, Call) else {}
    is_decoder = "decoder_input_ids" in known
    mask = known.get("decoder_attention_mask" if is_decoder else "attention_mask")
    if isinstance(mask, Tensor) and mask.shape == logs.shape[:-1]:
        return mask.to(logs.device) != 0
    return torch.ones(logs.shape[:-1], dtype=torch.bool, device=logs.device)


def _of_others(logs: Tensor, tokens: Tensor) -> Tensor:
    """Returns the logarithm of what all tokens but some have together.

    Args:
        logs: Log-probabilities (..., vocabulary).
        tokens: The ones to leave out, int64 (..., kept).
    """
    return logs.scatter(-1, tokens, -torch.inf).logsumexp(-1)


def _places(outputs: Tensor, targets: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns logits (places, vocabulary) and what is held of the places that count."""
    counted = targets["counted"].flatten()
    held = {
        key: targets[key].flatten(0, -2)[counted] for key in ("logs", "tokens") if key in targets
    }
    return outputs.flatten(0, -2)[counted], held


def _divergences(logits: Tensor, held: Mapping[str, Tensor]) -> Tensor:
    """Returns the divergence at each place, float32, shape (places,)."""
    theirs = functional.log_softmax(held["logs"].float(), dim=-1)
    ours = functional.log_softmax(logits.float(), dim=-1)
    if "tokens" in held:
        tokens = held["tokens"].long()
        ours = torch.cat([ours.gather(-1, tokens), _of_others(ours, tokens)[:, None]], dim=-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def _is_first(logits: Tensor, held: Mapping[str, Tensor]) -> Tensor:
    """Returns whether the most probable token is the original's, bool, shape (places,)."""
    ours = logits.argmax(-1, keepdim=True)
    logs, tokens = held["logs"], held.get("tokens")
    if tokens is None:
        return logs.gather(-1, ours)[:, 0] == logs.amax(-1)
    # As probable as the first one, in what is held of them.
    highest = logs[:, :-1] == logs[:, :-1].amax(-1, keepdim=True)
    return ((tokens == ours) & highest).any(-1)


def _total(measure: Measured, outputs: Tensor, targets: Any) -> tuple[Tensor, int]:
    """Returns the sum over the places that count, a bounded number of logits at a time."""
    logits, held = _places(outputs, targets)
    size = max(1, _AT_ONCE // logits.shape[-1])
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(logits), size):
        some = slice(start, start + size)
        total += measure(logits[some], rows(held, some)).sum(dtype=torch.float64)
    return total, len(logits)


def _measured(outputs: Tensor, targets: Any) -> Sums:
    return {"kl_divergence": _total(_divergences, outputs, targets)}


def _reported(outputs: Tensor, targets: Any) -> Sums:
    return {**_measured(outputs, targets), "agreement": _total(_is_first, outputs, targets)}

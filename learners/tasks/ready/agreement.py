"""Agreement: no labels at all; how alike a network and the original answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from amc_compress.learners.tasks.classification import divergence
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tasks.ready.boxes import likeness_of_boxes
from amc_compress.learners.tasks.ready.shared.from_original import FromOriginal
from amc_compress.learners.tasks.ready.shared.likeness import (
    cosine,
    distance,
    disturbed,
    likeness,
)
from amc_compress.learners.tasks.ready.shared.means import Means, Sums
from amc_compress.learners.tasks.task import Measure, Meter
from amc_env.errors import InputDataError

LOGITS = "logits"

_DRAWN = 0  # seed
_CERTAIN = 50.0  # logit of a class that is certain, all others 0
_DISTURBED = 0.1  # share of the length of numbers


class Agreement(FromOriginal):
    """Needs inputs alone: the score is the agreement with the original network, in [0, 1].

    Tensors (N, classes) and what an object or dictionary calls ``logits`` are logits: their
    agreement is the share with the same highest one, their loss the divergence from the original.
    Of other numbers the agreement is their likeness, a cosine that is less where lengths differ
    (see ``likeness``), the loss is what it lacks. Boxes of detectors agree by overlap, class and
    score; they have no loss. Of several tensors the mean counts.
    """

    name = "agreement"
    metric = "agreement"
    offered: ClassVar[Mapping[str, Measure]] = {
        "cosine": Measure(best=1.0),
        "divergence": Measure(higher_is_better=False, best=0.0),
    }

    def outputs(self, raw: Any) -> Any:
        """Returns the logits under their name where there are any, else all tensors of it."""
        if isinstance(raw, Tensor):
            return raw
        found = raw.get(LOGITS) if isinstance(raw, Mapping) else getattr(raw, LOGITS, None)
        return {LOGITS: found} if isinstance(found, Tensor) else all_tensors(raw)

    def targets_of(self, outputs: Any, inputs: Inputs) -> Any:
        """Returns the original's outputs."""
        return outputs

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that outputs have the structure and shapes of the original's."""
        found = list(_pairs(outputs, targets))
        if not found:
            raise InputDataError(
                "Expected an original network that returns tensors, alone or in tuples, lists and "
                "dictionaries, got none."
            )
        for _, a, b in found:
            if isinstance(b, Tensor) and (not isinstance(a, Tensor) or a.shape != b.shape):
                got = list(a.shape) if isinstance(a, Tensor) else type(a).__name__
                raise InputDataError(
                    f"Expected the {who} to answer with shape {list(b.shape)} like the original"
                    f"{mode}, got {got}: keep its outputs."
                )

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Divergence of logits from the original's, else the lack of likeness."""
        return self.distillation(outputs, targets, 1.0)

    def distillation(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """The loss with softened logits, as in ``Classification.distillation``."""
        losses = [
            _loss(name, a, b, temperature)
            for name, a, b in _pairs(student, teacher)
            if isinstance(b, Tensor) and b.is_floating_point()
        ]
        if not losses:
            raise InputDataError(
                "Expected outputs of floating-point tensors to train for agreement with the "
                "original, got none: train detectors with the task 'detection'."
            )
        return torch.stack(losses).mean()

    def drawn(self, targets: Any) -> Any:
        """Returns a class of the original's distribution as certain, and other numbers disturbed.

        Their gradients' second moments are the curvatures of the losses, up to a factor of numbers.
        """
        return _drawn("", targets)

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``agreement`` and, where asked for, ``cosine``, ``divergence``."""
        return Means(_reported if reported else _agreements)

    def agreement(self, outputs: Any, reference: Any) -> float:
        """The metric, of one batch."""
        with torch.no_grad():
            return float(_mean(_agreement, outputs, reference).mean())


def all_tensors(value: Any) -> Any:
    """Returns the structure of tensors in what a network returned; lists of them are tuples.

    A list of dictionaries is one of boxes for each sample, and stays.
    """
    if isinstance(value, Tensor):
        return value if value.ndim else None
    if isinstance(value, list) and value and all(_is_boxes(item) for item in value):
        return value
    if isinstance(value, list | tuple):
        return tuple(found for item in value if (found := all_tensors(item)) is not None) or None
    items = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    kept = {str(key): found for key in items if (found := all_tensors(items[key])) is not None}
    return kept or None


def _is_boxes(item: Any) -> bool:
    keys = ("boxes", "labels", "scores")
    return isinstance(item, Mapping) and all(isinstance(item.get(key), Tensor) for key in keys)


def _pairs(outputs: Any, targets: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields ``(name, output, target)`` for each tensor of the targets, and for lists of boxes.

    Outputs may have more, as heads that run only in training mode.
    """
    if isinstance(targets, tuple):
        items = outputs if isinstance(outputs, tuple) else ()
        for k, target in enumerate(targets):
            yield from _pairs(items[k] if k < len(items) else None, target, name)
    elif isinstance(targets, Mapping):
        named = outputs if isinstance(outputs, Mapping) else {}
        for key, target in targets.items():
            yield from _pairs(named.get(key), target, key)
    elif targets is not None:
        if isinstance(targets, Tensor) and isinstance(outputs, tuple) and outputs:
            outputs = outputs[0]
        yield name, outputs, targets


def _class_dim(name: str, target: Tensor) -> int | None:
    """Returns where the classes are, ``None`` for what is not logits."""
    if not target.is_floating_point() or target.ndim < 2:
        return None
    if name == LOGITS and target.ndim > 2:
        return 1 if target.ndim > 3 else -1  # (N, classes, height, width), (N, tokens, classes)
    return 1 if target.ndim == 2 and target.shape[1] > 1 else None


def _drawn(name: str, target: Any) -> Any:
    if isinstance(target, tuple):
        return tuple(_drawn(name, item) for item in target)
    if isinstance(target, Mapping):
        return {key: _drawn(key, item) for key, item in target.items()}
    if not isinstance(target, Tensor) or not target.is_floating_point():
        return target
    if (dim := _class_dim(name, target)) is None:
        return disturbed(target, _DISTURBED, _DRAWN)
    shares = target.float().movedim(dim, -1).softmax(-1)
    generator = torch.Generator(target.device).manual_seed(_DRAWN)
    classes = torch.multinomial(shares.flatten(0, -2), 1, generator=generator)
    certain = torch.zeros_like(shares).scatter_(-1, classes.view(*shares.shape[:-1], 1), _CERTAIN)
    return certain.movedim(-1, dim)


def _loss(name: str, output: Tensor, target: Tensor, temperature: float) -> Tensor:
    if (dim := _class_dim(name, target)) is None:
        return distance(output.float(), target.float()).mean()
    a, b = (x.movedim(dim, -1).flatten(0, -2) for x in (output, target))
    return divergence(a, b, temperature)


def _agreement(name: str, output: Any, target: Any) -> Tensor:
    """Returns the agreement of each sample, float64, shape (N,)."""
    if isinstance(target, list):
        return likeness_of_boxes(output, target)
    if (dim := _class_dim(name, target)) is not None:
        same = output.argmax(dim) == target.argmax(dim)
    elif target.is_floating_point():
        return likeness(output.double(), target.double())
    else:
        same = torch.eq(output, target)
    shares: Tensor = same.reshape(len(same), -1).double().mean(1)
    return shares


def _cosine(name: str, output: Any, target: Any) -> Tensor:
    if isinstance(target, list) or not target.is_floating_point():
        return _agreement(name, output, target)
    return cosine(output.double(), target.double())


def _divergence(name: str, output: Any, target: Any) -> Tensor:
    if isinstance(target, list) or _class_dim(name, target) is None:
        return 1.0 - _agreement(name, output, target)
    each = [
        _loss(name, a[None], b[None], 1.0).double() for a, b in zip(output, target, strict=True)
    ]
    return torch.stack(each)


def _mean(measure: Any, outputs: Any, targets: Any) -> Tensor:
    found = [measure(*pair) for pair in _pairs(outputs, targets)]
    first = found[0]  # what has not as many rows is for all samples, as anchors are
    return torch.stack([x.to(first.device) for x in found if x.shape == first.shape]).mean(0)


def _summed(measure: Any, outputs: Any, targets: Any) -> tuple[Tensor, int]:
    each = _mean(measure, outputs, targets)
    return each.sum(), len(each)


def _agreements(outputs: Any, targets: Any) -> Sums:
    return {"agreement": _summed(_agreement, outputs, targets)}


def _reported(outputs: Any, targets: Any) -> Sums:
    return {
        **_agreements(outputs, targets),
        "cosine": _summed(_cosine, outputs, targets),
        "divergence": _summed(_divergence, outputs, targets),
    }

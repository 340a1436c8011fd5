"""What tasks with a class for each place of an output share: pixels, tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from amc_compress.learners.tasks.classification import divergence
from amc_compress.learners.tasks.inputs import Inputs, outside
from amc_compress.learners.tasks.task import Task
from amc_env.errors import InputDataError


class ClassPerPlace(Task):
    """Logits with one more dimension than the targets, that of the classes; cross entropy.

    Places whose target is ``ignored`` count for neither loss nor metric. The loss is the mean over
    the places of a batch that count, not of means of samples.

    Attributes:
        ignored: The target of places that do not count.
        class_dim: Where the classes are, 1 or -1.
        place: What errors call a place.
    """

    smooths = True
    ignored: int
    class_dim: ClassVar[int]
    place: ClassVar[str]

    def check_targets(self, inputs: Inputs, targets: Any, name: str = "") -> None:
        """Checks that targets are integers, one sample each."""
        super().check_targets(inputs, targets, name)
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.ndim < 2:
            got = (
                f"{list(targets.shape)} of {targets.dtype}"
                if isinstance(targets, Tensor)
                else type(targets).__name__
            )
            raise InputDataError(
                f"Expected a tensor with the number of a class for each {self.place} as {name}"
                f"targets, got {got}: give integers, shape [samples, {self.place}s]."
            )

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that there are logits for every place, and that targets are classes."""
        if not isinstance(outputs, Tensor) or outputs.ndim != targets.ndim + 1:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputDataError(
                f"Expected the {who} to answer targets of shape {list(targets.shape)} with logits "
                f"for each {self.place}, one more dimension{mode}, got {got}: return the logits."
            )
        places = outputs.movedim(self.class_dim, -1).shape[:-1]
        if places != targets.shape:
            raise InputDataError(
                f"Expected targets of the size of the {who}'s logits, {list(places)}{mode}, got "
                f"{list(targets.shape)}: resize the targets in the loader, or the logits in the "
                f"network's forward."
            )
        self.check_range(outputs, targets, "")

    def check_range(self, outputs: Any, targets: Any, name: str) -> None:
        """Checks that targets are classes of the network, or ignored."""
        classes = outputs.shape[self.class_dim]
        counted = targets[targets != self.ignored]
        if not counted.numel():
            return
        if (wrong := outside(counted, classes)) is not None:
            raise InputDataError(
                f"Expected {name}targets from 0 to {classes - 1}, the classes of the network, or "
                f"{self.ignored}, which is ignored, got {wrong}: correct the "
                f"targets or the number of classes."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy over the places that count; 0 where none does."""
        total = functional.cross_entropy(
            outputs.movedim(self.class_dim, 1).float(),
            targets.long(),
            ignore_index=self.ignored,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / (targets != self.ignored).sum().clamp(min=1)

    def loss_terms(self, inputs: Inputs, targets: Tensor) -> float:
        """The places that count."""
        return float((targets != self.ignored).sum())

    def distillation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean over all places of the divergence, as in ``Classification.distillation``."""
        return divergence(self._flat(student), self._flat(teacher), temperature)

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Share of places with the same highest logit."""
        same = outputs.argmax(self.class_dim) == reference.argmax(self.class_dim)
        return float(same.double().mean())

    def counted(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (places, classes) and labels (places) of the places that count."""
        kept = targets.flatten() != self.ignored
        return self._flat(outputs)[kept], targets.flatten()[kept].long()

    def _flat(self, outputs: Tensor) -> Tensor:
        return outputs.movedim(self.class_dim, -1).flatten(0, -2)


def right_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Returns how many places have the right class, and how many there are."""
    return (logits.argmax(1) == labels).sum(), len(labels)


def entropy_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Returns the summed cross entropy, and how many places there are."""
    total = functional.cross_entropy(logits.float(), labels, reduction="none").sum(
        dtype=torch.float64
    )
    return total, len(labels)

"""Classification: one integer label per sample, cross entropy, top-1 accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from amc_compress.learners.tasks.inputs import Inputs, count, outside
from amc_compress.learners.tasks.task import Measure, Task
from amc_env.errors import InputDataError

_TOP = 5


class Accuracy:
    """Share of samples whose highest logit is that of their label, exactly.

    Counted in integers: ``torchmetrics`` divides in float32, which knows only 24 bits.

    Args:
        reported: Whether the five highest logits are looked at too.
    """

    def __init__(self, *, reported: bool = False) -> None:
        self._reported = reported
        self._right: Tensor | int = 0
        self._right_of_top: Tensor | int | None = None
        self._seen = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Counts a batch: logits (N, classes) and labels (N,), or shares (N, classes)."""
        targets = targets if targets.ndim == 1 else targets.argmax(1)
        # On the device, so that nothing waits for it.
        self._right = self._right + (outputs.argmax(1) == targets).sum()
        self._seen += len(targets)
        if self._reported and outputs.shape[1] > _TOP:
            top = outputs.topk(_TOP, dim=1).indices == targets.unsqueeze(1)
            self._right_of_top = (self._right_of_top or 0) + top.sum()

    def compute(self) -> dict[str, float]:
        """Returns ``accuracy`` and, for more than five classes where asked for, ``top5``."""
        found = {"accuracy": int(self._right) / self._seen}
        if self._right_of_top is not None:
            found["top5"] = int(self._right_of_top) / self._seen
        return found


class Classification(Task):
    """One integer label per sample; logits of shape (N, classes).

    Training data may have the shares of all classes in place of a label, float (N, classes), as
    mixup makes them; the class with the largest share counts as the label.

    The score is top-1 accuracy; accuracy within the five highest logits is reported too.
    """

    name = "classification"
    metric = "accuracy"
    best_score = 1.0
    offered: ClassVar[Mapping[str, Measure]] = {"top5": Measure(best=1.0)}
    smooths = True
    tolerates_rounding = True

    def check_targets(self, inputs: Inputs, targets: Any, name: str = "") -> None:
        """Checks that there is one integer label per sample; see :meth:`Task.check_targets`."""
        if targets is None:
            super().check_targets(inputs, targets, name)
        if not isinstance(targets, Tensor):
            raise InputDataError(
                f"Expected {name}batches of (images, labels) tensors, got "
                f"{type(inputs).__name__} and {type(targets).__name__}."
            )
        if is_shares(targets) and len(targets) == count(inputs):
            return
        if targets.ndim != 1 or len(targets) != count(inputs) or targets.is_floating_point():
            shape = list(inputs.shape) if isinstance(inputs, Tensor) else [count(inputs), "..."]
            raise InputDataError(
                f"Expected one integer label per {name}image, got images {shape} with "
                f"labels {list(targets.shape)} of {targets.dtype}."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of logits (N, classes) and labels (N,), or shares (N, classes)."""
        # Losses are sums of small numbers, so they are always computed in fp32.
        return functional.cross_entropy(
            outputs.float(), targets, label_smoothing=self.label_smoothing
        )

    def summed_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum of the cross entropies."""
        return functional.cross_entropy(outputs.float(), targets, reduction="sum")

    def distillation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean over images of ``T^2 KL(softmax(teacher / T) || softmax(student / T))``.

        Hinton et al. 2015, section 2: soft targets' gradients scale with 1 / T^2, so the factor
        T^2 keeps their weight against the labels when T changes. (The paper uses the cross
        entropy, which differs by the teacher's entropy, a constant.)

        Args:
            student: Logits (N, classes).
            teacher: Logits (N, classes), without gradient.
            temperature: T; higher shows more of what the teacher thinks of the wrong classes.

        Raises:
            InputDataError: The shapes differ.
        """
        return divergence(student, teacher, temperature)

    def meter(self, *, reported: bool = False) -> Accuracy:
        """Returns a counter of right answers."""
        return Accuracy(reported=reported)

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that outputs are logits, and labels classes of the network."""
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(targets):
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputDataError(
                f"Expected the {who} to answer {len(targets)} images with logits of shape "
                f"[{len(targets)}, classes]{mode}, got {got}: return the logits, alone or first."
            )
        if targets.ndim > 1:
            if targets.shape != outputs.shape:
                raise InputDataError(
                    f"Expected the shares of {outputs.shape[1]} classes, which the {who} has, got "
                    f"{targets.shape[1]}: correct the labels or the number of classes."
                )
            return
        if (wrong := outside(targets, outputs.shape[1])) is not None:
            raise InputDataError(
                f"Labels must lie in 0..{outputs.shape[1] - 1}, the classes of the {who}, got "
                f"{wrong}: correct the labels or the number of classes."
            )

    def check_range(self, outputs: Tensor, targets: Tensor, name: str) -> None:
        """Checks that every label is a class of the network."""
        low, high = (int(value) for value in targets.aminmax())
        if low < 0 or high >= outputs.shape[1]:
            raise InputDataError(
                f"Expected {name}labels from 0 to {outputs.shape[1] - 1} (the network has "
                f"{outputs.shape[1]} outputs), got {low} to {high}."
            )

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Share of samples with the same highest logit."""
        return float((outputs.argmax(1) == reference.argmax(1)).double().mean())


def is_shares(targets: Tensor) -> bool:
    """Whether targets are shares of classes, float (N, classes), that add up to 1."""
    if targets.ndim != 2 or not targets.is_floating_point() or targets.shape[1] < 2:
        return False
    sums = targets.float().sum(1)
    return bool((targets >= 0).all()) and bool((sums - 1).abs().max() < 1e-3)


CLASSIFICATION = Classification()
"""The task where nothing else is said."""


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the loss of :meth:`Classification.distillation`, classes in dimension 1."""
    if student.shape != teacher.shape:
        raise InputDataError(
            f"The teacher answers with shape {list(teacher.shape)}, the student with "
            f"{list(student.shape)}: distillation needs the same classes in both."
        )
    return temperature**2 * functional.kl_div(
        functional.log_softmax(student.float() / temperature, dim=1),
        functional.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )

"""Detection: boxes, COCO's mean average precision; losses are the network's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.inputs import Call, Inputs, arguments, count
from amc_compress.learners.tasks.ready.boxes import (
    MeanAveragePrecision,
    fault_of,
    flat_box_of,
    likeness_of_boxes,
)
from amc_compress.learners.tasks.task import Measure, Meter, Task
from amc_env.errors import InputDataError


class Detection(Task):
    """Detectors by ``torchvision``'s convention.

    A batch is ``(images, targets)``: images a tensor (N, channels, height, width), or a list of
    tensors of any size; targets for each image a dictionary of ``boxes`` (n, 4), float, as x1, y1,
    x2, y2 in pixels, and ``labels`` (n,), int64, in loaders with ``collate_fn=lambda batch:
    tuple(zip(*batch))``. In training mode ``network(images, targets)`` returns a dictionary of
    losses, their sum is the loss; else ``network(images)`` returns for each image a dictionary of
    ``boxes``, ``labels`` and ``scores`` (n,).

    The score is COCO's mean average precision over overlaps from 0.5 to 0.95.
    """

    name = "detection"
    metric = "map"
    best_score = 1.0
    offered: ClassVar[Mapping[str, Measure]] = {
        "map50": Measure(best=1.0),
        "map75": Measure(best=1.0),
    }
    metric_in_training = False
    distils = False

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """Returns images and their targets, both in lists, images that are one tensor so."""
        if isinstance(batch, Mapping):
            inputs, targets = super().split(batch)
            return inputs, list(targets) if isinstance(targets, tuple) else targets
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            return super().split(batch)
        images, targets = batch
        if isinstance(images, list | tuple):
            images = Call(args=(list(images),))
        inputs, _ = super().split((images, None))
        return inputs, list(targets) if isinstance(targets, tuple) else targets

    def check_targets(self, inputs: Inputs, targets: Any, name: str = "") -> None:
        """Checks that there is a dictionary of boxes for each image."""
        if not isinstance(targets, list | None):
            raise InputDataError(
                f"Expected a list with a dictionary of boxes and labels for each image as {name}"
                f"targets, got {type(targets).__name__}: load with "
                f"collate_fn=lambda batch: tuple(zip(*batch))."
            )
        super().check_targets(inputs, targets, name)
        for item in targets or ():
            if (fault := fault_of(item, ("boxes", "labels"))) is not None:
                raise InputDataError(
                    f"Expected boxes and labels for each image in {name}targets, got {fault}."
                )
            if (box := flat_box_of(item)) is not None:
                raise InputDataError(
                    f"Expected {name}boxes as x1, y1, x2, y2 with x1 < x2 and y1 < y2, got {box}: "
                    f"correct it, or leave it out."
                )

    def ask(self, network: nn.Module, inputs: Inputs, targets: Any = None) -> Any:
        """Calls the network; in training mode with the targets."""
        args, kwargs = arguments(inputs)
        return network(*args, targets, **kwargs) if network.training else network(*args, **kwargs)

    def outputs(self, raw: Any) -> Any:
        """Returns all of it."""
        return list(raw) if isinstance(raw, tuple) else raw

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that outputs are boxes of each image, or in training mode losses."""
        if isinstance(outputs, Mapping):
            if not outputs or not all(
                isinstance(v, Tensor) and v.numel() == 1 for v in outputs.values()
            ):
                raise InputDataError(
                    f"Expected the {who} to return a dictionary of losses, one number each{mode}, "
                    f"got other values: return what torchvision's detectors do."
                )
            return
        if not isinstance(outputs, list) or len(outputs) != count(targets):
            got = (
                f"a list of {len(outputs)}" if isinstance(outputs, list) else type(outputs).__name__
            )
            raise InputDataError(
                f"Expected the {who} to return a list with the boxes of each of {count(targets)} "
                f"images, in training mode a dictionary of losses, got {got}{mode}: return what "
                f"torchvision's detectors do."
            )
        for item in outputs:
            if (fault := fault_of(item, ("boxes", "labels", "scores"))) is not None:
                raise InputDataError(
                    f"Expected the {who} to return boxes, labels and scores of each image, got "
                    f"{fault}."
                )

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of the losses that the network returns in training mode."""
        if not isinstance(outputs, Mapping):
            raise InputDataError(
                f"Expected a detector to return a dictionary of losses in training mode, got "
                f"{type(outputs).__name__}: return what torchvision's detectors do."
            )
        return torch.stack([value.float().reshape(()) for value in outputs.values()]).sum()

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``map`` and, where asked for, ``map50`` and ``map75``."""
        return MeanAveragePrecision(reported=reported)

    def agreement(self, outputs: Sequence[Any], reference: Sequence[Any]) -> float:
        """How much of the scores belongs to boxes that both have, mean over the images."""
        return float(likeness_of_boxes(outputs, reference).mean())

    @contextmanager
    def differentiable(self, network: nn.Module) -> Iterator[None]:
        """Sets a network to training mode in the block, its norms and dropout left as they are.

        Those are modules of ``torch.nn``, or have no children: what returns losses has.
        """
        modes = [(module, module.training) for module in network.modules()]
        for module, _ in modes:
            own = not type(module).__module__.startswith("torch.nn.")
            if module is network or (own and any(True for _ in module.children())):
                module.training = True
        try:
            yield
        finally:
            for module, was in modes:
                module.training = was

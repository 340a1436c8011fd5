"""Boxes of detectors: their checks, mean average precision, and how alike two sets are."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc_env.errors import InputDataError

Boxes = Mapping[str, Tensor]
"""``boxes`` (n, 4) as x1, y1, x2, y2 in pixels, ``labels`` (n,); of outputs ``scores`` (n,) too."""

MAX_DETECTIONS = 100
"""How many boxes of an image count, those with the highest scores, as in COCO."""

_SAME = 0.5  # overlap from which two boxes are of the same object
_QUIET = threading.Lock()


def fault_of(item: Any, keys: Sequence[str]) -> str | None:
    """Returns what is wrong with the boxes of an image, ``None`` if nothing is."""
    if not isinstance(item, Mapping) or not all(isinstance(item.get(k), Tensor) for k in keys):
        got = ", ".join(map(repr, item)) if isinstance(item, Mapping) else type(item).__name__
        return f"{got or 'nothing'}: give a dictionary with the tensors {', '.join(keys)}"
    boxes = item["boxes"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        return (
            f"boxes {list(boxes.shape)} of {boxes.dtype}: give floats of shape [boxes, 4], and "
            f"torch.zeros(0, 4) for an image without any"
        )
    for key in keys[1:]:
        if item[key].shape != boxes.shape[:1]:
            return f"{len(boxes)} boxes with {key} {list(item[key].shape)}: give one for each box"
    if item["labels"].is_floating_point():
        return f"labels of {item['labels'].dtype}: give the numbers of the classes as integers"
    return None


def flat_box_of(item: Boxes) -> list[float] | None:
    """Returns a box of an image that encloses nothing, or is not finite; ``None`` if none is so."""
    boxes = item["boxes"]
    wrong = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
    found: list[float] | None = boxes[wrong][0].tolist() if bool(wrong.any()) else None
    return found


class MeanAveragePrecision:
    """COCO's mean average precision, by ``pycocotools``.

    Mean over the classes that occur, over overlaps of 0.50, 0.55, ..., 0.95 (``map``), or of one
    (``map50``, ``map75``). Targets may have ``iscrowd`` and ``area``.

    (``torchmetrics`` calls the same code, and wants ``torchvision`` for it.)

    Args:
        reported: Whether ``map50`` and ``map75`` are wanted too.
    """

    def __init__(self, *, reported: bool = False) -> None:
        self._reported = reported
        self._images = 0
        self._found: list[dict[str, Any]] = []
        self._right: list[dict[str, Any]] = []

    def update(self, outputs: Sequence[Boxes], targets: Sequence[Boxes]) -> None:
        """Keeps the boxes of a batch of images."""
        for output, target in zip(outputs, targets, strict=True):
            self._images += 1
            self._found += self._records(output, {"score": output["scores"]}, len(self._found))
            more = {key: target[key] for key in ("iscrowd", "area") if key in target}
            self._right += self._records(target, more, len(self._right))

    def _records(self, item: Boxes, more: Mapping[str, Tensor], known: int) -> list[dict[str, Any]]:
        boxes = item["boxes"].detach().double().cpu()
        corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        labels = item["labels"].tolist()
        extra = {key: value.detach().cpu().tolist() for key, value in more.items()}
        return [
            {
                "id": known + k + 1,  # pycocotools takes a match with number 0 for none
                "image_id": self._images,
                "category_id": labels[k],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                **{key: values[k] for key, values in extra.items()},
            }
            for k, box in enumerate(corners)
        ]

    def compute(self) -> dict[str, float]:
        """Returns the metrics.

        Raises:
            InputDataError: If no image has a box in its targets.
        """
        if not any(not record["iscrowd"] for record in self._right):
            raise InputDataError(
                "Expected at least one box in the targets that detection is measured on, got none: "
                "give images with objects too."
            )
        precision = self._precision()
        values = {"map": _mean(precision)}
        if self._reported:
            values |= {"map50": _mean(precision[:1]), "map75": _mean(precision[5:6])}
        return values

    def _precision(self) -> np.ndarray[Any, Any]:
        """Returns precisions of shape (overlaps, recalls, classes); -1 for absent classes."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        classes = sorted({r["category_id"] for r in (*self._right, *self._found)})
        common = {
            "images": [{"id": k + 1} for k in range(self._images)],
            "categories": [{"id": k} for k in classes],
        }
        right, found = COCO(), COCO()
        right.dataset = common | {"annotations": [dict(r) for r in self._right]}
        found.dataset = common | {"annotations": [dict(r) for r in self._found]}
        # It prints; and what prints is the same for all threads.
        with _QUIET, contextlib.redirect_stdout(io.StringIO()):
            right.createIndex()
            found.createIndex()
            evaluation = COCOeval(right, found, "bbox")
            evaluation.params.areaRng = evaluation.params.areaRng[:1]  # boxes of all sizes
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.params.maxDets = [MAX_DETECTIONS]
            evaluation.evaluate()
            evaluation.accumulate()
        precision: np.ndarray[Any, Any] = evaluation.eval["precision"][:, :, :, 0, 0]
        return precision


def _mean(precision: np.ndarray[Any, Any]) -> float:
    return float(precision[precision > -1].mean())


def likeness_of_boxes(outputs: Sequence[Boxes], reference: Sequence[Boxes]) -> Tensor:
    """Returns how alike two detectors answer each image, in [0, 1], float64, shape (N,).

    Boxes of one class that overlap by half and more are the same, the highest scores first; then
    ``2 sum(smaller score of the same) / sum(scores of both)``, so that boxes with a high score
    decide, and the order says nothing. Two images without boxes are alike.
    """
    pairs = zip(outputs, reference, strict=True)
    return torch.tensor([_likeness(a, b) for a, b in pairs], dtype=torch.float64)


def _likeness(a: Boxes, b: Boxes) -> float:
    scores: list[float] = a["scores"].tolist()
    others: list[float] = b["scores"].tolist()
    size = sum(scores) + sum(others)
    if size <= 0:
        return float(len(a["boxes"]) == len(b["boxes"]))
    overlaps = _overlaps(a["boxes"], b["boxes"])
    overlaps[(a["labels"].cpu()[:, None] != b["labels"].cpu()[None]).numpy()] = 0.0
    common = 0.0
    for k in a["scores"].argsort(descending=True, stable=True).tolist():
        best = int(overlaps[k].argmax()) if others else 0
        if others and overlaps[k, best] >= _SAME:
            common += min(scores[k], others[best])
            overlaps[:, best] = 0.0
    return min(1.0, 2.0 * common / size)


def _overlaps(a: Tensor, b: Tensor) -> np.ndarray[Any, Any]:
    """Returns intersection over union, shape (len(a), len(b))."""
    from pycocotools import mask

    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    sides = [
        torch.cat([x[:, :2], x[:, 2:] - x[:, :2]], dim=1).detach().double().cpu().numpy()
        for x in (a, b)
    ]
    found: np.ndarray[Any, Any] = np.array(mask.iou(*sides, [0] * len(b)), dtype=np.float64)
    return found

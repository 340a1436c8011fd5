"""Mean average precision of a detector against slow formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tasks import boxes_of, detections_of, measured

from amc_compress.learners import make_task
from amc_env.errors import InputDataError


def slow_iou(a, b):
    sides = [max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
    both = sides[0] * sides[1]
    sizes = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return both / (sum(sizes) - both)


def slow_average_precision(outputs, targets, label, threshold):
    """The definition: sorted by score, matched greedily, 101 recalls."""
    wanted = [[b for b, k in zip(t["boxes"].tolist(), t["labels"].tolist(), strict=True)
               if k == label] for t in targets]  # fmt: skip
    total = sum(map(len, wanted))
    if not total:
        return None
    found = []
    for image, output in enumerate(outputs):
        rows = zip(output["scores"].tolist(), output["boxes"].tolist(), output["labels"].tolist(),
                   strict=True)  # fmt: skip
        found += [(-score, image, box) for score, box, k in rows if k == label]
    used, hits = set(), []
    for _, image, box in sorted(found, key=lambda item: item[:1]):
        free = [k for k in range(len(wanted[image])) if (image, k) not in used]
        best = max(free, key=lambda k: slow_iou(box, wanted[image][k]), default=None)
        hit = best is not None and slow_iou(box, wanted[image][best]) >= threshold
        if hit:
            used.add((image, best))
        hits.append(hit)
    right = np.cumsum(hits) if hits else np.zeros(0)
    precision, recall = right / np.arange(1, len(hits) + 1), right / total
    points = [max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)]
    return float(np.mean(points))


@pytest.mark.parametrize("seed", range(4))
def test_detection_measures_mean_average_precision(seed, capsys):
    targets = boxes_of(14, seed)
    outputs = detections_of(targets, seed)
    found = measured(make_task("detection"), outputs, targets)
    thresholds = [0.5 + 0.05 * k for k in range(10)]
    table = [
        [slow_average_precision(outputs, targets, label, t) for label in (1, 2)] for t in thresholds
    ]
    means = [np.mean([p for p in row if p is not None]) for row in table]
    assert found["map"] == pytest.approx(np.mean(means), abs=1e-6)
    assert found["map50"] == pytest.approx(means[0], abs=1e-6)
    assert found["map75"] == pytest.approx(means[5], abs=1e-6)
    assert 0.05 < found["map"] < 0.95
    assert capsys.readouterr().out == ""


def test_detection_without_boxes_is_measured_where_there_are_some_elsewhere():
    task = make_task("detection")
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    nothing = {**none, "scores": torch.zeros(0)}
    targets = boxes_of(3, 0)
    perfect = [{**t, "scores": torch.ones(len(t["boxes"]))} for t in targets]
    task.check([nothing, nothing], [none, none])
    task.check_targets(torch.zeros(2, 3, 8, 8), [none, none])
    meter = task.meter()
    meter.update([nothing, nothing], [none, none])
    with pytest.raises(InputDataError, match="at least one box"):
        meter.compute()
    meter.update([*perfect], targets)
    assert meter.compute()["map"] == 1.0
    meter.update([nothing], targets[:1])
    assert 0.0 < meter.compute()["map"] < 1.0
    assert task.agreement([nothing], [nothing]) == 1.0
    assert task.agreement([nothing], [perfect[0]]) == 0.0


def test_detectors_agree_by_scores_whatever_the_order():
    task = make_task("detection")
    output = detections_of(boxes_of(3, 0), 1)[1]
    assert len(output["boxes"]) > 2
    turned = {key: value.flip(0) for key, value in output.items()}
    assert task.agreement([output], [turned]) == pytest.approx(1.0)
    order = output["scores"].argsort(descending=True)[:1]
    best = {key: value[order] for key, value in output.items()}
    share = float(best["scores"].sum() / (best["scores"].sum() + output["scores"].sum()))
    assert task.agreement([best], [output]) == pytest.approx(2 * share, rel=1e-5)
    assert task.agreement([{**output, "labels": 3 - output["labels"]}], [output]) < 1.0

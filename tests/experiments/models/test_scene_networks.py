"""The U-Net and the detector: shapes, geometry against slow formulas, torchvision's convention."""

import itertools

import pytest
import torch
from torch import Tensor

from amc_compress.models import make_model
from amc_compress.models.scenes import fcos_small, unet_small
from amc_compress.models.scenes.boxes import generalised_iou, iou, survivors
from amc_compress.models.scenes.detector import STRIDES, Detector


def boxes_of(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator) * 20], 1)


def cells_in(box: Tensor, other: Tensor, how: str) -> float:
    """Area of intersection or hull, side by side."""
    area = 1.0
    for a, b in ((0, 2), (1, 3)):
        low, high = (max, min) if how == "both" else (min, max)
        area *= max(0.0, high(float(box[b]), float(other[b])) - low(float(box[a]), float(other[a])))
    return area


def slow_iou(box: Tensor, other: Tensor) -> float:
    shared = cells_in(box, other, "both")
    return shared / (cells_in(box, box, "both") + cells_in(other, other, "both") - shared)


def slow_giou(box: Tensor, other: Tensor) -> float:
    hull, shared = cells_in(box, other, "hull"), cells_in(box, other, "both")
    union = cells_in(box, box, "both") + cells_in(other, other, "both") - shared
    return slow_iou(box, other) - (hull - union) / hull


def test_overlaps_are_those_of_the_definitions() -> None:
    boxes, others = boxes_of(12, 0), boxes_of(12, 1)
    for i, j in itertools.product(range(12), range(12)):
        assert float(iou(boxes[i], others[j])) == pytest.approx(slow_iou(boxes[i], others[j]))
        found = float(generalised_iou(boxes[i], others[j]))
        assert found == pytest.approx(slow_giou(boxes[i], others[j]), abs=1e-6)
    assert torch.equal(iou(boxes[:, None], boxes[None]).diagonal(), torch.ones(12))


def test_suppression_is_the_greedy_one() -> None:
    boxes = torch.stack([boxes_of(40, seed) for seed in range(3)])
    labels = torch.randint(1, 3, (3, 40), generator=torch.Generator().manual_seed(0))
    found = survivors(boxes, labels, 0.3)
    for image in range(3):
        kept: list[int] = []
        for i in range(40):
            rivals = [k for k in kept if labels[image, k] == labels[image, i]]
            if all(slow_iou(boxes[image, i], boxes[image, k]) <= 0.3 for k in rivals):
                kept.append(i)
        assert found[image].nonzero().flatten().tolist() == kept
        assert 0 < len(kept) < 40


def maps_that_say(network: Detector, boxes: Tensor, labels: Tensor, scale: int) -> list[Tensor]:
    """Maps in which the cell at the middle of each box says exactly that box."""
    maps = [
        torch.full((1, network.n_found + 4, 64 // stride, 64 // stride), -20.0)
        for stride in STRIDES
    ]
    stride = STRIDES[scale]
    for box, label in zip(boxes, labels, strict=True):
        column, row = (int(c // stride) for c in (box[:2] + box[2:]) / 2)
        middle = torch.tensor([column + 0.5, row + 0.5]) * stride
        cell = maps[scale][0, :, row, column]
        cell[label - 1] = 5.0
        cell[-4:] = (torch.cat([middle - box[:2], box[2:] - middle]) / stride).log()
    return maps


@pytest.mark.parametrize("scale", [0, 1])
def test_boxes_are_read_from_the_maps(scale: int) -> None:
    network = fcos_small().eval()
    boxes = torch.tensor([[3.0, 4.0, 20.0, 30.0], [30.5, 22.25, 50.0, 47.0]])
    labels = torch.tensor([2, 10])
    (found,) = network.detections(tuple(maps_that_say(network, boxes, labels, scale)))
    order = found["labels"].argsort()
    assert torch.equal(found["labels"][order], labels)
    assert torch.allclose(found["boxes"][order], boxes, atol=1e-4)
    assert torch.allclose(found["scores"], torch.tensor(5.0).sigmoid().expand(2))


def test_maps_that_are_right_have_no_loss_and_others_have() -> None:
    network = fcos_small()
    # One cell only is near enough to the middle of a box of 2 x 2 pixels.
    boxes, labels = torch.tensor([[9.0, 9.0, 11.0, 11.0]]), torch.tensor([4])
    target = [{"boxes": boxes, "labels": labels}]
    maps = maps_that_say(network, boxes, labels, 0)
    maps[0][0, 3, 2, 2] = 20.0
    right = network.losses(tuple(maps), target)
    assert right.keys() == {"classification", "boxes"}
    assert float(sum(right.values()).detach()) == pytest.approx(0, abs=1e-4)
    maps[0][0, -4:, 2, 2] += 1
    assert float(network.losses(tuple(maps), target)["boxes"]) > 0.5
    other = [{"boxes": boxes, "labels": torch.tensor([5])}]
    maps[0][0, -4:, 2, 2] -= 1
    assert float(network.losses(tuple(maps), other)["classification"]) > 10


def test_the_detector_is_called_as_torchvisions_are() -> None:
    torch.manual_seed(0)
    network = make_model("fcos_small", n_classes=4, in_channels=3)
    images = torch.randn(3, 3, 64, 64)
    targets = [
        {"boxes": torch.tensor([[5.0, 5.0, 25.0, 30.0]]), "labels": torch.tensor([3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": boxes_of(4, 0), "labels": torch.tensor([1, 2, 3, 1])},
    ]
    losses = network.train()(images, targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    nothing = network(images[1:2], targets[1:2])
    assert float(nothing["boxes"].detach()) == 0
    with pytest.raises(ValueError, match="Expected targets in training mode"):
        network(images)
    with torch.no_grad():
        found = network.eval()(images)
        one_by_one = network(list(images))
    assert len(found) == 3
    for detections, same in zip(found, one_by_one, strict=True):
        assert detections.keys() == {"boxes", "scores", "labels"}
        assert set(detections["labels"].tolist()) <= {1, 2, 3}
        assert torch.equal(detections["scores"], detections["scores"].sort(descending=True).values)
        assert torch.equal(detections["boxes"], same["boxes"])
    assert [tuple(map_.shape) for map_ in network.body(images)] == [(3, 7, 16, 16), (3, 7, 8, 8)]


def test_the_detector_learns_two_images_by_heart() -> None:
    torch.manual_seed(0)
    network = fcos_small(n_classes=3).train()
    images = torch.randn(2, 1, 32, 32)
    targets = [
        {"boxes": torch.tensor([[2.0, 3.0, 14.0, 17.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[6.0, 4.0, 30.0, 27.0]]), "labels": torch.tensor([2])},
    ]
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        sum(network(images, targets).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()(images)
    for detections, target in zip(found, targets, strict=True):
        assert detections["labels"][0] == target["labels"][0]
        assert float(iou(detections["boxes"][0], target["boxes"][0])) > 0.5


def test_the_segmentation_network_gives_every_pixel_its_logits() -> None:
    network = make_model("unet_small", n_classes=5, in_channels=3).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 3, 64, 48))
    assert logits.shape == (2, 5, 64, 48)
    shares = unet_small().eval()(torch.zeros(1, 1, 64, 64)).softmax(1)
    assert 0.8 < float(shares[:, 0].mean().detach()) < 0.98  # an untrained one says "background"

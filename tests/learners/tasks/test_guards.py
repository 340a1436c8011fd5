"""What goes wrong with batches and networks is said in a sentence, before work is lost."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support import tasks as small
from torch import nn

from amc_compress.learners import make_task
from amc_compress.learners.tasks.guards import TokenIds, check_gradient, check_order
from amc_env.errors import InputDataError

IDS = small.whole(small.VOCABULARY, 4, 6, seed=1)


class SortedByLength(nn.Module):
    """Returns its rows in the order of their sums."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, images):
        return self.body(images[images.sum((1, 2, 3)).argsort()])


class MeanOfBatch(nn.Module):
    """Subtracts the mean over the batch, as a norm in training mode does."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, images):
        found = self.body(images)
        return found - found[:1]


@pytest.mark.parametrize("wrapper", [SortedByLength, MeanOfBatch])
def test_outputs_in_another_order_than_the_samples_are_said(wrapper):
    body = small.seeded(partial(small.vectors, 7), 0).eval()
    for name in ("classification", "regression"):
        check_order(body, make_task(name), small.images(6, 0))
        with pytest.raises(InputDataError, match="the samples of a batch in their order"):
            check_order(wrapper(body), make_task(name), small.images(6, 0))
    check_order(SortedByLength(body), make_task("regression"), small.images(1, 0))


def test_boxes_may_have_any_order_but_images_may_not():
    detector, task = small.seeded(small.Detector, 0).eval(), make_task("detection")
    check_order(detector, task, small.images(6, 0))
    with pytest.raises(InputDataError, match="in their order"):
        check_order(lambda images: detector(images[images.sum((1, 2, 3)).argsort()]), task,
                    small.images(6, 0))  # fmt: skip


def test_token_ids_beyond_the_vocabulary_are_said():
    network = small.seeded(partial(small.Tokens, 5), 0).eval()
    ids = TokenIds(network, IDS)
    ids.check(IDS)
    beyond = IDS.clone()
    beyond[2, 3] = 11
    message = r"Expected validation token ids from 0 to 10, the rows of the embedding 'embedding'"
    with pytest.raises(InputDataError, match=f"{message}, got 11: use the tokenizer"):
        ids.check(beyond, "validation ")
    with pytest.raises(InputDataError, match="got -1"):
        ids.check(beyond - 12, "validation ")
    with pytest.raises(InputDataError, match="from 0 to 10"):
        TokenIds(network, beyond)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_only_what_is_looked_up_has_a_vocabulary():
    network = small.seeded(partial(small.Tokens, 5), 0).eval()
    task = make_task("token-classification")
    inputs, _ = task.split({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    ids = TokenIds(network, inputs)
    other, _ = task.split({"input_ids": IDS, "attention_mask": torch.full_like(IDS, 99)})
    ids.check(other)
    TokenIds(small.seeded(partial(small.vectors, 5), 0).eval(), small.images(2, 0)).check(IDS)


def test_a_gradient_is_checked_without_using_up_the_graph():
    outputs = {"a": torch.ones(3, requires_grad=True), "b": torch.ones(2, requires_grad=True)}
    loss = outputs["a"].square().sum()
    check_gradient(loss, outputs, "the loss")
    loss.backward()
    assert outputs["a"].grad.tolist() == [2, 2, 2]
    check_gradient(torch.ones(()), {"a": torch.ones(3)}, "the loss")  # nothing is trained
    with pytest.raises(InputDataError, match="the loss to depend on the outputs"):
        check_gradient(torch.ones(()), outputs, "the loss")


def checked(name, outputs, targets):
    make_task(name).check(outputs, targets, "network")


MASKS = torch.zeros(2, 8, 8, dtype=torch.int64)
ITEM = {"boxes": torch.tensor([[1.0, 1, 2, 2]]), "labels": torch.tensor([1])}


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("segmentation", MASKS.float(), "the number of a class for each pixel"),
        ("segmentation", MASKS[:1], "2 samples with 1 targets"),
        ("multilabel", torch.full((2, 3), 2), "Expected 0 or 1 for each label"),
        ("multilabel", torch.zeros(2, 3, 4), r"of shape \[samples, labels\]"),
        ("regression", torch.tensor([1.0, float("nan")]), "Expected finite validation targets"),
        ("detection", [ITEM], "2 samples with 1 targets"),
        ("detection", MASKS, "a list with a dictionary of boxes"),
        ("detection", [ITEM, {"boxes": torch.zeros(0)}], "the tensors boxes, labels"),
        (
            "detection",
            [ITEM, {**ITEM, "boxes": torch.zeros(0)}],
            r"torch\.zeros\(0, 4\) for an image without any",
        ),
        ("detection", [ITEM, {**ITEM, "labels": torch.zeros(0)}], r"1 boxes with labels \[0\]"),
        ("detection", [ITEM, {**ITEM, "labels": torch.zeros(1)}], "as integers"),
        (
            "detection",
            [ITEM, {**ITEM, "boxes": torch.tensor([[1.0, 1, 1, 2]])}],
            r"x1 < x2 and y1 < y2, got \[1\.0, 1\.0, 1\.0, 2\.0\]",
        ),
    ],
)
def test_targets_that_a_task_cannot_use_are_said(name, targets, message):
    with pytest.raises(InputDataError, match=message):
        make_task(name).check_targets(small.images(2, 0), targets, "validation ")


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "message"),
    [
        ("segmentation", torch.zeros(2, 3, 4, 4), MASKS, r"\[2, 4, 4\], got \[2, 8, 8\]: resize"),
        ("segmentation", torch.zeros(2, 3), MASKS, "one more dimension"),
        ("segmentation", torch.zeros(2, 3, 8, 8), MASKS + 3, "from 0 to 2, .* or 255"),
        ("multilabel", torch.zeros(2, 4), torch.zeros(2, 3), r"of shape \[2, 3\]"),
        ("regression", torch.zeros(2, 4), torch.zeros(2, 3), r"the targets, \[2, 3\]"),
        ("token-classification", torch.zeros(2, 6, 3), IDS[:2], "from 0 to 2"),
        ("detection", [ITEM], [ITEM], "boxes, labels and scores"),
        ("detection", [], [ITEM], "a list of 0"),
        ("detection", {"loss": torch.zeros(3)}, [ITEM], "a dictionary of losses"),
        ("agreement", torch.zeros(2, 4), torch.zeros(2, 3), r"\[2, 3\] like the original"),
        ("agreement", (torch.zeros(2, 4),), {"a": torch.zeros(2, 3)}, "got NoneType"),
        ("embedding", torch.zeros(2, 4), torch.zeros(2, 3), r"\[2, 3\] like the original"),
    ],
)
def test_outputs_that_do_not_fit_are_said(name, outputs, targets, message):
    with pytest.raises(InputDataError, match=message):
        checked(name, outputs, targets)


def test_a_detector_that_returns_boxes_in_training_has_no_loss():
    with pytest.raises(InputDataError, match="a dictionary of losses in training mode"):
        make_task("detection").loss([ITEM], [ITEM])

"""The task that a network and its first batch look like, and why."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support import tasks as small
from torch import nn

from amc_compress.learners import guess_task
from amc_env.errors import InputDataError

IMAGES = small.images(3, 0)
IDS = small.whole(small.VOCABULARY, 3, 6, seed=1)
BINARY = torch.tensor([[1, 0, 1, 0, 0, 1, 1], [0] * 7, [1, 1, 0, 0, 0, 0, 0]])


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, first, second):
        return self.linear(first + second)


def tokens(width):
    return partial(small.Tokens, width)


CASES = {
    "classification": (partial(small.vectors, 7), (IMAGES, torch.tensor([0, 6, 2]))),
    "multilabel": (partial(small.vectors, 7), (IMAGES, BINARY)),
    "multilabel of floats": (partial(small.vectors, 7), [IMAGES, BINARY.float()]),
    "multilabel of one": (partial(small.vectors, 1), (IMAGES, torch.tensor([0, 1, 1]))),
    "regression": (partial(small.vectors, 7), (IMAGES, torch.randn(3, 7))),
    "regression of one": (partial(small.vectors, 1), (IMAGES, torch.randn(3))),
    "regression of images": (partial(small.pixels, 3), (IMAGES, IMAGES)),
    "segmentation": (partial(small.pixels, 5), (IMAGES, small.whole(5, 3, 8, 8, seed=0))),
    "segmentation of one": (partial(small.pixels, 1), (IMAGES, small.whole(2, 3, 1, 8, 8, seed=0))),
    "detection": (small.Detector, (list(IMAGES), tuple(small.boxes_of(3, 0)))),
    "language-modelling": (
        tokens(small.VOCABULARY),
        {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS},
    ),
    "language-modelling of pairs": (
        tokens(small.VOCABULARY),
        (IDS[:, :-1], IDS[:, 1:]),
    ),
    "token-classification": (tokens(5), {"input_ids": IDS, "labels": IDS % 5}),
    "agreement": (partial(small.vectors, 7), IMAGES),
    "agreement in a list": (partial(small.vectors, 7), [IMAGES]),
    "agreement of a dictionary": (tokens(5), {"input_ids": IDS}),
    "agreement of two": (Two, (torch.randn(3, 4), torch.randn(3, 4))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_task_is_guessed_and_said(case):
    build, batch = CASES[case]
    network = small.seeded(build, 0).train()
    task, reason = guess_task(network, batch)
    name = case.partition(" ")[0]
    assert task.name == name
    assert reason.startswith(f"Taking the task {name!r}, since the first batch has ")
    assert reason.endswith("; say otherwise with task=.")
    assert all(module.training for module in network.modules())
    inputs, targets = task.split(batch)
    task.check_targets(inputs, targets)
    bound = task.bind(network.eval(), "cpu")
    targets = bound.complete(inputs, targets)
    bound.check(bound.outputs(bound.ask(network, inputs)), targets)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((IMAGES, torch.eye(7)[:3]), r"outputs \[3, 7\] and targets \[3, 7\]: name the task"),
        ((IMAGES, torch.randn(3, 5)), r"targets \[3, 5\]: name the task"),
        ((IMAGES, "labels"), "targets str: name the task"),
        ((IMAGES[:, :2], torch.zeros(3)), "got RuntimeError: .*; name the task"),
    ],
)
def test_what_cannot_be_guessed_is_to_be_named(batch, message):
    with pytest.raises(InputDataError, match=message):
        guess_task(small.seeded(partial(small.vectors, 7), 0), batch)

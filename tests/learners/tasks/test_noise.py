"""The noise of a difference between two networks, against a paired bootstrap over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from amc_compress.learners.tasks.inputs import count, rows
from amc_compress.learners.tasks.noise import GROUPS, GroupedMeter, standard_error
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Task

Answers = tuple[Any, Any, Any]
"""Targets, and what two networks that err alike say."""


def pixels(draw: torch.Generator) -> Answers:
    masks = torch.randint(0, 3, (300, 6, 6), generator=draw)
    shared = torch.nn.functional.one_hot(masks, 3).movedim(3, 1).float()
    shared = shared + torch.randn(shared.shape, generator=draw)
    first, second = (shared + 0.5 * torch.randn(shared.shape, generator=draw) for _ in range(2))
    return masks, first, second


def classes(draw: torch.Generator) -> Answers:
    labels = torch.randint(0, 4, (600,), generator=draw)
    shared = 2 * torch.nn.functional.one_hot(labels, 4) + torch.randn(600, 4, generator=draw)
    first, second = (shared + 0.5 * torch.randn(600, 4, generator=draw) for _ in range(2))
    return labels, first, second


def numbers(draw: torch.Generator) -> Answers:
    values = torch.randn(400, 2, generator=draw)
    errors = torch.randn(400, 2, generator=draw)
    return values, values + errors, values + errors + 0.4 * torch.randn(400, 2, generator=draw)


def scenes(draw: torch.Generator) -> Answers:
    targets, found = [], ([], [])
    for _ in range(80):
        corner = 30 * torch.rand(3, 2, generator=draw)
        boxes = torch.cat([corner, corner + 12], 1)
        labels = torch.randint(0, 2, (3,), generator=draw)
        targets.append({"boxes": boxes, "labels": labels})
        shift = 3 * torch.randn(3, 1, generator=draw)
        for network in found:
            moved = boxes + shift + 1.5 * torch.randn(3, 1, generator=draw)
            scores = torch.rand(3, generator=draw)
            network.append({"boxes": moved, "labels": labels, "scores": scores})
    return targets, *found


def bootstrapped(task: Task, answers: Answers, draws: int, generator: torch.Generator) -> float:
    """The standard deviation of the difference over samples that are drawn anew."""
    targets, *networks = answers
    size, differences = count(targets), []
    for _ in range(draws):
        index = torch.randint(0, size, (size,), generator=generator)
        scores = []
        for outputs in networks:
            meter = task.meter()
            meter.update(rows(outputs, index), rows(targets, index))
            scores.append(task.score(meter.compute()))
        differences.append(scores[0] - scores[1])
    return float(torch.tensor(differences).std())


def in_groups(task: Task, outputs: Any, targets: Any, batch: int) -> GroupedMeter:
    meter = GroupedMeter(task)
    for start in range(0, count(targets), batch):
        own = slice(start, start + batch)
        meter.update(rows(outputs, own), rows(targets, own))
    return meter


@pytest.mark.parametrize(
    ("name", "make", "draws"),
    [
        ("classification", classes, 300),
        ("segmentation", pixels, 80),
        ("regression", numbers, 300),
        pytest.param("detection", scenes, 60, marks=pytest.mark.slow),
    ],
)
def test_groups_tell_the_error_that_a_bootstrap_over_samples_tells(
    name: str, make: Callable[[torch.Generator], Answers], draws: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    task, answers = make_task(name), make(generator)
    if name == "detection":
        pytest.importorskip("torchmetrics")
        pytest.importorskip("pycocotools")
    targets, *networks = answers
    meters = [in_groups(task, outputs, targets, 32) for outputs in networks]
    whole = task.meter()
    whole.update(networks[0], targets)
    assert meters[0].compute() == pytest.approx(whole.compute())
    error = standard_error(*(meter.scores() for meter in meters))
    expected = bootstrapped(task, answers, draws, generator)
    assert error == pytest.approx(expected, rel=0.5)  # both are estimates: a sixth is usual


def test_batches_of_any_size_make_the_same_groups() -> None:
    targets, outputs, _ = classes(torch.Generator().manual_seed(1))
    task = make_task("classification")
    assert (
        in_groups(task, outputs, targets, 7).scores()
        == in_groups(task, outputs, targets, 600).scores()
    )


def test_groups_that_say_nothing_are_left_out() -> None:
    task = make_task("classification")
    meter = in_groups(task, torch.eye(4), torch.arange(4), 4)
    assert len(meter.scores()) == 4
    assert standard_error(meter.scores(), meter.scores()) is None  # too few
    known: list[float | None] = [0.1 * (i % 2) for i in range(GROUPS)]
    expected = standard_error(known[2:], [0.0] * (GROUPS - 2))
    assert standard_error([None, None, *known[2:]], [0.0] * GROUPS) == expected

    def of_many(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        if len(outputs) < 10:
            raise ValueError("of ten samples or more")
        return 0.5

    task = make_task("classification", metric=of_many, higher_is_better=True)
    meter = in_groups(task, torch.randn(40, 4), torch.arange(40) % 4, 40)
    assert meter.compute()["of_many"] == 0.5
    assert set(meter.scores()) == {None}

"""Training with discrimination-aware losses (Zhuang et al. 2018, algorithm 1, line 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count as count_up
from itertools import islice

import torch
from torch import nn

from amc_compress.learners.candidates.preparation import Samples, training_batch
from amc_compress.learners.channel_pruning.discrimination.heads import Discriminator
from amc_compress.learners.tasks.inputs import Split, count
from amc_compress.learners.training.data_checks import Batches, seed_loader
from amc_compress.learners.training.descent import Descent
from amc_compress.learners.training.schedules import falling_linearly
from amc_env.errors import InputDataError

LEARNING_RATE = 0.01
HEAD_RATE = 0.1
"""Ten times the network's: a head starts from nothing."""

_WEIGHT_DECAY = 1e-4


def endless_batches(loader: Batches, samples: Samples, seed: int) -> Iterator[Split]:
    """Yields checked training batches for ever, epoch after epoch.

    Args:
        loader: Can be read more than once.
        samples: What the learner is prepared with.
        seed: Decides the order, for loaders that can be told.

    Raises:
        InputDataError: If a pass yields nothing to train on, or a batch does not fit the network.
    """
    for epoch in count_up():
        seed_loader(loader, seed, epoch)
        empty = True
        for batch in loader:
            for part in training_batch(batch, samples):
                if count(part) < 2:
                    continue  # batch norm cannot train on a single 1 x 1 feature map
                empty = False
                yield part
        if empty:
            raise InputDataError(
                "Expected training batches of two images or more, as often as they are read, got "
                f"none in pass {epoch + 1}; pass a DataLoader or a list rather than an iterator."
            )


def train_stage(
    discriminator: Discriminator,
    stage: int,
    batches: Iterator[Split],
    steps: int,
    report: Callable[[], object],
) -> None:
    """Trains the network on ``L_S^p + L_f``, in the last stage on ``L_f`` alone.

    SGD with momentum 0.9 and a rate that falls linearly to zero, so that the last steps settle.
    The heads of earlier stages learn on, from features whose gradient stops there: they keep up
    with the network, and have no say in it.

    Args:
        discriminator: Changed in place; afterwards in ``eval`` mode.
        stage: From 0.
        batches: Training batches.
        steps: How many to take.
        report: Called after each step.

    Raises:
        TrainingDivergedError: If the loss is not finite.
    """
    last = len(discriminator.places)
    heads: list[nn.Parameter] = [
        p for head in discriminator.heads[: stage + 1] for p in head.parameters()
    ]
    groups = [
        {"params": list(discriminator.network.parameters()), "lr": LEARNING_RATE},
        {"params": heads, "lr": HEAD_RATE},
    ]
    discriminator.requires_grad_(True).train()
    descent = Descent(
        torch.optim.SGD(groups, momentum=0.9, weight_decay=_WEIGHT_DECAY),
        falling_linearly(steps),
        lambda what, value: (
            f"Expected a finite {what} in the training of stage {stage + 1} of {last + 1}, got "
            f"{value}; start from finite weights, or train the network first."
        ),
    )
    for inputs, targets in islice(batches, steps):
        found = discriminator.losses(
            inputs, targets, {*range(stage + 1), last}, detached=range(min(stage, last))
        )
        descent.step(torch.stack(list(found.values())).sum())
        report()
    discriminator.requires_grad_(False).eval()

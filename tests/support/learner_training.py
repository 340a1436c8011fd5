"""Trainings of what learners make, that one process and several ones must carry out alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from amc_compress.learners import (
    ChannelPruning,
    CodebookQuantization,
    UniformQuantization,
    WeightSparsification,
    joint_compression,
    sparse_training,
)
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model
from amc_env import CompressionPlan
from support.shared_training import ONE_EPOCH
from support.small_training import weights


def with_every_learner(names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The weights after one epoch of networks that learners have made, with all their hooks."""
    found = {}
    for name in names:
        config = replace(ONE_EPOCH, learning_rate=0.01, sync_batch_norm=True)
        prepared = (make_model("residual"), EXAMPLE, make_data(96, 2), make_data(64, 3))
        learner = LEARNERS[name](*prepared, precision="fp32")
        middle = [d.choices[len(d.choices) // 2] for d in learner.decisions]
        plan = CompressionPlan.from_values(learner.decisions, middle)
        data = make_data(150, 1)
        if name in ("growing", "group-lasso"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # units hardly fade in so few steps
                network = sparse_training(
                    learner, plan, data, regulariser=name, epochs=3, config=config,
                    teacher=learner.original,
                )  # fmt: skip
        else:
            network = learner.compress(plan)
            learner.finetune(network, data, epochs=1, config=config, teacher=learner.original)
        found[name] = weights(network)
    return found


LEARNERS: dict[str, Callable[..., Any]] = {
    "growing": ChannelPruning,
    "group-lasso": ChannelPruning,
    "sparse": partial(WeightSparsification, schedule="gradual", schedule_frequency=1),
    "uniform": partial(UniformQuantization, weight_bits=4, activation_bits=8),
    "codebook": partial(CodebookQuantization, weight_bits=4),
    "joint": joint_compression,
}

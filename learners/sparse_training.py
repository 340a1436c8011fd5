"""Sparse training: what will be cut fades first, while the rest of the network takes over."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from amc_env.errors import PlanMismatchError
from amc_env.plan import CompressionPlan
from learners.base import Batches
from learners.candidates import limited_threads
from learners.channel_pruning.learner import ChannelPruning
from learners.hooks import TrainingHook
from learners.proxy import recalibrate
from learners.regularisers import (
    DEFAULT_CEILING,
    DEFAULT_WEIGHT,
    GroupLassoPenalty,
    GrowingRegularisation,
)
from learners.training import TrainingConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

REGULARISERS = ("growing", "group-lasso")


def doomed_units(learner: ChannelPruning, plan: CompressionPlan) -> dict[str, Tensor]:
    """Returns the units that a plan cuts, sorted, for every group that loses some.

    Raises:
        PlanMismatchError: If the plan does not fit the network.
    """
    sizes = {group.name: group.size for group in learner.graph.groups}
    doomed = {}
    for name, kept in learner.kept_units(plan).items():
        stays = torch.zeros(sizes[name], dtype=torch.bool)
        stays[kept] = True
        doomed[name] = (~stays).nonzero()[:, 0]
    return doomed


def sparse_training(
    learner: ChannelPruning,
    plan: CompressionPlan,
    train_loader: Batches,
    *,
    regulariser: str = "growing",
    strength: float | None = None,
    epochs: int,
    config: TrainingConfig | None = None,
    teacher: nn.Module | None = None,
    hooks: Sequence[TrainingHook] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    writer: SummaryWriter | None = None,
) -> nn.Module:
    """Trains a copy of the original network until the units that a plan cuts have faded.

    Args:
        learner: Knows the network, and which units go.
        plan: Its keep ratios.
        train_loader: Training batches.
        regulariser: ``"growing"`` (:class:`GrowingRegularisation`) or ``"group-lasso"``
            (:class:`GroupLassoPenalty`, on the units that go).
        strength: Ceiling of the growing factor, or weight of the group lasso; their defaults if
            ``None``.
        epochs: Passes over the training data.
        config: All other settings.
        teacher: Network to distil from.
        hooks: Further ones, see ``learners.hooks``.
        checkpoint_dir: Where to save after every epoch.
        resume: Whether to continue from there.
        progress: Whether to show a progress bar.
        writer: TensorBoard writer.

    Returns:
        A network of the original's shapes in ``eval`` mode, for :func:`cut_after`.

    Raises:
        PlanMismatchError: If the plan does not fit the network or cuts nothing.
        ValueError: If there is no such regulariser.
    """
    if regulariser not in REGULARISERS:
        raise ValueError(f"Unknown regulariser {regulariser!r}; choose one of {REGULARISERS}.")
    if strength is not None and not strength > 0:
        raise ValueError(f"Expected strength above 0, got {strength}.")
    doomed = doomed_units(learner, plan)
    if not doomed:
        raise PlanMismatchError("Expected a plan that cuts something: nothing would fade.")
    penalty: TrainingHook
    if regulariser == "growing":
        penalty = GrowingRegularisation(learner.traced, doomed, ceiling=strength or DEFAULT_CEILING)
    else:
        penalty = GroupLassoPenalty(learner.traced, doomed, weight=strength or DEFAULT_WEIGHT)
    network = copy.deepcopy(learner.original)
    learner.finetune(
        network,
        train_loader,
        epochs=epochs,
        teacher=teacher,
        hooks=(penalty, *hooks),
        config=config,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        progress=progress,
        writer=writer,
    )
    return network


def cut_after(learner: ChannelPruning, network: nn.Module, plan: CompressionPlan) -> nn.Module:
    """Cuts the units of a plan out of a network that was trained to do without them.

    No least-squares repair: its moments are those of the original network.

    Args:
        learner: The one that :func:`sparse_training` had.
        network: What :func:`sparse_training` returned; not changed.
        plan: The same plan.

    Returns:
        A really smaller network, in ``eval`` mode, with new batch-norm statistics.

    Raises:
        PlanMismatchError: If the plan does not fit the network.
        ValueError: If the network has not the original's shapes.
    """
    cut = learner.traced.slice(learner.kept_units(plan), network).eval()
    with limited_threads(learner.threads):
        recalibrate(cut, learner._data.recalibration, torch.float32)
    return cut

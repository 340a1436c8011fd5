"""Sparse training: shrinks the units that will be cut while the rest adapts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from amc_compress.learners.channel_pruning.decisions import check_channels_alone
from amc_compress.learners.channel_pruning.gradual.regularisers import (
    DEFAULT_CEILING,
    DEFAULT_WEIGHT,
    GroupLassoPenalty,
    GrowingRegularisation,
    unit_norms,
)
from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches
from amc_compress.learners.training.hooks import TrainingHook
from amc_env.errors import PlanMismatchError
from amc_env.plan import CompressionPlan
from amc_env.validation.checks import check_known, checked

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

REGULARISERS = ("growing", "group-lasso")
HARDLY_FADED = 0.4
"""Share of the norm from which on :func:`sparse_training` warns."""


def units_to_remove(learner: ChannelPruning, plan: CompressionPlan) -> dict[str, Tensor]:
    """Returns the units that a plan cuts, sorted, for every group that loses some.

    Raises:
        PlanMismatchError: If the plan does not fit the network.
    """
    check_channels_alone(learner.decisions, "sparse training")
    sizes = {group.name: group.size for group in learner.graph.groups}
    removed = {}
    for name, kept in learner.kept_units(plan).items():
        stays = torch.zeros(sizes[name], dtype=torch.bool)
        stays[kept] = True
        removed[name] = (~stays).nonzero()[:, 0]
    return removed


@checked
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
    """Trains a copy of the original network while the units that a plan cuts fade.

    Epochs before the end of the fading cannot win as the best one: with ``"growing"`` those before
    the factor is at its ceiling, with ``"group-lasso"`` all but the last. How small the units are
    by then depends on rate, strength and steps; what is guaranteed is a warning if they are not.

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
        hooks: Further ones, see ``amc_compress.learners.training.hooks``.
        checkpoint_dir: Where to save after every epoch.
        resume: Whether to continue from there.
        progress: Whether to show a progress bar.
        writer: TensorBoard writer.

    Returns:
        A network of the original's shapes in ``eval`` mode and float32, for :func:`cut_after`.

    Raises:
        PlanMismatchError: If the plan does not fit the network or cuts nothing.
        ValueError: If there is no such regulariser, or the training is too short for it.

    Warns:
        UserWarning: If the units of a channel group have kept more than ``HARDLY_FADED`` of their
            norm: cutting them takes away what the network still uses. Not an error, as the
            training is done and fine-tuning may bring back what is lost.
    """
    check_known("regulariser", regulariser, REGULARISERS)
    if strength is not None and not strength > 0:
        raise ValueError(f"Expected strength above 0, got {strength}.")
    removed = units_to_remove(learner, plan)
    if not removed:
        raise PlanMismatchError("Expected a plan that cuts something: nothing would fade.")
    penalty: TrainingHook
    if regulariser == "growing":
        penalty = GrowingRegularisation(
            learner.traced, removed, ceiling=strength or DEFAULT_CEILING
        )
    else:
        penalty = GroupLassoPenalty(learner.traced, removed, weight=strength or DEFAULT_WEIGHT)
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
    _warn_if_hardly_faded(learner, network, removed)
    return network


def faded(learner: ChannelPruning, network: nn.Module, units: Mapping[str, Tensor]) -> float:
    """Returns the share of their norm that units have kept, of the group that kept most.

    Args:
        learner: Knows the original network.
        network: One of the same shapes.
        units: Channel group -> units of it.
    """
    shares = [0.0]
    for group, chosen in units.items():
        before, after = (
            unit_norms(learner.traced, n, group).cpu()[chosen].norm().item()
            for n in (learner.original, network)
        )
        shares.append(after / before if before > 0.0 else 0.0)
    return max(shares)


def _warn_if_hardly_faded(
    learner: ChannelPruning, network: nn.Module, removed: Mapping[str, Tensor]
) -> None:
    if (share := faded(learner, network, removed)) > HARDLY_FADED:
        warnings.warn(
            f"Expected the channels that are to be cut to have faded, but those of one group have "
            f"{share:.0%} of their norm left, and the network still uses them: train longer, with "
            f"a higher learning rate or a larger strength, or compress without sparse training.",
            stacklevel=3,
        )


@checked
def cut_after(learner: ChannelPruning, network: nn.Module, plan: CompressionPlan) -> nn.Module:
    """Cuts the units of a plan out of a network that was trained to do without them.

    No least-squares repair: its moments are those of the original network.

    Args:
        learner: The one that :func:`sparse_training` had.
        network: What :func:`sparse_training` returned; not changed.
        plan: The same plan.

    Returns:
        A really smaller network, in ``eval`` mode, with new batch-norm statistics, in the types of
        the network that the learner was given.

    Raises:
        PlanMismatchError: If the plan does not fit the network.
        ValueError: If the network has not the original's shapes.
    """
    cut = learner.traced.slice(learner.kept_units(plan), network).eval()
    learner.recalibrate(cut)
    return learner.form.hand_back(cut)

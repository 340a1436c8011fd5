"""Discrimination-aware channel pruning: keeps channels that discriminate the classes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.preparation import Samples
from amc_compress.learners.channel_pruning.criteria import Criterion
from amc_compress.learners.channel_pruning.discrimination.heads import Discriminator
from amc_compress.learners.channel_pruning.discrimination.places import LossPlaces, find_places
from amc_compress.learners.channel_pruning.discrimination.selection import (
    GatedWeights,
    GreedyOptions,
    GroupLoss,
    greedy_order,
)
from amc_compress.learners.channel_pruning.discrimination.training import (
    endless_batches,
    train_stage,
)
from amc_compress.learners.channel_pruning.learner import ChannelOptions, ChannelPruning
from amc_compress.learners.channel_pruning.ranking import read_or_made
from amc_compress.learners.tasks.inputs import Split, moved
from amc_env.errors import UntraceableModelError
from amc_env.support.progress import Progress
from amc_env.validation.checks import check_whole, checked

_BATCH = 128
_ADDITIONS = 16
"""Of a group where ``channels_per_step`` is not given: at most sixteen, however wide it is."""


@checked
@dataclass(frozen=True, kw_only=True)
class DiscriminationOptions(ChannelOptions):
    """What ``DiscriminationAwarePruning`` is told, ``train`` always.

    Attributes:
        criterion: Its own; no other can be chosen.
        train: Training batches, for the stages; can be read more than once.
        stages: Auxiliary losses wanted, the paper's P; fewer where a network has fewer places.
        block_steps: SGD steps of each of the P + 1 stages.
        layer_steps: Optimiser steps on the channels present after each addition.
        weight: Of the auxiliary loss against the relative reconstruction error, their lambda.
        channels_per_step: Channels added at a time; a sixteenth of the group, or more, if ``None``.
    """

    criterion: str | Criterion = "discrimination"
    stages: int = 3
    block_steps: int = 150
    layer_steps: int = 3
    weight: float = 1.0
    channels_per_step: int | None = None

    def __post_init__(self) -> None:
        if self.criterion != "discrimination":
            raise ValueError(
                "Discrimination-aware pruning has its own criterion; leave criterion out, or use "
                "ChannelPruning."
            )
        CandidateOptions.__post_init__(self)  # not that of ChannelOptions: it looks criteria up
        check_whole("stages", self.stages, 1)  # without an auxiliary loss there is ChannelPruning
        check_whole("block_steps", self.block_steps, 1)  # the heads have to learn
        check_whole("layer_steps", self.layer_steps, 0)
        if self.channels_per_step is not None:
            check_whole("channels_per_step", self.channels_per_step, 1)
        if not 0.0 <= self.weight < float("inf"):
            raise ValueError(
                f"Expected a finite weight >= 0 of the auxiliary loss, got {self.weight}."
            )

    def check_training(self) -> None:
        """Checks that there are batches: the stages always train."""
        if self.train is None:
            raise ValueError(
                "Expected training batches for the discrimination-aware losses, got none; pass "
                "train=loader."
            )


class DiscriminationAwarePruning(ChannelPruning):
    """Channel pruning whose units are chosen by Zhuang et al. 2018 (arXiv 1810.11809).

    Auxiliary losses at ``stages`` places, spread over the depth, train a copy of the network stage
    by stage. After each stage the channels read by its layers are added one by one, always the one
    with the largest gradient of reconstruction error plus auxiliary loss (their algorithms 1 and
    2), to the end: the order of addition is the ranking. Networks are then cut from the given
    weights and repaired as in :class:`ChannelPruning`; see ``docs/learners/discrimination.md``.
    Channels are selected on the calibration images. The options are those of
    :class:`DiscriminationOptions`.

    Attributes:
        places: Where the auxiliary losses sat.

    Raises:
        TrainingDivergedError: If a loss is not finite.
        UntraceableModelError: If no channel can be cut, or there is no place for a loss.
    """

    Options = DiscriminationOptions
    options: DiscriminationOptions
    places: LossPlaces

    def _rank(self, samples: Samples) -> dict[str, Tensor]:
        """Trains stage by stage and orders the units of each stage's layers."""
        network = copy.deepcopy(self.original).requires_grad_(False)
        layers = [layer.name for layer in self.graph.layers]
        self.places = find_places(network, samples.few(), layers, self.options.stages)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)  # dropout, and loaders without a generator of their own
            discriminator = Discriminator(
                network,
                self.places.places,
                _n_outputs(samples.probed.outputs),
                self._training_dtype,
                self.task,
            ).to(self.device)
            return self._run_stages(discriminator, samples)

    def _run_stages(self, discriminator: Discriminator, samples: Samples) -> dict[str, Tensor]:
        data = [Split(x, moved(y, self.device)) for x, y in samples.batches(_BATCH)]
        assert self.options.train is not None
        batches = endless_batches(self.options.train, samples, self.seed)
        slots = {g.name: read_or_made(self.traced, g.name) for g in self.graph.groups}
        n_stages = len(self.places.places) + 1
        greedy = {g.name: self._greedy(g.size) for g in self.graph.groups}
        additions = sum(greedy[g.name].additions(g.size) for g in self.graph.groups)
        total = n_stages * self.options.block_steps + additions
        ranking: dict[str, Tensor] = {}
        with Progress(total, "discriminate", shown=self.options.progress) as bar:
            for stage in range(n_stages):
                train_stage(discriminator, stage, batches, self.options.block_steps, bar.step)
                for group in self.graph.groups:
                    stages = {self.places.stage_of(slot.module) for slot in slots[group.name]}
                    # Read in several stages: chosen when the last of them has been trained.
                    if max(stages) != stage:
                        continue
                    parts = discriminator, self.original, slots[group.name], stages, data
                    problem = GroupLoss(*parts, self.options.weight)
                    weights = GatedWeights(discriminator.network, slots[group.name])
                    ranking[group.name] = greedy_order(
                        weights, problem, group.size, greedy[group.name], bar.step
                    )
        return {group.name: ranking[group.name] for group in self.graph.groups}

    def _greedy(self, size: int) -> GreedyOptions:
        per_step = self.options.channels_per_step or -(-size // _ADDITIONS)
        return GreedyOptions(self.options.layer_steps, per_step)


def _n_outputs(outputs: object) -> int:
    """Returns the width of the auxiliary heads, from what the network answers.

    Raises:
        UntraceableModelError: If a head could not answer the same.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise UntraceableModelError(
            "Expected a network whose output is one row of numbers per sample, which auxiliary "
            "classifiers can answer too, for discrimination-aware pruning; got another: use "
            "ChannelPruning with another criterion."
        )
    return int(outputs.shape[1])

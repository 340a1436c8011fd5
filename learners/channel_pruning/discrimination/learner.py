"""Discrimination-aware channel pruning: keeps channels that discriminate the classes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.base import Batches
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
from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_compress.learners.channel_pruning.ranking import read_or_made
from amc_compress.learners.numerics.layout import laid_out, layout_named
from amc_compress.learners.training.data_checks import count_outputs
from amc_env.progress import Progress
from amc_env.validation.checks import check_whole

_BATCH = 128
_ADDITIONS = 16
"""Of a group where ``channels_per_step`` is not given: at most sixteen, however wide it is."""


class DiscriminationAwarePruning(ChannelPruning):
    """Channel pruning whose units are chosen by Zhuang et al. 2018 (arXiv 1810.11809).

    Auxiliary losses at ``stages`` places, spread over the depth, train a copy of the network stage
    by stage. After each stage the channels read by its layers are added one by one, always the one
    with the largest gradient of reconstruction error plus auxiliary loss (their algorithms 1 and
    2), to the end: the order of addition is the ranking. Networks are then cut from the given
    weights and repaired as in :class:`ChannelPruning`; see ``docs/learners/discrimination.md``.

    Args:
        model: Any trained network; it is copied and never changed.
        example_input: One batch as the network takes it; only its shape matters.
        calibration: ``(images, labels)`` batches, from the training data; channels are selected
            on the first ``n_calibration`` of them.
        validation: Batches to evaluate candidates on; not from calibration or test data.
        train: Training batches, for the stages; can be read more than once.
        stages: Auxiliary losses wanted, the paper's P; fewer where a network has fewer places.
        block_steps: SGD steps of each of the P + 1 stages.
        layer_steps: Optimiser steps on the channels present after each addition.
        weight: Of the auxiliary loss against the relative reconstruction error, their lambda.
        channels_per_step: Channels added at a time; a sixteenth of the group, or more, if ``None``.
        **options: As :class:`ChannelPruning` takes them, except ``criterion``.

    Attributes:
        places: Where the auxiliary losses sat.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        TrainingDivergedError: If a loss is not finite.
        UntraceableModelError: If no channel can be cut, or there is no place for a loss.
        ValueError: If an option has no such value, or there is no ``train``.
    """

    places: LossPlaces

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        calibration: Batches,
        validation: Batches,
        *,
        train: Batches | None = None,
        stages: int = 3,
        block_steps: int = 150,
        layer_steps: int = 3,
        weight: float = 1.0,
        channels_per_step: int | None = None,
        **options: Any,
    ) -> None:
        if train is None:
            raise ValueError(
                "Expected training batches for the discrimination-aware losses, got none; pass "
                "train=loader."
            )
        if "criterion" in options:
            raise ValueError(
                "Discrimination-aware pruning has its own criterion; leave criterion out, or use "
                "ChannelPruning."
            )
        _check_options(stages, block_steps, layer_steps, weight, channels_per_step)
        self.stages = stages
        self.block_steps = block_steps
        self.layer_steps = layer_steps
        self.weight = weight
        self.channels_per_step = channels_per_step
        self._example = example_input
        self._progress = bool(options.get("progress", False))
        self._loader: Batches | None = train
        super().__init__(model, example_input, calibration, validation, train=train, **options)
        self._loader = None  # prepared: loaders do not always pickle

    def _rank(
        self, reference: nn.Module, images: Tensor, labels: Tensor, scorer: Criterion
    ) -> dict[str, Tensor]:
        """Trains stage by stage and orders the units of each stage's layers."""
        network = copy.deepcopy(reference).requires_grad_(False)
        probe = images[:2].to(self.device)
        layers = [layer.name for layer in self.graph.layers]
        self.places = find_places(network, probe, layers, self.stages)
        n_outputs = count_outputs(reference, probe)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)  # dropout, and loaders without a generator of their own
            discriminator = Discriminator(
                network, self.places.places, n_outputs, self._training_dtype
            ).to(self.device)
            return self._run_stages(discriminator, reference, images, labels, n_outputs)

    def _run_stages(
        self,
        discriminator: Discriminator,
        reference: nn.Module,
        images: Tensor,
        labels: Tensor,
        n_outputs: int,
    ) -> dict[str, Tensor]:
        parts = zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True)
        layout = layout_named(self._layout)
        data = [(laid_out(x.to(self.device), layout), y.to(self.device)) for x, y in parts]
        assert self._loader is not None
        batches = endless_batches(
            self._loader, self._example, n_outputs, self.device, self.seed, layout
        )
        slots = {g.name: read_or_made(self.traced, g.name) for g in self.graph.groups}
        n_stages = len(self.places.places) + 1
        greedy = {g.name: self._greedy(g.size) for g in self.graph.groups}
        additions = sum(greedy[g.name].additions(g.size) for g in self.graph.groups)
        steps = n_stages * self.block_steps + additions
        ranking: dict[str, Tensor] = {}
        with Progress(steps, "discriminate", shown=self._progress) as bar:
            for stage in range(n_stages):
                train_stage(discriminator, stage, batches, self.block_steps, bar.step)
                for group in self.graph.groups:
                    stages = {self.places.stage_of(slot.module) for slot in slots[group.name]}
                    # Read in several stages: chosen when the last of them has been trained.
                    if max(stages) != stage:
                        continue
                    problem = GroupLoss(
                        discriminator, reference, slots[group.name], stages, data, self.weight
                    )
                    weights = GatedWeights(discriminator.network, slots[group.name])
                    ranking[group.name] = greedy_order(
                        weights, problem, group.size, greedy[group.name], bar.step
                    )
        return {group.name: ranking[group.name] for group in self.graph.groups}

    def _greedy(self, size: int) -> GreedyOptions:
        per_step = self.channels_per_step or -(-size // _ADDITIONS)
        return GreedyOptions(self.layer_steps, per_step)


def _check_options(
    stages: int, block_steps: int, layer_steps: int, weight: float, channels_per_step: int | None
) -> None:
    check_whole("stages", stages, 1)  # without an auxiliary loss there is ChannelPruning
    check_whole("block_steps", block_steps, 1)  # the heads have to learn
    check_whole("layer_steps", layer_steps, 0)
    if channels_per_step is not None:
        check_whole("channels_per_step", channels_per_step, 1)
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"Expected a finite weight >= 0 of the auxiliary loss, got {weight}.")

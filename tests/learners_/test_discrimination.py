"""Discrimination-aware pruning: the contract of learners, and each part against something else."""

from __future__ import annotations

import pytest
import torch
from contracts.learner_contract import (
    EXAMPLE,
    NETWORKS,
    LearnerContract,
    make_data,
    make_model,
)
from torch import nn

from amc_env.errors import InputDataError, TrainingDivergedError, UntraceableModelError
from learners import DiscriminationAwarePruning
from learners.channel_pruning.discrimination_heads import AuxiliaryHead, Discriminator
from learners.channel_pruning.discrimination_places import Place, find_places
from learners.channel_pruning.discrimination_selection import (
    GatedWeights,
    GreedyOptions,
    GroupLoss,
    greedy_order,
    minimise,
)
from learners.tracing import trace

QUICK = {"block_steps": 2, "layer_steps": 1, "channels_per_step": 8}


class TestDiscriminationAwarePruning(LearnerContract):
    def make(self, model, example, calibration, validation, **options):
        return DiscriminationAwarePruning(
            model, example, calibration, validation, train=make_data(96, 1), **QUICK, **options
        )

"""Shared state of the stages: data, network, learner."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from amc_compress.config.run_config import RunConfig
from amc_compress.config.texts import is_own, size
from amc_compress.data import DataSplits, load_data
from amc_compress.data.batches import USUAL_BATCH
from amc_compress.data.given import GivenData
from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.learners.export.onnx_options import Integers, OnnxOptions, file_metadata
from amc_compress.learners.packing.example import described
from amc_compress.learners.tasks.task import Task as Purpose
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.given import made_agent
from amc_compress.runs.networks import example_of, load_original, trace_original
from amc_compress.runs.own_data import own_data
from amc_compress.runs.problem import Problem, make_problem
from amc_compress.runs.teachers import load_teacher

if TYPE_CHECKING:
    from amc_compress.agents.base import Agent
    from amc_compress.learners.base import Learner

# Images with fewer numbers than this (28 x 28 ones, say) are trained on one thread.
_MANY_PIXELS = 1000


def load_splits(
    config: RunConfig, talk: Callable[[str], None] | None = None
) -> DataSplits | GivenData:
    """Loads the data of a run; ``talk`` is told what was mapped or left out."""
    data = own_data(config, talk) if is_own(config.data) else _named_data(config)
    if talk is not None:
        for note in data.notes:
            talk(f"data: {note}")
    return data


def _named_data(config: RunConfig) -> DataSplits:
    return load_data(
        config.data,
        batch_size=config.batch_size or USUAL_BATCH,
        seed=config.seed,
        validation_size=config.validation_size,
        validation_split="tail" if config.validation_split == "tail" else "random",
        mean=config.mean,
        std=config.std,
        image_size=config.image_size,
        image_column=config.image_column,
        label_column=config.label_column,
        task=config.task,
        augment=config.augment,
        memory=size("--memory", config.memory) if config.memory else None,
        workers=config.data_workers,
    )


def stored_splits(
    folder: RunFolder, talk: Callable[[str], None] | None = None
) -> DataSplits | GivenData:
    """Loads the data that a run began with.

    Raises:
        RunFolderError: If they cannot be loaded, or are others now.
    """
    with folder.naming_options():
        data = load_splits(folder.config, talk)
    folder.check_facts(facts_of(data))
    return data


def facts_of(data: DataSplits | GivenData) -> DataFacts:
    """Returns what a run folder notes about its data."""
    return DataFacts(
        data.name,
        data.n_classes,
        data.image_shape,
        data.class_names,
        data.notes,
        dict(data.content),
        data.has_test,
        described(data.example) if data.image_shape is None else None,
    )


@dataclass
class Task:
    """A run folder with its data; networks are loaded when a stage asks for them."""

    folder: RunFolder
    data: DataSplits | GivenData
    progress: bool = True
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    onnx_preprocessing: bool = False
    onnx_integers: Integers | None = None

    @property
    def config(self) -> RunConfig:
        """The run's options."""
        return self.folder.config

    @cached_property
    def original(self) -> nn.Module:
        """The uncompressed network with its weights, in eval mode."""
        return load_original(self.folder)

    @cached_property
    def learner(self) -> Learner:
        """The prepared learner of the search."""
        given = self.folder.given
        if given is not None and given.learner is not None:
            return given.learner
        return self._prepared(self.original)

    def _prepared(self, network: nn.Module) -> Learner:
        return self.config.spec.prepare(
            self.data, network, task=self.purpose, progress=self.progress
        )

    @property
    def keeps_statistics(self) -> bool:
        """Whether batch norms keep their statistics in training, as the search has found out."""
        if self.folder.is_done("search"):
            return bool(self.folder.results("search").get("keeps_statistics"))
        return self.learner.keeps_statistics

    @cached_property
    def purpose(self) -> Purpose:
        """What the network is for: batches, loss, metric and score."""
        given = self.folder.given
        return self.config.spec.task(self.data.task) if given is None else given.task

    @cached_property
    def bound(self) -> Purpose:
        """The same, with the original network, whose answers some tasks compare with."""
        device = self.config.device
        return self.purpose.bind(copy.deepcopy(self.original).to(device), device)

    @cached_property
    def agent(self) -> Agent:
        """What searches."""
        given = self.folder.given
        return made_agent(given.agent if given and given.agent else self.config.agent)

    def channel_learner(self, network: nn.Module) -> ChannelPruning:
        """Prepares the run's learner on a network; the one of the search where it is the original.

        Only for learners that do nothing but cut channels.
        """
        learner = self.learner if network is self.original else self._prepared(network)
        if not isinstance(learner, ChannelPruning):
            raise TypeError(f"Expected a learner that cuts channels, got {type(learner).__name__}.")
        return learner

    @cached_property
    def teacher(self) -> nn.Module | None:
        """The network that teaches the smaller one, in eval mode; None without a teacher.

        The original, which is the default, teaches where the task has a loss for that.
        """
        given = self.folder.given
        if given is not None and given.teacher is not None:
            return given.teacher
        if self.config.teacher == "original":
            return self.original if self.purpose.distils else None
        return load_teacher(self.config, self.folder.facts, allow_pickle=self.folder.allow_pickle)

    @cached_property
    def problem(self) -> Problem:
        """What the search decides, and what its plans cost."""
        sample, options = example_of(self.folder), self.onnx_options
        return make_problem(self.config, trace_original(self.folder), exported=sample, onnx=options)

    @property
    def onnx_options(self) -> OnnxOptions:
        """The options of the export, with what the file says of classes and images."""
        data = self.data
        normalisation = getattr(data.test, "normalisation", None)
        if normalisation is None or data.image_shape is None:  # what a file could say is unknown
            return self.onnx
        metadata = file_metadata(data.class_names, normalisation, data.image_shape)
        return dataclasses.replace(
            self.onnx,
            metadata={**metadata, **self.onnx.metadata},
            preprocessing=normalisation if self.onnx_preprocessing else None,
        )


def use_threads(config: RunConfig, facts: DataFacts, *, training: bool) -> None:
    """Sets the processor threads of a stage.

    Args:
        config: ``threads`` decides where it is not 0.
        facts: About the data: threads that share a tiny image wait for each other longer than
            they work.
        training: Whether the stage works on whole batches, for which more threads are faster;
            the search takes one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shape = facts.image_shape
    cores = max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    many = training and (shape is None or math.prod(shape) >= _MANY_PIXELS)
    torch.set_num_threads(config.threads or (cores if many else 1))

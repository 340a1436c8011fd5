"""Shared state of the stages: data, network, learner; and early checks of the options."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from amc_compress.config.learner_options import check_options
from amc_compress.config.run_config import RunConfig
from amc_compress.config.values import own_cost_references
from amc_compress.data import DataSplits, load_data
from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.learners.export.onnx_options import OnnxOptions
from amc_compress.learners.layers.wide_layers import wide_layers_note
from amc_compress.learners.numerics.precision import check_device as check_computes
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.runs.folder import DataFacts, RunFolder
from amc_compress.runs.learner_factory import make_channel_learner, make_learner
from amc_compress.runs.networks import (
    build_with_weights,
    example_input,
    load_original,
    trace_original,
)
from amc_compress.runs.problem import Problem, check_feasible, make_problem
from amc_compress.runs.teachers import load_teacher
from amc_env import Budget, InputDataError
from amc_env.actions import ACTION_MAPPINGS
from amc_env.costs.costs import COSTS
from amc_env.reward import REWARDS, resolve_reward
from amc_env.validation.references import FORM, is_reference
from amc_env.validation.sentences import first_line

if TYPE_CHECKING:
    from amc_compress.learners.base import Learner

# Images with fewer numbers than this (28 x 28 ones, say) are trained on one thread.
_MANY_PIXELS = 1000


def load_splits(config: RunConfig, talk: Callable[[str], None] | None = None) -> DataSplits:
    """Loads the data of a run; ``talk`` is told what was mapped or left out."""
    data = load_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        validation_size=config.validation_size,
        validation_split="tail" if config.validation_split == "tail" else "random",
        mean=config.mean,
        std=config.std,
        image_size=config.image_size,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    if talk is not None:
        for note in data.notes:
            talk(f"data: {note}")
    return data


def facts_of(data: DataSplits) -> DataFacts:
    """Returns what a run folder notes about its data."""
    return DataFacts(data.name, data.n_classes, data.image_shape, data.class_names, data.notes)


@dataclass
class Task:
    """A run folder with its data; networks are loaded when a stage asks for them."""

    folder: RunFolder
    data: DataSplits
    progress: bool = True
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    onnx_preprocessing: bool = False

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
        return make_learner(self.config, self.data, self.original, progress=self.progress)

    def channel_learner(self, network: nn.Module) -> ChannelPruning:
        """Prepares the run's learner on a network; the one of the search where it is the original.

        Only for learners that do nothing but cut channels.
        """
        if network is self.original and isinstance(self.learner, ChannelPruning):
            return self.learner
        return make_channel_learner(self.config, self.data, network, progress=self.progress)

    @cached_property
    def teacher(self) -> nn.Module | None:
        """The network that teaches the smaller one, in eval mode; None without a teacher."""
        if self.config.teacher == "original":
            return self.original
        return load_teacher(self.config, self.folder.facts, allow_pickle=self.folder.allow_pickle)

    @cached_property
    def problem(self) -> Problem:
        """What the search decides, and what its plans cost."""
        return make_problem(self.config, trace_original(self.folder))


def check_search_options(config: RunConfig) -> None:
    """Rejects names that the search does not know, before any work is done.

    Raises:
        ValueError: If an agent, action mapping, reward, cost, criterion or proxy is unknown, or an
            option has no effect on the learner.
    """
    from amc_compress.agents import agent_from_label
    from amc_compress.learners.candidates.proxy import Proxy
    from amc_compress.learners.channel_pruning.criteria import make_criterion
    from amc_compress.runs.problem import stage_budgets

    check_options(config)
    agent_from_label(config.agent)
    make_criterion(config.criterion)
    if config.is_progressive:
        stage_budgets(Budget.parse(config.budget), config.stages or config.progressive)
    Proxy.parse(config.proxy, config.finetune_steps)
    if config.action not in ACTION_MAPPINGS:
        raise ValueError(
            f"Unknown --action {config.action!r}; expected one of {', '.join(ACTION_MAPPINGS)}."
        )
    if config.reward not in REWARDS and not is_reference(config.reward):
        raise ValueError(
            f"Unknown --reward {config.reward!r}; expected one of {', '.join(REWARDS)}, or "
            f"{FORM} for your own."
        )
    resolve_reward(config.reward)
    own = own_cost_references(config.cost)
    for cost in Budget.parse(config.budget).bounds:
        if cost not in COSTS and cost not in own and not config.cost_table:
            raise ValueError(
                f"Unknown cost {cost!r} in --budget; expected one of {', '.join([*COSTS, *own])}, "
                f"one from a table given by --cost-table (`amc latency-table` measures latency), "
                f"or one of your own, --cost {cost}=module:Class."
            )


def check_device(config: RunConfig) -> None:
    """Checks that the device exists.

    Raises:
        ValueError: If torch cannot use it.
    """
    check_computes(config.device)


def check_network(config: RunConfig, facts: DataFacts, *, with_budget: bool) -> tuple[str, ...]:
    """Builds the network, fits the given weights, and asks whether the budget can be met.

    Args:
        config: The options.
        facts: About the data.
        with_budget: Whether a search follows, so that there must be something to cut.

    Returns:
        Sentences for the user: what was done to make the network a plain float32 one, and,
        where a search follows, what to know about the costs of its plans.

    Raises:
        InfeasibleBudgetError: If no plan meets the budget.
        InputDataError: If the model is unknown, or the weights do not fit it.
        UntraceableModelError: If nothing of the network can be cut.
    """
    built = build_with_weights(
        config.model, facts, config.weights, config.model_args, allow_pickle=config.allow_pickle
    )
    model = built.network
    notes = tuple(
        f"{config.model}: {note}; the files of the run hold plain float32 networks"
        for note in built.notes
    )
    _check_forward(model, facts, config)
    if not with_budget:
        return notes
    example = example_input(facts)
    traced = trace(model, example, ignore=config.ignore)
    bytes_count = "bytes" in Budget.parse(config.budget).bounds
    check_feasible(config, make_problem(config, traced, example=example if bytes_count else None))
    remarks = traced.graph.remarks()
    if config.prunes or config.sparsifies:
        remarks = (*remarks, *wide_layers_note(traced.graph))
    return (*notes, *(f"note: {remark}" for remark in remarks))


def _check_forward(model: nn.Module, facts: DataFacts, config: RunConfig) -> None:
    try:
        with torch.no_grad():
            outputs = model(example_input(facts))
    except Exception as error:  # a network of the user's may raise anything
        raise InputDataError(
            f"The model {config.model!r} cannot read images of shape {facts.image_shape} "
            f"({first_line(error)}); choose a model made for images of that size."
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (1, facts.n_classes):
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise InputDataError(
            f"Expected {facts.n_classes} outputs per image from {config.model!r}, got {got}; the "
            f"data have {facts.n_classes} classes."
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
    many = training and math.prod(facts.image_shape) >= _MANY_PIXELS
    torch.set_num_threads(config.threads or (cores if many else 1) or 1)

"""The tasks of recipes' networks: a plan meets their budgets."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from support.libraries import installed
from support.selection import quick
from torch import nn

from amc_compress.comparison.searched import config_of
from amc_compress.comparison.task_table import TASKS
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.recipes.trained import gpt, vit
from amc_compress.recipes.wheels.minilm import MiniLM
from amc_compress.runs.problem import check_feasible, make_problem

IDS = torch.arange(2, 34).view(1, 32)


def language_model() -> tuple[nn.Module, Any]:
    library = installed("transformers")
    network = library.LlamaForCausalLM(library.LlamaConfig(**gpt._SHAPE))
    return network, {"input_ids": IDS, "labels": IDS}


def vision_transformer() -> tuple[nn.Module, Any]:
    installed("timm")
    return vit.deit_tiny(), torch.zeros(1, 3, 32, 32)


def embedder() -> tuple[nn.Module, Any]:
    return MiniLM(), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "minilm": embedder,
    "gpt": language_model,
    "vit": vision_transformer,
}
NAMES = [name for name, task in TASKS.items() if task.kind == "searched"]


@cache
def traced(recipe: str, branches: bool) -> TracedModel:
    network, example = NETWORKS[recipe]()
    return trace(network.eval(), example, branches=branches)


@pytest.mark.parametrize("name", quick(NAMES, "minilm-joint", "gpt-bits-4.5", "gpt-joint"))
def test_a_plan_meets_the_budget(name: str) -> None:
    config = config_of(TASKS[name])
    problem = make_problem(config, traced(name.partition("-")[0], config.depth))
    check_feasible(config, problem)
    assert len(problem.decisions) >= 12

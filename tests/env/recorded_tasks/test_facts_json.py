"""Facts about tasks as JSON: every kind of task comes back as it was."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.networks.random_graphs import random_graph
from support.selection import examples, quick

from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import make_model
from amc_env import CompressionEnv, CompressionError, CompressionPlan
from amc_env.costs.costs import COSTS, make_cost
from amc_env.costs.storage import StorageFormat
from amc_env.recorded_tasks.facts_json import task_from_json, task_to_json

TASKS = [
    *(f"amc/synthetic{kind}-v0" for kind in ("", "-bits", "-joint", "-density")),
    *(f"amc/digits-{kind}-v0" for kind in ("channels", "bits", "density", "joint")),
]


def through_text(graph, decisions, storage):
    return task_from_json(json.loads(json.dumps(task_to_json(graph, decisions, storage))))


@pytest.mark.parametrize("task", quick(TASKS, *TASKS[:5]))
def test_every_kind_of_task_comes_back_as_it_was(task):
    env = gym.make(f"amc_env:{task}").unwrapped
    before = (env.graph, env.decisions, getattr(env.learner, "storage", None))
    graph, decisions, storage = through_text(*before)
    assert (graph, decisions) == before[:2]
    assert list(graph.frozen) == list(env.graph.frozen)
    assert (storage is None) == (before[2] is None)
    assert task_to_json(graph, decisions, storage) == task_to_json(*before)

    rng = np.random.default_rng(0)
    plans = [env.decode(rng.random(env.n_decisions)) for _ in range(3)]
    for name in COSTS:
        cost = make_cost(name, graph, decisions, storage)
        for plan in [*plans, CompressionPlan.full(decisions)]:
            values = plan.values_for(decisions)
            assert cost(values) == env.costs[name](values)
        assert cost.original(decisions) == env.original_cost[name]
    again = SimpleNamespace(
        evaluate=env.learner.evaluate,
        graph=graph,
        decisions=decisions,
        original_score=env.learner.original_score,
        cost_models={name: make_cost(name, graph, decisions, storage) for name in COSTS},
    )
    observation, _ = CompressionEnv(again, env.budget).reset()
    np.testing.assert_array_equal(observation, env.reset()[0])


@pytest.mark.parametrize("model", quick(["resnet20", "mobilenet_v1", "mobilenet_v2"], "resnet20"))
def test_residual_and_depthwise_networks_come_back_as_they_were(model):
    network = make_model(model, n_classes=10, in_channels=3, image_size=32).eval()
    graph = trace(network, torch.zeros(1, 3, 32, 32)).graph
    assert any(layer.conv_groups > 1 for layer in graph.layers) == model.startswith("mobilenet")
    assert through_text(graph, (), None) == (graph, (), None)


@examples(40)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_random_graphs_come_back_as_they_were(seed, n_groups):
    graph, decisions = random_graph(seed, n_groups, 40, 3)
    assert through_text(graph, decisions, None) == (graph, decisions, None)


def test_a_storage_with_everything_comes_back_as_it_was():
    storage = StorageFormat(
        weight_bits={"a": 8, "b": 2.5},
        activation_bits={"b": 16},
        granularity="split",
        bucket_size=64,
        bytes_per_bucket=5.0,
        bytes_per_channel=4.0,
        codebook=True,
        bytes_per_layer=7.5,
        fixed_bytes=1 / 3,
        folded={"norm": "a"},
        densities={"b": 0.1},
        pattern="2:4",
        value_bits={"a": {2: ((0.1, 1.5), (1.0, 2.0)), 32: ((1.0, 27.0),)}},
    )
    assert through_text(*random_graph(0, 2, 8, 1), storage)[2] == storage


def document():
    return task_to_json(*random_graph(0, 2, 8, 1), StorageFormat())


def test_other_versions_are_rejected_with_what_to_do():
    with pytest.raises(CompressionError, match=r"version 1, got version 7; .*record the task"):
        task_from_json(document() | {"version": 7})


@pytest.mark.parametrize("other", [{}, [], None, "text", {"format": "compression-plan"}])
def test_other_documents_are_rejected_with_what_to_do(other):
    with pytest.raises(CompressionError, match=r"got something else; record the task again"):
        task_from_json(other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("graph"),
        lambda d: d["graph"].pop("layers"),
        lambda d: d["graph"]["layers"][0].pop("in_width"),
        lambda d: d["graph"]["layers"][0].update(in_width=None),
        lambda d: d["decisions"][0].update(kind="colour"),
        lambda d: d["decisions"][0].update(choices=[0.5, 0.25]),
        lambda d: d["decisions"][0].update(extra=1),
        lambda d: d["storage"].update(granularity="none"),
        lambda d: d["storage"].update(value_bits={"a": 3}),
        lambda d: d.pop("storage"),
    ],
)
def test_damaged_documents_are_rejected_with_what_to_do(damage):
    broken = document()
    damage(broken)
    with pytest.raises(CompressionError, match=r"damaged \(.*\); restore the file, or record"):
        task_from_json(broken)

"""The ready-made tasks, through Gymnasium only."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from support.selection import quick

from amc_env import CompressionPlan

ID = "amc_env:amc/digits-channels-v0"
BITS = "amc_env:amc/digits-bits-v0"
BOUNDS = {
    ID: {"macs": 0.3},
    BITS: {"mean_bits": 4 / 32},
    "amc_env:amc/digits-density-v0": {"density": 0.25},
    "amc_env:amc/digits-joint-v0": {"macs": 0.5, "bytes": 0.15},
}


@pytest.fixture(scope="module")
def env():
    return gym.make(ID)


@pytest.fixture(scope="module")
def task(request):
    return gym.make(request.param)


def rollout(env, actions):
    env.reset(seed=0)
    for action in actions:
        step = env.step(np.array([action], dtype=np.float32))
    return step


@pytest.mark.parametrize("task", quick(BOUNDS, ID), indirect=True)
def test_the_digits_tasks_pass_the_checker(task):
    check_env(task.unwrapped)


@pytest.mark.parametrize("task", quick(BOUNDS, ID, BITS), indirect=True)
def test_an_episode_ends_by_termination_within_the_budget(task):
    bounds = BOUNDS[f"amc_env:{task.spec.id}"]
    _, reward, terminated, truncated, info = rollout(task, [0.6] * task.unwrapped.n_decisions)
    assert terminated
    assert not truncated
    assert task.unwrapped.budget.bounds.keys() == bounds.keys()
    for cost, bound in bounds.items():
        assert info["cost_ratio"][cost] <= bound
    plan = CompressionPlan(info["plan"])
    assert reward == info["accuracy"] == task.unwrapped.evaluate(plan).score
    assert reward > 0.5


@pytest.mark.parametrize("task", quick(BOUNDS, ID), indirect=True)
def test_the_spec_round_trips_through_json_to_the_same_rollout(task):
    spec = gym.envs.registration.EnvSpec.from_json(task.spec.to_json())
    again = gym.make(spec)
    actions = np.random.default_rng(1).random(task.unwrapped.n_decisions)
    first, second = rollout(task, actions), rollout(again, actions)
    assert first[1] == second[1]
    assert first[4]["plan"] == second[4]["plan"]


@pytest.mark.slow
def test_options_of_bits_are_plain_values_and_arrive():
    env = gym.make(
        "amc_env:amc/digits-joint-v0",
        budget="bytes=0.3,macs=0.9",
        weight_bits=[3, 8],
        activation_bits=[4, 8],
        quantizer="codebook",
        pruning={"min_ratio": 0.5},
        quantization={"first_last_bits": None},
        n_validation=64,
    )
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json())).unwrapped
    kinds = {d.kind.name: d.choices for d in again.decisions}
    assert kinds["weight_bits"] == (3.0, 8.0)
    assert kinds["activation_bits"] == (4.0, 8.0)
    assert all(d.choices[0] >= 0.5 for d in again.decisions)
    layers = {d.target for d in again.decisions if d.kind.name == "weight_bits"}
    assert layers == {layer.name for layer in again.graph.layers}
    assert str(again.budget) == str(env.unwrapped.budget)


@pytest.mark.parametrize("kind", quick(["channels", "bits", "joint"], "channels"))
def test_repairs_and_steps_before_evaluation_arrive(kind):
    task, options = f"amc_env:amc/digits-{kind}-v0", {"n_validation": 64, "proxy": "none"}
    plain = gym.make(task, **options).unwrapped
    trained = gym.make(task, finetune_steps=2, **options).unwrapped
    plan = plain.uniform_plan()
    plain.evaluate(plan)
    trained.evaluate(plan)
    seconds = [env.learner.seconds.mean() for env in (plain, trained)]
    steps = seconds[1]["finetuning"]
    assert all(s.get("recalibration", 0.0) < steps / 5 for s in seconds)
    assert seconds[0].get("finetuning", 0.0) < steps / 5


@pytest.mark.parametrize("task_id", ["amc/digits-bits-v0", "amc/digits-joint-v0"])
def test_an_unknown_quantizer_is_rejected_before_anything_is_loaded(task_id):
    with pytest.raises(ValueError, match=r"Unknown quantizer 'ternary'.*codebook.*uniform"):
        gym.make(f"amc_env:{task_id}", quantizer="ternary", data="nowhere")


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "budget", "loss"),
    [("bits", "mean_bits=5/32", 0.02), ("joint", "macs=0.7,bytes=0.15", 0.15)],
)
def test_the_resnet_tasks_keep_most_of_the_accuracy(shared_data, kind, budget, loss):
    env = gym.make(
        f"amc_env:amc/resnet20-{kind}-v0",
        data=str(shared_data / "data" / "cifar10"),
        weights=str(shared_data / "checkpoints" / "resnet20_cifar10.safetensors"),
        budget=budget,
        activation_bits=16,
        n_validation=1000,
    ).unwrapped
    outcome = env.evaluate(env.uniform_plan())
    assert outcome.feasible
    assert outcome.score > env.learner.original_score - loss


def test_the_uniform_plan_beats_what_cutting_at_random_gives(env):
    bare = env.unwrapped
    uniform = bare.evaluate(bare.uniform_plan()).score
    rng = np.random.default_rng(0)
    random = [bare.evaluate(bare.decode(rng.random(bare.n_decisions))).score for _ in range(5)]
    assert uniform > np.mean(random) + 0.1


def test_an_unknown_option_is_rejected():
    with pytest.raises(TypeError, match="nonsense"):
        gym.make(ID, nonsense=1)


def test_a_network_without_shipped_weights_says_how_to_make_some():
    with pytest.raises(ValueError, match="amc train --model lenet --data digits"):
        gym.make("amc_env:amc/channels-v0", model="lenet")


def test_importing_the_environment_package_imports_no_learner_and_no_agent():
    code = (
        "import sys, amc_env; "
        "print([m for m in ('learners', 'agents', 'experiments', 'stable_baselines3') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_making_a_task_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    gym.make(ID)
    assert torch.equal(torch.rand(3), expected)

"""Single-file scripts in CleanRL's manner train on the tasks, knowing Gymnasium alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amc_compress.examples.single_file import ddpg_continuous_action as ddpg
from amc_compress.examples.single_file import ppo_continuous_action as ppo
from amc_compress.examples.single_file import vector_same_step
from amc_env import CompressionPlan

pytestmark = pytest.mark.skipif(
    not hasattr(gym.vector, "AutoresetMode"), reason="SAME_STEP needs Gymnasium >= 1.1"
)

TASK = "amc_env:amc/synthetic-v0"
LENGTH = 12
ABSOLUTE = "single-file-tests/absolute-v0"
"""The same task read so that an untrained policy, which asks for the middle, is not good already.

With the default mapping the middle is the uniform plan, hard to beat in a second of learning.
"""

if ABSOLUTE not in gym.registry:
    gym.register(
        ABSOLUTE,
        entry_point="amc_env.recorded_tasks.synthetic:make_synthetic",
        kwargs={"action": "absolute"},
    )

DDPG_FLAGS = [
    "--gamma=1", "--n-step=12", "--exploration-noise=0.2", "--learning-starts=300",
    "--actor-learning-rate=5e-4", "--hidden=64", "--batch-size=64", "--total-timesteps=1200",
]  # fmt: skip
PPO_FLAGS = [
    "--gamma=1", "--num-steps=60", "--initial-std=0.5", "--learning-rate=3e-3",
    "--total-timesteps=2400",
]  # fmt: skip


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def events(folder: Path) -> EventAccumulator:
    (file,) = folder.rglob("events.*")
    accumulator = EventAccumulator(str(file.parent))
    accumulator.Reload()
    return accumulator


def returns(folder: Path) -> np.ndarray:
    return np.array([event.value for event in events(folder).Scalars("charts/episodic_return")])


def assert_only_real_transitions(
    observations: np.ndarray, next_observations: np.ndarray, ends: np.ndarray, length: int
) -> None:
    """Checks one copy's transitions: position rises by one in each, episodes have one length.

    Args:
        observations: ``(steps, features)``; feature 0 is decisions made / all decisions.
        next_observations: Like the observations.
        ends: Whether the episode ended, ``(steps,)``.
        length: Decisions per episode.
    """
    position = np.arange(len(ends)) % length
    assert observations[:, 0] == pytest.approx(position / length)
    assert np.array_equal(ends, position == length - 1)
    assert next_observations[~ends, 0] == pytest.approx((position[~ends] + 1) / length)
    assert not next_observations[ends].any()  # all zeros after the last decision
    goes_on = ~ends[:-1]
    assert np.array_equal(next_observations[:-1][goes_on], observations[1:][goes_on])


@pytest.mark.parametrize("num_envs", [1, 3])
def test_ddpg_stores_every_step_of_every_copy_and_nothing_else(num_envs: int) -> None:
    steps = 10 * LENGTH * num_envs
    buffer = ddpg.main(
        ["--env-id", TASK, f"--num-envs={num_envs}", f"--total-timesteps={steps}",
         "--learning-starts=60", "--hidden=16", "--batch-size=8"]
    )  # fmt: skip
    assert len(buffer) == steps // num_envs
    for copy in range(num_envs):
        assert_only_real_transitions(
            buffer.observations[: len(buffer), copy],
            buffer.next_observations[: len(buffer), copy],
            buffer.terminations[: len(buffer), copy],
            LENGTH,
        )
    assert not buffer.truncations.any()


def test_a_reset_that_costs_a_step_would_be_noticed() -> None:
    envs = gym.make_vec(TASK, 1, vectorization_mode="sync")  # NEXT_STEP, Gymnasium's default
    envs.action_space.seed(0)
    observations, following, ends = [], [], []
    observation, _ = envs.reset(seed=0)
    for _ in range(3 * LENGTH):
        observations.append(observation[0].copy())
        observation, _, terminated, _, _ = envs.step(envs.action_space.sample())
        following.append(observation[0].copy())
        ends.append(terminated[0])
    columns = (np.array(observations), np.array(following), np.array(ends))
    first_episode = tuple(column[:LENGTH] for column in columns)
    assert_only_real_transitions(*first_episode, LENGTH)
    with pytest.raises(AssertionError):
        assert_only_real_transitions(*columns, LENGTH)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_ppo_learns_from_every_step_of_every_copy_and_nothing_else(num_envs: int) -> None:
    rollouts = ppo.main(
        ["--env-id", TASK, f"--num-envs={num_envs}", f"--total-timesteps={3 * 50 * num_envs}",
         "--num-steps=50", "--hidden=16"]
    )  # fmt: skip
    ends = torch.cat([rollout.ends for rollout in rollouts])
    assert ends.shape == (150, num_envs)
    expected = torch.arange(150) % LENGTH == LENGTH - 1
    assert torch.equal(ends.bool(), expected[:, None].expand(-1, num_envs))


def test_ddpg_logs_what_readers_of_cleanrl_expect(runs: Path) -> None:
    buffer = ddpg.main(
        ["--env-id", TASK, "--total-timesteps=360", "--learning-starts=120", "--seed=3"]
    )
    (folder,) = (runs / "amc_env:amc").iterdir()
    assert folder.name.startswith("synthetic-v0__ddpg_continuous_action__3__")
    tags = events(runs).Tags()
    assert set(tags["scalars"]) == {
        "charts/episodic_return", "charts/episodic_length", "charts/SPS",
        "losses/qf1_values", "losses/qf1_loss", "losses/actor_loss",
    }  # fmt: skip
    assert "hyperparameters/text_summary" in tags["tensors"]
    stored = buffer.rewards[: len(buffer)][buffer.terminations[: len(buffer)]]
    assert returns(runs) == pytest.approx(stored)
    episodes = events(runs).Scalars("charts/episodic_length")
    assert [(e.step, e.value) for e in episodes] == [(12 * i, 12.0) for i in range(1, 31)]


def test_ppo_logs_what_readers_of_cleanrl_expect(runs: Path) -> None:
    ppo.main(["--env-id", TASK, "--total-timesteps=480", "--num-steps=60"])
    tags = events(runs).Tags()
    assert set(tags["scalars"]) == {
        "charts/episodic_return", "charts/episodic_length", "charts/SPS", "charts/learning_rate",
        "losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/old_approx_kl",
        "losses/approx_kl", "losses/clipfrac", "losses/explained_variance",
    }  # fmt: skip
    assert "hyperparameters/text_summary" in tags["tensors"]
    assert len(returns(runs)) == 480 // LENGTH
    assert [e.step for e in events(runs).Scalars("losses/value_loss")] == [240, 480]
    rates = [e.value for e in events(runs).Scalars("charts/learning_rate")]
    assert rates == pytest.approx([1e-3, 5e-4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "off"),
    [(ddpg, DDPG_FLAGS, "--actor-learning-rate=0"), (ppo, PPO_FLAGS, "--learning-rate=0")],
)
def test_returns_rise_by_learning(
    script: ModuleType, flags: list[str], off: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenths = {}
    for name, extra in (("on", []), ("off", [off])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        script.main(["--env-id", ABSOLUTE, *flags, *extra])
        tenths[name] = [part.mean() for part in np.array_split(returns(tmp_path / name), 10)]
    # Seeds 1 to 6: DDPG ends at 0.58 to 0.65 (rises by 0.15; 0.41 to 0.51 unless it learns),
    # PPO at 0.58 to 0.64 (rises by 0.12; 0.40 to 0.44 unless it learns).
    assert tenths["on"][-1] > tenths["on"][0] + 0.1
    assert tenths["on"][-1] > tenths["off"][-1] + 0.06


@pytest.mark.slow
def test_ddpg_learns_to_swing_the_pendulum_up(runs: Path) -> None:
    ddpg.main(["--env-id=Pendulum-v1", "--total-timesteps=6000", "--hidden=64", "--batch-size=64"])
    # Seeds 1 to 3: below -1000 in the first, and -207, -446, -175 in the last 12 episodes.
    assert returns(runs)[:5].mean() < -900
    assert returns(runs)[-12:].mean() > -700


def test_a_time_limit_neither_ends_the_values_nor_leads_into_the_next_episode() -> None:
    buffer = ddpg.main(
        ["--env-id=Pendulum-v1", "--total-timesteps=400", "--learning-starts=380", "--hidden=16",
         "--batch-size=8"]
    )  # fmt: skip
    assert np.flatnonzero(buffer.truncations[:, 0]).tolist() == [199, 399]
    assert not buffer.terminations.any()
    last, start = buffer.next_observations[199, 0], buffer.observations[200, 0]
    assert not np.allclose(last, start, atol=0.05)
    # A pendulum's angle moves on by its speed, times 0.05 seconds.
    before = buffer.observations[199, 0]
    moved = np.arctan2(last[1], last[0]) - np.arctan2(before[1], before[0])
    assert np.sin(moved) == pytest.approx(np.sin(0.05 * last[2]), abs=1e-4)
    batch = buffer.sample(2000, 3, 0.5, np.random.default_rng(0))
    assert batch.discounts.min() > 0


def test_ppo_runs_on_the_pendulum_and_adds_what_follows_a_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ["--env-id=Pendulum-v1", "--num-envs=1", "--num-steps=200", "--total-timesteps=200"]
    rewards = {}
    for value in (0.0, 7.0):
        monkeypatch.setattr(ppo.Agent, "value", lambda _, x, v=value: x.mean(-1) * 0 + v)
        (rollout,) = ppo.main(flags)
        assert rollout.ends.flatten().tolist() == [0.0] * 199 + [1.0]
        rewards[value] = rollout.rewards.flatten()
    added = rewards[7.0] - rewards[0.0]
    assert added.tolist() == pytest.approx([0.0] * 199 + [0.99 * 7.0])


def test_transitions_over_several_steps_agree_with_sums_by_hand() -> None:
    envs = ddpg.make_envs(TASK, 2)
    buffer = ddpg.ReplayBuffer(30, envs)
    rng = np.random.default_rng(0)
    history = []
    for step in range(47):  # the ring is overwritten once
        rewards = rng.random(2).astype(np.float32)
        terminated, truncated = rng.random((2, 2)) < 0.1
        marks = step + np.array([[0.0], [0.5]]) * np.ones(22)
        buffer.add(marks, np.zeros((2, 1)), rewards, marks + 0.25, terminated, truncated)
        history.append((rewards, terminated, truncated))
    batch = buffer.sample(500, 4, 0.9, rng)
    seen = set()
    for i, mark in enumerate(batch.observations[:, 0].tolist()):
        first, copy = int(mark), int(2 * (mark % 1))
        total, discount = 0.0, 1.0
        for step in range(first, min(first + 4, 47)):
            rewards, terminated, truncated = history[step]
            total += discount * float(rewards[copy])
            discount *= 0.9
            if terminated[copy] or truncated[copy]:
                break
        assert batch.rewards[i].item() == pytest.approx(total, rel=1e-5)
        expected = 0.0 if history[step][1][copy] else discount
        assert batch.discounts[i].item() == pytest.approx(expected)
        assert batch.next_observations[i, 0].item() == step + 0.5 * copy + 0.25
        seen.add((first, copy))
    assert seen == {(first, copy) for first in range(17, 47) for copy in range(2)}


def test_advantages_agree_with_sums_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.rand((2, 9, 3), generator=generator)
    ends = (torch.rand((9, 3), generator=generator) < 0.2).float()
    last = torch.rand(3, generator=generator)
    nothing = torch.zeros(9, 3)
    rollout = ppo.Rollout(nothing, nothing, nothing, rewards, ends, values)
    advantages = ppo.advantages_of(rollout, last, gamma=0.9, lam=0.8)
    for copy in range(3):
        following = [*values[1:, copy].tolist(), last[copy].item()]
        for start in range(9):
            total, weight = 0.0, 1.0
            for t in range(start, 9):
                ended = bool(ends[t, copy])
                target = rewards[t, copy].item() + (0.0 if ended else 0.9 * following[t])
                total += weight * (target - values[t, copy].item())
                weight *= 0.9 * 0.8
                if ended:
                    break
            assert advantages[start, copy].item() == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_running_spread_is_that_of_everything_seen() -> None:
    rng = np.random.default_rng(0)
    spread = ppo.RunningSpread(2)
    batches = [rng.normal([3.0, -2.0], [0.5, 4.0], size=(n, 2)) for n in (1, 5, 2, 30)]
    for batch in batches:
        spread.update(batch)
    assert spread.mean == pytest.approx(np.concatenate(batches).mean(axis=0))
    assert spread.std == pytest.approx(np.concatenate(batches).std(axis=0))


@pytest.mark.parametrize("script", [ddpg, ppo])
def test_equal_seeds_give_equal_returns(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {ddpg: ["--learning-starts=60", "--hidden=16"], ppo: ["--num-steps=30", "--hidden=16"]}
    found = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        script.main(["--env-id", TASK, "--total-timesteps=240", f"--seed={seed}", *flags[script]])
        found[name] = returns(tmp_path / name).tolist()
    assert found["a"] == found["b"] != found["c"]


@pytest.mark.parametrize("script", [ddpg, ppo])
def test_actions_that_are_no_bounded_box_are_rejected(script: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"CartPole-v1 to have a bounded Box of actions"):
        script.main(["--env-id=CartPole-v1"])


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (ddpg, ["--num-envs=0"], "--num-envs from 1"),
        (ddpg, ["--num-envs=9", "--buffer-size=8"], "--num-envs from 1"),
        (ddpg, ["--n-step=0"], "--n-step and --batch-size >= 1"),
        (ppo, ["--total-timesteps=100"], "--total-timesteps to hold"),
        (ppo, ["--num-minibatches=0"], "--num-minibatches from 1"),
    ],
)
def test_flags_that_cannot_be_are_rejected_before_anything_runs(
    script: ModuleType, flags: list[str], message: str, runs: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        script.main(flags)
    assert not runs.exists()


@pytest.mark.parametrize("script", [ddpg, ppo])
def test_scripts_are_one_file_and_know_no_environment(script: ModuleType) -> None:
    text = Path(str(script.__file__)).read_text()
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported - sys.stdlib_module_names == {"gymnasium", "numpy", "torch"}
    assert "amc" not in text
    assert len(text.splitlines()) < 400


def test_a_script_runs_from_the_command_line_as_its_documentation_says(runs: Path) -> None:
    command = [sys.executable, str(ddpg.__file__), "--env-id", TASK, "--total-timesteps", "60"]
    done = subprocess.run(
        command, env=os.environ.copy(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"global_step={12 * i}" for i in range(1, 6)]
    assert len(returns(runs)) == 5


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_copies_in_lock_step_find_a_plan_within_the_budget(mode: str) -> None:
    accuracy, plan = vector_same_step.search(TASK, num_envs=3, episodes=4, mode=mode)
    env = gym.make(TASK).unwrapped
    outcome = env.evaluate(CompressionPlan(plan))
    assert outcome.score == pytest.approx(accuracy)
    assert outcome.cost_ratio["macs"] <= 0.5
    assert (accuracy, plan) == vector_same_step.search(TASK, num_envs=3, episodes=4)

"""Deep deterministic policy gradient (Lillicrap et al. 2016) in one file, on any Gymnasium id.

    python ddpg_continuous_action.py --env-id Pendulum-v1 --total-timesteps 10000
    tensorboard --logdir runs

It needs Gymnasium >= 1.1, NumPy, PyTorch and TensorBoard, and knows no particular environment.
Flags, run folder and tags are those that readers of CleanRL expect. Environments are reset within
the step that ends their episode (``AutoresetMode.SAME_STEP``), so every step of every copy is a
transition, and the observation that ended the episode is found in ``infos["final_obs"]``.

Other than in the paper: Gaussian instead of Ornstein-Uhlenbeck noise, no batch normalisation, no
weight decay, the action enters the critic's first layer, and returns over several steps if asked
(``--n-step``, as in D4PG, Barth-Maron et al. 2018).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter

T = TypeVar("T")
Env: TypeAlias = "gym.Env[Any, Any]"
VectorEnv: TypeAlias = "gym.vector.VectorEnv[Any, Any, Any]"


def flag(default: T, text: str) -> T:
    """Declares a field of :class:`Args` with its help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Args:
    """The command line: ``env_id`` is the flag ``--env-id``, and so on."""

    exp_name: str = flag(Path(__file__).stem, "middle part of the run folder's name")
    seed: int = flag(1, "seed of networks, noise, batches and environments")
    env_id: str = flag("Pendulum-v1", "Gymnasium id; of 'module:id' the module is imported first")
    total_timesteps: int = flag(10_000, "transitions to collect, all copies together")
    num_envs: int = flag(1, "copies of the environment")
    actor_learning_rate: float = flag(1e-4, "Adam's step for the policy")
    critic_learning_rate: float = flag(1e-3, "Adam's step for the action values")
    hidden: int = flag(256, "width of the two hidden layers of each network")
    buffer_size: int = flag(100_000, "transitions that the replay buffer keeps")
    gamma: float = flag(0.99, "discount")
    n_step: int = flag(1, "steps whose rewards are summed before values are trusted")
    tau: float = flag(0.005, "rate of the target networks")
    batch_size: int = flag(128, "transitions per update; there is one update per transition")
    exploration_noise: float = flag(0.1, "standard deviation, in half widths of the action space")
    learning_starts: int = flag(1_000, "transitions with uniformly random actions")

    def __post_init__(self) -> None:
        if not 1 <= self.num_envs <= self.buffer_size:
            raise ValueError(
                f"Expected --num-envs from 1 to --buffer-size ({self.buffer_size}), "
                f"got {self.num_envs}."
            )
        if min(self.n_step, self.batch_size) < 1:
            raise ValueError(
                f"Expected --n-step and --batch-size >= 1, got {self.n_step} and {self.batch_size}."
            )


def parse_args(arguments: Sequence[str] | None = None) -> Args:
    """Reads the flags; types and defaults are those of :class:`Args`."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for entry in fields(Args):
        parser.add_argument(
            "--" + entry.name.replace("_", "-"),
            type=type(entry.default),
            default=entry.default,
            help=entry.metadata["help"],
        )
    return Args(**vars(parser.parse_args(arguments)))


def make_envs(env_id: str, num_envs: int) -> VectorEnv:
    """Makes copies of an environment that are reset within the step that ends an episode.

    Raises:
        ValueError: If the action space is not a bounded box.
    """

    def make() -> Env:
        return gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))

    makers: list[Callable[[], Env]] = [make] * num_envs
    envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    space = envs.single_action_space
    if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
        raise ValueError(f"Expected {env_id} to have a bounded Box of actions, got {space}.")
    return envs


class Batch(NamedTuple):
    """Transitions over up to ``n_step`` steps.

    Args:
        observations: ``(batch, observation_size)``.
        actions: ``(batch, action_size)``, the first of each transition.
        rewards: ``(batch,)``, discounted sums.
        next_observations: ``(batch, observation_size)``, after the last step.
        discounts: ``(batch,)``, weight of what follows; 0 after a terminal state, where nothing is
            earned any more, but not after a time limit, where the episode would have gone on.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    discounts: Tensor


class ReplayBuffer:
    """The last steps of all copies; the oldest are overwritten.

    Args:
        capacity: Steps of each copy that fit.
        envs: The copies.
    """

    def __init__(self, capacity: int, envs: VectorEnv) -> None:
        observation_size = gym.spaces.flatdim(envs.single_observation_space)
        action_size = gym.spaces.flatdim(envs.single_action_space)
        rows = (capacity, envs.num_envs)
        self.capacity = capacity
        self.n_added = 0
        self.observations = np.zeros((*rows, observation_size), np.float32)
        self.actions = np.zeros((*rows, action_size), np.float32)
        self.rewards = np.zeros(rows, np.float32)
        self.next_observations = np.zeros((*rows, observation_size), np.float32)
        self.terminations = np.zeros(rows, np.bool_)
        self.truncations = np.zeros(rows, np.bool_)

    def __len__(self) -> int:
        return min(self.n_added, self.capacity)

    def add(
        self,
        observations: NDArray[Any],
        actions: NDArray[Any],
        rewards: NDArray[Any],
        next_observations: NDArray[Any],
        terminations: NDArray[Any],
        truncations: NDArray[Any],
    ) -> None:
        """Stores one step of every copy; each array is ``(num_envs, ...)``."""
        row = self.n_added % self.capacity
        n = len(rewards)
        self.observations[row] = observations.reshape(n, -1)
        self.actions[row] = actions.reshape(n, -1)
        self.rewards[row] = rewards
        self.next_observations[row] = next_observations.reshape(n, -1)
        self.terminations[row] = terminations
        self.truncations[row] = truncations
        self.n_added += 1

    def sample(self, size: int, n_step: int, gamma: float, rng: np.random.Generator) -> Batch:
        """Draws starts uniformly and follows each for ``n_step`` steps, or to the end before."""
        age = rng.integers(len(self), size=size)  # counted from the oldest row
        copies = rng.integers(self.rewards.shape[1], size=size)
        first = (self.n_added - len(self) + age) % self.capacity
        last, going = first.copy(), np.ones(size, np.bool_)
        rewards, discounts = np.zeros(size, np.float32), np.ones(size, np.float32)
        for step in range(n_step):
            row = (first + step) % self.capacity
            rewards += going * discounts * self.rewards[row, copies]
            discounts = np.where(going, gamma * discounts, discounts)
            last = np.where(going, row, last)
            going &= ~(self.terminations[row, copies] | self.truncations[row, copies])
            going &= age + step + 1 < len(self)
        discounts = discounts * ~self.terminations[last, copies]
        columns = (
            self.observations[first, copies],
            self.actions[first, copies],
            rewards,
            self.next_observations[last, copies],
            discounts.astype(np.float32),
        )
        return Batch(*map(torch.from_numpy, columns))


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Returns linear layers of these sizes with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Actor(nn.Module):
    """The deterministic policy; its tanh is stretched to the box of the actions."""

    def __init__(self, observation_size: int, box: gym.spaces.Box, hidden: int) -> None:
        super().__init__()
        low, high = (torch.as_tensor(b, dtype=torch.float32).flatten() for b in (box.low, box.high))
        self.half_width: Tensor
        self.centre: Tensor
        self.register_buffer("half_width", (high - low) / 2)
        self.register_buffer("centre", (high + low) / 2)
        self.net = mlp([observation_size, hidden, hidden, len(low)])

    def forward(self, observations: Tensor) -> Tensor:
        """Returns actions ``(batch, action_size)``."""
        return torch.tanh(self.net(observations)) * self.half_width + self.centre


class Critic(nn.Module):
    """The action value; it sees actions on a scale from -1 to 1."""

    def __init__(self, observation_size: int, actor: Actor, hidden: int) -> None:
        super().__init__()
        self.half_width: Tensor
        self.centre: Tensor
        self.register_buffer("half_width", actor.half_width)
        self.register_buffer("centre", actor.centre)
        self.net = mlp([observation_size + len(actor.centre), hidden, hidden, 1])

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Returns values ``(batch,)``."""
        scaled = (actions - self.centre) / self.half_width
        values: Tensor = self.net(torch.cat([observations, scaled], dim=1))
        return values.squeeze(1)


class Learner:
    """Actor, critic, their targets and one update of all four.

    Args:
        args: The command line.
        envs: What is to be learned; asked for its spaces alone.
    """

    def __init__(self, args: Args, envs: VectorEnv) -> None:
        self._args = args
        observation_size = gym.spaces.flatdim(envs.single_observation_space)
        box = envs.single_action_space
        assert isinstance(box, gym.spaces.Box)  # noqa: S101
        self.actor = Actor(observation_size, box, args.hidden)
        self.critic = Critic(observation_size, self.actor, args.hidden)
        self._target_actor = copy.deepcopy(self.actor)
        self._target_critic = copy.deepcopy(self.critic)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), args.actor_learning_rate)
        self._critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), args.critic_learning_rate
        )

    @torch.no_grad()
    def explore(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Returns noisy actions ``(num_envs, action_size)`` inside the box."""
        actor = self.actor
        actions = actor(torch.as_tensor(observations, dtype=torch.float32).flatten(1))
        noise = torch.randn_like(actions) * self._args.exploration_noise * actor.half_width
        low, high = actor.centre - actor.half_width, actor.centre + actor.half_width
        noisy: NDArray[Any] = (actions + noise).clamp(low, high).numpy()
        return noisy

    def update(self, batch: Batch) -> dict[str, float]:
        """Does one gradient step per network (Algorithm 1 of the paper); returns the losses."""
        with torch.no_grad():
            following = self._target_critic(
                batch.next_observations, self._target_actor(batch.next_observations)
            )
            targets = batch.rewards + batch.discounts * following
        values = self.critic(batch.observations, batch.actions)
        critic_loss = functional.mse_loss(values, targets)
        _step(self._critic_optimizer, critic_loss)
        actor_loss = -self.critic(batch.observations, self.actor(batch.observations)).mean()
        _step(self._actor_optimizer, actor_loss)
        self._follow(self._target_actor, self.actor)
        self._follow(self._target_critic, self.critic)
        return {
            "losses/qf1_values": values.mean().item(),
            "losses/qf1_loss": critic_loss.item(),
            "losses/actor_loss": actor_loss.item(),
        }

    @torch.no_grad()
    def _follow(self, target: nn.Module, source: nn.Module) -> None:
        for old, new in zip(target.parameters(), source.parameters(), strict=True):
            old.lerp_(new, self._args.tau)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def log_episodes(writer: SummaryWriter, infos: dict[str, Any], global_step: int) -> None:
    """Writes return and length of the episodes that this step ended."""
    if "final_info" not in infos:
        return
    episodes = infos["final_info"]["episode"]
    for index in np.flatnonzero(infos["_final_info"]):
        print(f"global_step={global_step}, episodic_return={episodes['r'][index]:.4f}")
        writer.add_scalar("charts/episodic_return", episodes["r"][index], global_step)
        writer.add_scalar("charts/episodic_length", episodes["l"][index], global_step)


def successors(next_observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[Any]:
    """Returns what followed the actions: at the end of an episode not the next one's start."""
    following = next_observations.copy()
    for index in np.flatnonzero(infos.get("_final_obs", ())):
        following[index] = infos["final_obs"][index]
    return following


def train(args: Args, writer: SummaryWriter) -> ReplayBuffer:
    """Trains a policy; returns the buffer with what was seen."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    envs = make_envs(args.env_id, args.num_envs)
    envs.action_space.seed(args.seed)
    learner = Learner(args, envs)
    buffer = ReplayBuffer(args.buffer_size // args.num_envs, envs)
    start, next_log = time.perf_counter(), args.learning_starts
    observations, _ = envs.reset(seed=args.seed)
    for global_step in range(args.num_envs, args.total_timesteps + 1, args.num_envs):
        if global_step <= args.learning_starts:
            actions = envs.action_space.sample()
        else:
            actions = learner.explore(observations).reshape(envs.action_space.shape)
        next_observations, rewards, terminations, truncations, infos = envs.step(actions)
        following = successors(next_observations, infos)
        buffer.add(observations, actions, rewards, following, terminations, truncations)
        observations = next_observations
        log_episodes(writer, infos, global_step)
        if global_step <= args.learning_starts:
            continue
        for _ in range(args.num_envs):
            batch = buffer.sample(args.batch_size, args.n_step, args.gamma, rng)
            losses = learner.update(batch)
        if global_step >= next_log:
            next_log += 100
            losses["charts/SPS"] = global_step / (time.perf_counter() - start)
            for tag, value in losses.items():
                writer.add_scalar(tag, value, global_step)
    envs.close()
    return buffer


def main(arguments: Sequence[str] | None = None) -> ReplayBuffer:
    """Trains as the command line says; everything is written to ``runs/``."""
    args = parse_args(arguments)
    run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
    with SummaryWriter(f"runs/{run_name}") as writer:
        rows = "\n".join(f"|{name}|{value}|" for name, value in asdict(args).items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        return train(args, writer)


if __name__ == "__main__":
    main()

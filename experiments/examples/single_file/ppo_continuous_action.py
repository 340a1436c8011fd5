"""Proximal policy optimisation (Schulman et al. 2017) in one file, on any Gymnasium id.

    python ppo_continuous_action.py --env-id Pendulum-v1 --total-timesteps 100000 --gamma 0.9
    tensorboard --logdir runs

It needs Gymnasium >= 1.1, NumPy, PyTorch and TensorBoard, and knows no particular environment.
Flags, run folder and tags are those that readers of CleanRL expect. Environments are reset within
the step that ends their episode (``AutoresetMode.SAME_STEP``), so every step of every copy is a
transition, and the observation that ended the episode is found in ``infos["final_obs"]``.

Changed from the paper: observations and rewards are scaled by their running spread over all copies
(with a spread per copy, as by Gymnasium's wrappers, it learned the pendulum worse), advantages are
normalised in each minibatch, gradients are clipped, and the learning rate falls to zero. Actions
are drawn on a scale from -1 to 1 on which 0 is the middle of the box, and are clipped to it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Normal
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
    total_timesteps: int = flag(100_000, "steps to collect, all copies together")
    num_envs: int = flag(4, "copies of the environment")
    num_steps: int = flag(256, "steps of each copy between two updates")
    learning_rate: float = flag(1e-3, "Adam's step at the start; it falls to zero")
    hidden: int = flag(64, "width of the two hidden layers of each network")
    initial_std: float = flag(1.0, "standard deviation of actions at the start, in half widths")
    gamma: float = flag(0.99, "discount")
    gae_lambda: float = flag(0.95, "lambda of the generalised advantage estimation")
    num_minibatches: int = flag(8, "minibatches per epoch")
    update_epochs: int = flag(10, "passes over the collected steps")
    clip_coef: float = flag(0.2, "how far the ratio of probabilities may count, from 1")
    ent_coef: float = flag(0.0, "weight of the entropy")
    vf_coef: float = flag(0.5, "weight of the value loss")
    max_grad_norm: float = flag(0.5, "norm to which gradients are clipped")

    def __post_init__(self) -> None:
        size = self.num_envs * self.num_steps
        if not 1 <= size <= self.total_timesteps:
            raise ValueError(
                f"Expected --total-timesteps to hold --num-envs x --num-steps = {size} >= 1 "
                f"steps, the least that is learned from; got {self.total_timesteps}."
            )
        if not 1 <= self.num_minibatches <= size // 2:
            raise ValueError(
                f"Expected --num-minibatches from 1 to half of the {size} steps between two "
                f"updates, got {self.num_minibatches}."
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
        env: Env = gym.make(env_id)
        if not isinstance(env.action_space, gym.spaces.Box) or not env.action_space.is_bounded():
            raise ValueError(
                f"Expected {env_id} to have a bounded Box of actions, got {env.action_space}."
            )
        env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.FlattenObservation(env))
        env = gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
        return gym.wrappers.ClipAction(env)

    makers: list[Callable[[], Env]] = [make] * num_envs
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


class RunningSpread:
    """Mean and standard deviation of everything seen so far (Chan et al. 1979).

    Args:
        shape: Shape of one sample.
    """

    def __init__(self, *shape: int) -> None:
        self.mean = np.zeros(shape)
        self._squares = np.zeros(shape)  # sum of squared distances from the mean
        self._count = 0

    @property
    def std(self) -> NDArray[Any]:
        """The standard deviation, never below 1e-4."""
        return np.sqrt(np.maximum(self._squares / max(self._count, 1), 1e-8))

    def update(self, samples: NDArray[Any]) -> None:
        """Takes ``(n, *shape)`` samples in."""
        n = len(samples)
        distance = samples.mean(axis=0) - self.mean
        self._squares += ((samples - samples.mean(axis=0)) ** 2).sum(axis=0)
        self._squares += distance**2 * (self._count * n / (self._count + n))
        self.mean += distance * (n / (self._count + n))
        self._count += n


def mlp(sizes: Sequence[int], last_gain: float) -> nn.Sequential:
    """Returns orthogonally initialised linear layers of these sizes with tanh between them."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(linear.weight, last_gain if index == len(sizes) - 2 else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Agent(nn.Module):
    """A Gaussian policy with a standard deviation per action, and a value.

    Args:
        args: The command line.
        envs: What is to be learned; asked for its spaces alone.
    """

    def __init__(self, args: Args, envs: VectorEnv) -> None:
        super().__init__()
        observation_size = gym.spaces.flatdim(envs.single_observation_space)
        action_size = gym.spaces.flatdim(envs.single_action_space)
        hidden = [observation_size, args.hidden, args.hidden]
        self.mean = mlp([*hidden, action_size], last_gain=0.01)
        self.log_std = nn.Parameter(torch.full((action_size,), args.initial_std).log())
        self._value = mlp([*hidden, 1], last_gain=1.0)

    def policy(self, observations: Tensor) -> Normal:
        """Returns the distribution of actions, ``(batch, action_size)``."""
        return Normal(self.mean(observations), self.log_std.exp())

    def value(self, observations: Tensor) -> Tensor:
        """Returns values ``(batch,)``."""
        values: Tensor = self._value(observations)
        return values.squeeze(-1)


class Rollout(NamedTuple):
    """Consecutive steps of all copies; first axis time, second copies.

    Args:
        observations: ``(num_steps, num_envs, observation_size)``.
        actions: ``(num_steps, num_envs, action_size)``.
        log_probabilities: Of the actions when they were drawn, ``(num_steps, num_envs)``.
        rewards: As scaled; at a time limit with the discounted value of the last observation.
        ends: 1 where an episode ended, in either way.
        values: Of the observations.
    """

    observations: Tensor
    actions: Tensor
    log_probabilities: Tensor
    rewards: Tensor
    ends: Tensor
    values: Tensor


def advantages_of(rollout: Rollout, last_values: Tensor, gamma: float, lam: float) -> Tensor:
    """Returns generalised advantage estimates (Schulman et al. 2016, Eq. 16).

    Args:
        rollout: The steps.
        last_values: Of the observations after the last step, ``(num_envs,)``.
        gamma: Discount.
        lam: The lambda of the paper.
    """
    advantages = torch.zeros_like(rollout.rewards)
    following, advantage = last_values, torch.zeros_like(last_values)
    for t in reversed(range(len(advantages))):
        goes_on = 1 - rollout.ends[t]
        delta = rollout.rewards[t] + gamma * goes_on * following - rollout.values[t]
        advantages[t] = advantage = delta + gamma * lam * goes_on * advantage
        following = rollout.values[t]
    return advantages


class Collector:
    """Steps the environments with the agent's policy and logs the episodes that end.

    Args:
        args: The command line.
        agent: Policy and value.
        envs: The copies.
        writer: Where returns are written.
    """

    def __init__(self, args: Args, agent: Agent, envs: VectorEnv, writer: SummaryWriter) -> None:
        self._args = args
        self._agent = agent
        self._envs = envs
        self._writer = writer
        self._seen = RunningSpread(gym.spaces.flatdim(envs.single_observation_space))
        self._earned = RunningSpread()
        self._discounted = np.zeros(args.num_envs)
        self.global_step = 0
        start, _ = envs.reset(seed=args.seed)
        self._seen.update(start)
        self.observations = self._scaled(start)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Returns the next ``num_steps`` steps of every copy."""
        steps = [self._step() for _ in range(self._args.num_steps)]
        return Rollout(*map(torch.stack, zip(*steps, strict=True)))

    def _step(self) -> Rollout:
        observations = self.observations
        policy = self._agent.policy(observations)
        actions = policy.sample()  # type: ignore[no-untyped-call]
        request = actions.numpy().reshape(self._envs.action_space.shape)
        following, rewards, terminations, truncations, infos = self._envs.step(request)
        ends = terminations | truncations
        scaled_rewards = self._scaled_rewards(rewards, ends)
        for index in np.flatnonzero(truncations & ~terminations):
            # A time limit is no end of the task: what would have followed counts.
            last = self._agent.value(self._scaled(infos["final_obs"][index]))
            scaled_rewards[index] += self._args.gamma * last
        self._seen.update(following)
        self.observations = self._scaled(following)
        self.global_step += self._args.num_envs
        self._log(infos)
        return Rollout(
            observations,
            actions,
            policy.log_prob(actions).sum(-1),  # type: ignore[no-untyped-call]
            scaled_rewards,
            torch.as_tensor(ends, dtype=torch.float32),
            self._agent.value(observations),
        )

    def _scaled(self, observations: NDArray[Any]) -> Tensor:
        scaled = (observations - self._seen.mean) / self._seen.std
        return torch.as_tensor(scaled.clip(-10.0, 10.0), dtype=torch.float32)

    def _scaled_rewards(self, rewards: NDArray[Any], ends: NDArray[Any]) -> Tensor:
        self._discounted = self._discounted * self._args.gamma + rewards
        self._earned.update(self._discounted)
        self._discounted[ends] = 0.0
        scaled = (rewards / self._earned.std).clip(-10.0, 10.0)
        return torch.as_tensor(scaled, dtype=torch.float32)

    def _log(self, infos: dict[str, Any]) -> None:
        if "final_info" not in infos:
            return
        episodes = infos["final_info"]["episode"]
        for index in np.flatnonzero(infos["_final_info"]):
            print(f"global_step={self.global_step}, episodic_return={episodes['r'][index]:.4f}")
            for tag, key in (("charts/episodic_return", "r"), ("charts/episodic_length", "l")):
                self._writer.add_scalar(tag, episodes[key][index], self.global_step)


class Learner:
    """Improves an agent by the clipped objective (paper, Eq. 7 and 9).

    Args:
        args: The command line.
        agent: What is improved.
        rng: Draws the minibatches.
    """

    def __init__(self, args: Args, agent: Agent, rng: np.random.Generator) -> None:
        self._args = args
        self._agent = agent
        self._rng = rng
        self._optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, eps=1e-5)

    def update(self, rollout: Rollout, last_values: Tensor, share_left: float) -> dict[str, float]:
        """Learns from one rollout; returns the last minibatch's losses under CleanRL's tags."""
        args = self._args
        rate = self._optimizer.param_groups[0]["lr"] = args.learning_rate * share_left
        advantages = advantages_of(rollout, last_values, args.gamma, args.gae_lambda)
        returns = advantages + rollout.values
        steps = [column.flatten(0, 1) for column in (*rollout, advantages, returns)]
        for _ in range(args.update_epochs):
            for minibatch in self._minibatches(len(steps[0])):
                losses = self._improve(*(column[minibatch] for column in steps))
        unexplained = (returns - rollout.values).var() / returns.var()
        losses["losses/explained_variance"] = 1.0 - unexplained.item()
        losses["charts/learning_rate"] = rate
        return losses

    def _minibatches(self, size: int) -> Iterator[Tensor]:
        order = torch.from_numpy(self._rng.permutation(size))
        return iter(order.tensor_split(self._args.num_minibatches))

    def _improve(
        self,
        observations: Tensor,
        actions: Tensor,
        old_log_probabilities: Tensor,
        _rewards: Tensor,
        _ends: Tensor,
        _values: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> dict[str, float]:
        args = self._args
        policy = self._agent.policy(observations)
        log_probabilities = policy.log_prob(actions).sum(-1)  # type: ignore[no-untyped-call]
        log_ratio = log_probabilities - old_log_probabilities
        ratio = log_ratio.exp()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()
        value_loss = 0.5 * (self._agent.value(observations) - returns).square().mean()
        entropy = policy.entropy().sum(-1).mean()  # type: ignore[no-untyped-call]
        loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._agent.parameters(), args.max_grad_norm)
        self._optimizer.step()
        with torch.no_grad():
            return {
                "losses/policy_loss": policy_loss.item(),
                "losses/value_loss": value_loss.item(),
                "losses/entropy": entropy.item(),
                "losses/old_approx_kl": -log_ratio.mean().item(),
                "losses/approx_kl": (ratio - 1 - log_ratio).mean().item(),
                "losses/clipfrac": ((ratio - 1).abs() > args.clip_coef).float().mean().item(),
            }


def train(args: Args, writer: SummaryWriter) -> list[Rollout]:
    """Trains an agent; returns what it saw."""
    torch.manual_seed(args.seed)
    envs = make_envs(args.env_id, args.num_envs)
    agent = Agent(args, envs)
    learner = Learner(args, agent, np.random.default_rng(args.seed))
    collector = Collector(args, agent, envs, writer)
    start = time.perf_counter()
    n_iterations = args.total_timesteps // (args.num_envs * args.num_steps)
    rollouts = []
    for iteration in range(n_iterations):
        rollouts.append(collector.collect())
        with torch.no_grad():
            last_values = agent.value(collector.observations)
        scalars = learner.update(rollouts[-1], last_values, 1.0 - iteration / n_iterations)
        scalars["charts/SPS"] = collector.global_step / (time.perf_counter() - start)
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, collector.global_step)
    envs.close()
    return rollouts


def main(arguments: Sequence[str] | None = None) -> list[Rollout]:
    """Trains as the command line says; everything is written to ``runs/``."""
    args = parse_args(arguments)
    run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
    with SummaryWriter(f"runs/{run_name}") as writer:
        rows = "\n".join(f"|{name}|{value}|" for name, value in asdict(args).items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        return train(args, writer)


if __name__ == "__main__":
    main()

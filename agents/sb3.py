"""DDPG on Stable-Baselines3, adapted to what compression episodes are.

Lillicrap et al. 2016 (DDPG) as used by He et al. 2018 (AMC, section 3.3). ``docs/agents/ddpg.md``
lists every deviation from SB3's defaults with its reason and measured effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from stable_baselines3 import DDPG as SB3DDPG
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.base import DEFAULT_REJUDGE, Agent
from agents.buffers import BroadcastBuffer, ExecutedActionBuffer, MonteCarloBuffer
from agents.determinism import isolated_randomness, torch_threads
from agents.exploration import Exploration, ExploringEnv
from agents.openings import plan_from_layer_errors
from agents.rollout import Search
from amc_env import CompressionPlan


@dataclass(frozen=True)
class Recipe:
    """Everything that may be tuned; shared by all SB3 agents.

    Args:
        credit: ``"monte_carlo"``: every step's target is the final reward (n-step returns over
            the whole episode, gamma = 1). ``"broadcast"``: AMC's copied reward, moving baseline
            and one-step bootstrap.
        actor_learning_rate: Adam step of the actor.
        critic_learning_rate: Adam step of the critic.
        hidden: Width of the two hidden layers of actor and critic.
        batch_size: Transitions per update.
        tau: Rate of the target networks.
        buffer_episodes: Capacity of the replay buffer.
        updates_per_step: Gradient steps per decision, done at the end of an episode.
        pretrain: Further gradient steps per warm-up decision, done once after the warm-up.
        scale_rewards: Whether centred rewards are divided by their spread in the warm-up.
        layer_errors: Whether episode 1 tries the plan that the learner's ``layer_errors()``
            suggest, where it has them.
        exploration: Warm-up, noise and elites.
    """

    credit: str = "monte_carlo"
    actor_learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-3
    hidden: int = 300
    batch_size: int = 64
    tau: float = 0.01
    buffer_episodes: int = 1000
    updates_per_step: int = 2
    pretrain: int = 0
    scale_rewards: bool = True
    layer_errors: bool = False
    exploration: Exploration = field(default_factory=Exploration)

    def __post_init__(self) -> None:
        if self.credit not in ("monte_carlo", "broadcast"):
            raise ValueError(f"Expected credit 'monte_carlo' or 'broadcast', got {self.credit!r}.")
        if min(self.actor_learning_rate, self.critic_learning_rate) <= 0.0:
            raise ValueError("Expected learning rates > 0.")
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"Expected 0 < tau <= 1, got {self.tau}.")
        counts = (self.hidden, self.batch_size, self.buffer_episodes, self.updates_per_step)
        if min(counts) < 1 or self.pretrain < 0:
            raise ValueError(
                "Expected hidden, batch_size, buffer_episodes and updates_per_step >= 1 and "
                "pretrain >= 0."
            )


class TwoLearningRates(OffPolicyAlgorithm):
    """Gives the actor a learning rate of its own; to be mixed into an SB3 actor-critic.

    SB3 has one rate and writes it into all optimisers before every round of updates.
    """

    actor_learning_rate: float

    def _update_learning_rate(
        self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer
    ) -> None:
        super()._update_learning_rate(optimizers)
        policy: Any = self.policy
        for group in policy.actor.optimizer.param_groups:
            group["lr"] = self.actor_learning_rate


class _DDPG(TwoLearningRates, SB3DDPG):
    """SB3's DDPG with two learning rates."""


class _AfterWarmup(BaseCallback):
    """As soon as the warm-up is over: fixes the scale of the rewards, does the first updates.

    Stops the search nowhere and counts nothing: SB3 calls ``on_step`` before it stores a
    transition, so everything here happens between two episodes.
    """

    def __init__(self, at_step: int, updates: int, scale_rewards: bool) -> None:
        super().__init__()
        self._at_step = at_step
        self._updates = updates
        self._scale_rewards = scale_rewards

    def _on_rollout_end(self) -> None:
        if self.num_timesteps != self._at_step:
            return
        assert isinstance(self.model, OffPolicyAlgorithm)
        buffer = self.model.replay_buffer
        assert isinstance(buffer, ExecutedActionBuffer)
        if self._scale_rewards:
            buffer.fix_reward_scale()
        if self._updates:
            self.model.train(self._updates, self.model.batch_size)

    def _on_step(self) -> bool:
        return True


def make_recipe(options: dict[str, Any]) -> Recipe:
    """Builds a recipe from flat options; exploration's options stand beside the others.

    Raises:
        TypeError: If an option is unknown.
    """
    inner = {f.name for f in fields(Exploration)}
    outer = {f.name for f in fields(Recipe)} - {"exploration"}
    if unknown := sorted(options.keys() - inner - outer):
        raise TypeError(f"Unknown option {unknown}; expected some of {sorted(inner | outer)}.")
    exploration = Exploration(**{k: v for k, v in options.items() if k in inner})
    return Recipe(exploration=exploration, **{k: v for k, v in options.items() if k in outer})


class SB3Agent(Agent):
    """An off-policy actor-critic of SB3 that plays compression episodes.

    A subclass names the algorithm; schedule, credit, exploration and storage are the same for all.

    Args:
        rejudge: See :class:`Agent`.
        **options: Fields of :class:`Recipe` and of :class:`Exploration`.
    """

    algorithm: ClassVar[type[TwoLearningRates]]

    def __init__(self, *, rejudge: int = DEFAULT_REJUDGE, **options: Any) -> None:
        super().__init__(rejudge=rejudge)
        self.recipe = make_recipe(options)
        self._model: TwoLearningRates | None = None

    @property
    def model(self) -> TwoLearningRates:
        """The SB3 model of the last search, to look into or to save.

        Raises:
            ValueError: Before the first search.
        """
        if self._model is None:
            raise ValueError("There is no model before the first search.")
        return self._model

    def run(self, search: Search) -> None:  # noqa: D102
        with isolated_randomness():
            env = ExploringEnv(search, self.recipe.exploration, self._openings(search))
            with torch_threads(1):
                self._model = model = self._make_model(search, env)
                env.scalars = lambda: _losses(model.logger)
                length = search.env.n_decisions
                warmup = min(self.recipe.exploration.warmup_episodes, search.episodes)
                model.learn(
                    search.episodes * length,
                    callback=_AfterWarmup(
                        warmup * length,
                        self.recipe.pretrain * warmup * length,
                        self.recipe.scale_rewards,
                    ),
                    log_interval=1 << 30,
                )

    def _openings(self, search: Search) -> tuple[tuple[CompressionPlan, str], ...]:
        plan = plan_from_layer_errors(search.env) if self.recipe.layer_errors else None
        return () if plan is None else ((plan, "layer-errors"),)

    def _make_model(self, search: Search, env: ExploringEnv) -> TwoLearningRates:
        recipe, length = self.recipe, search.env.n_decisions
        monte_carlo = recipe.credit == "monte_carlo"
        model = self.algorithm(
            "MlpPolicy",
            DummyVecEnv([lambda: env]),
            learning_rate=recipe.critic_learning_rate,
            buffer_size=recipe.buffer_episodes * length,
            learning_starts=recipe.exploration.warmup_episodes * length - 1,
            batch_size=recipe.batch_size,
            tau=recipe.tau,
            gamma=1.0,
            train_freq=(length, "step"),
            gradient_steps=recipe.updates_per_step * length,
            replay_buffer_class=MonteCarloBuffer if monte_carlo else BroadcastBuffer,
            replay_buffer_kwargs={"n_steps": length, "gamma": 1.0} if monte_carlo else {},
            policy_kwargs={
                "net_arch": [recipe.hidden, recipe.hidden],
                "optimizer_kwargs": {"fused": True},
            },
            seed=search.seed,
            device="cpu",
        )
        model.actor_learning_rate = recipe.actor_learning_rate
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model


def _losses(logger: Logger) -> dict[str, float]:
    tags = ("train/critic_loss", "train/actor_loss")
    return {tag: float(logger.name_to_value[tag]) for tag in tags if tag in logger.name_to_value}


class DDPG(SB3Agent):
    """Deep deterministic policy gradient with Monte-Carlo credit and silent warm-up.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("amc_env:amc/synthetic-v0", n_layers=4)
        >>> result = DDPG(warmup_episodes=5).search(env, episodes=10, seed=0)
    """

    name: ClassVar[str] = "ddpg"
    algorithm: ClassVar[type[TwoLearningRates]] = _DDPG

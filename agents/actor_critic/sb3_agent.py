"""Off-policy actor-critics of Stable-Baselines3, adapted to compression episodes.

Lillicrap et al. 2016 (DDPG) as used by He et al. 2018 (AMC, section 3.3). ``docs/agents/ddpg.md``
lists every deviation from SB3's defaults with its reason and measured effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from amc_compress.agents.actor_critic.buffers import (
    BroadcastBuffer,
    ExecutedActionBuffer,
    MonteCarloBuffer,
)
from amc_compress.agents.actor_critic.exploration import Proposals
from amc_compress.agents.actor_critic.exploring_env import ExploringEnv
from amc_compress.agents.actor_critic.lock_step import LockStep, side_by_side
from amc_compress.agents.actor_critic.policies import read_policy, write_policy
from amc_compress.agents.actor_critic.recipe import make_recipe
from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.curves.allocation import Curves, allocate
from amc_compress.agents.curves.prior import read_curves
from amc_compress.agents.determinism import isolated_randomness
from amc_compress.agents.rollout import Search
from amc_compress.agents.trials import Trial
from amc_env import CompressionPlan, OneShotEnv
from amc_env.one_shot import positions
from amc_env.support.threads import limited_threads

_NEVER = 1 << 30


class TwoLearningRates(OffPolicyAlgorithm):
    """Mixin: a separate learning rate for the actor of an SB3 actor-critic.

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


class _AfterWarmup(BaseCallback):
    """Callback after the warm-up: fixes the reward scale and does the first updates.

    Counts nothing: SB3 calls ``on_step`` before it stores a transition, so everything here happens
    between two episodes. A search in stages ends when its evaluations are spent, which is not known
    before; any other one with its last episode.
    """

    def __init__(
        self, at_step: int, updates: int, scale_rewards: bool, is_over: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._is_over = is_over
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
        return not self._is_over()


class SB3Agent(Agent):
    """An off-policy actor-critic of SB3 that plays compression episodes.

    In parallel, so many episodes are played in lock step: a round ends with as many evaluations,
    and as many updates follow as after the same episodes one by one.

    A subclass names the algorithm; schedule, credit, exploration and storage are the same for all.

    Args:
        policy: File of a policy to begin with, from :meth:`save_policy`; it may stem from another
            network. There is no warm-up then, and the first episode is the bare policy.
        finalists: See :class:`Agent`.
        **options: Fields of :class:`Recipe` and of :class:`Exploration`.

    Raises:
        InputDataError: If the file of the policy is missing or damaged.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    """Options that suit the algorithm better than those of the recipe."""

    def __init__(
        self, *, policy: str = "", finalists: int = DEFAULT_FINALISTS, **options: Any
    ) -> None:
        super().__init__(finalists=finalists)
        self.recipe = make_recipe({**self.defaults, **options})
        self.policy = policy
        self._saved = read_policy(Path(policy)) if policy else None
        self.algorithm()  # raises here if its package is missing
        self._model: TwoLearningRates | None = None

    def algorithm(self) -> type[TwoLearningRates]:
        """Returns the SB3 class.

        Raises:
            MissingDependencyError: If an optional package is missing.
        """
        raise NotImplementedError

    @property
    def model(self) -> TwoLearningRates:
        """The SB3 model of the last search.

        Raises:
            ValueError: Before the first search.
        """
        if self._model is None:
            raise ValueError("There is no model before the first search.")
        return self._model

    def save_policy(self, path: Path | str) -> None:
        """Writes actor and critics of the last search to a file, for ``policy=``.

        Raises:
            ValueError: Before the first search.
        """
        buffer = self.model.replay_buffer
        assert isinstance(buffer, ExecutedActionBuffer)
        write_policy(Path(path), self.model, self.name, buffer.reward_scale)

    def run(self, search: Search) -> None:  # noqa: D102
        recipe = self.recipe
        uniform, curves = self._begin(search)
        if not search.remaining:
            return
        has_learned = self._saved is not None
        proposals = Proposals(
            search, recipe.exploration, recipe.one_shot, has_learned=has_learned, curves=curves
        )
        baseline = uniform.reward if recipe.centre_rewards else 0.0
        self.play(search, proposals, [
            ExploringEnv(search, proposals, lambda: baseline, recipe.one_shot, problem=problem)
            for problem in side_by_side(search.env, proposals.lanes)
        ])  # fmt: skip

    def _begin(self, search: Search) -> tuple[Trial, Curves | None]:
        """Evaluates the uniform plan, and that of the prior; returns the first, and the prior.

        In parallel the prior is computed while the uniform plan is evaluated.
        """
        curves = None
        search.submit_uniform()
        search.wait_for_room()
        if search.remaining:
            curves = read_curves(search.env, self.recipe.exploration.prior)
            if self.recipe.opening and curves is not None:
                self._open(search, curves)
        search.results()
        return search.uniform(), curves

    def play(self, search: Search, proposals: Proposals, envs: Sequence[ExploringEnv]) -> None:
        """Plays the remaining episodes and learns from them.

        Args:
            search: The search.
            proposals: Choose the actor of every episode.
            envs: Carry it out, one episode each at a time.

        Raises:
            AgentError: If the policy to begin with is one for other observations or networks.
        """
        with isolated_randomness(), limited_threads(1):
            self._model = model = self._make_model(search, envs, proposals)
            proposals.score = lambda plans: self._score(search, plans)
            for env in envs:
                env.scalars = lambda: _losses(model.logger)
                env.greedy = lambda seen: np.asarray(model.predict(seen, deterministic=True)[0])
            self._learn(search, envs[0].episode_length, proposals, model)

    def _learn(
        self, search: Search, length: int, proposals: Proposals, model: TwoLearningRates
    ) -> None:
        first = proposals.first_update
        updates = round(self.recipe.pretrain * first * search.env.n_decisions)
        model.learn(
            proposals.n_episodes * length,
            callback=_AfterWarmup(
                first * length,
                updates,
                # A policy that has learned before knows rewards on the scale of then.
                scale_rewards=self.recipe.scale_rewards and self._saved is None,
                is_over=lambda: search.is_staged and not search.remaining,
            ),
            log_interval=_NEVER,
        )

    def _open(self, search: Search, curves: Curves) -> None:
        plan = allocate(search.env, curves)
        if not search.has_seen(plan):
            search.submit(plan, "prior")

    def _make_model(
        self, search: Search, envs: Sequence[ExploringEnv], proposals: Proposals
    ) -> TwoLearningRates:
        recipe, length, lanes = self.recipe, envs[0].episode_length, len(envs)
        buffers: dict[str, tuple[type[ExecutedActionBuffer], dict[str, Any]]] = {
            "monte_carlo": (MonteCarloBuffer, {"n_steps": length, "gamma": 1.0}),
            "broadcast": (BroadcastBuffer, {}),
            "one_step": (ExecutedActionBuffer, {}),
        }
        buffer, buffer_options = buffers[recipe.credit]
        updates = max(1, round(recipe.updates_per_episode * search.env.n_decisions))
        capacity = max(recipe.buffer_episodes, proposals.n_known)
        model = self.algorithm()(
            "MlpPolicy",
            LockStep(search, envs),
            learning_rate=recipe.critic_learning_rate,
            buffer_size=math.ceil(capacity / lanes) * lanes * length,
            learning_starts=proposals.first_update * length - 1,
            batch_size=recipe.batch_size,
            gamma=1.0,
            train_freq=(length, "step"),
            gradient_steps=updates * lanes,
            replay_buffer_class=buffer,
            replay_buffer_kwargs=buffer_options,
            policy_kwargs={
                "net_arch": [recipe.hidden, recipe.hidden],
                "optimizer_kwargs": {"fused": True},
                **({"n_critics": recipe.n_critics} if recipe.n_critics else {}),
            },
            seed=_seed_of(search),
            device="cpu",
            **self._more_options(),
        )
        model.actor_learning_rate = recipe.actor_learning_rate
        if self._saved is not None:
            scale = self._saved.give_to(model)
            assert isinstance(model.replay_buffer, ExecutedActionBuffer)
            model.replay_buffer.reward_scale = scale
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    def _more_options(self) -> dict[str, Any]:
        """Returns options that not every algorithm has."""
        return {"tau": self.recipe.tau}

    def _score(self, search: Search, plans: Sequence[CompressionPlan]) -> npt.NDArray[np.float64]:
        """Returns what each critic thinks of each plan, shape ``(n_critics, n_plans)``.

        Where an episode has several steps, it is the mean over them.
        """
        if self.recipe.one_shot:
            actions = np.stack([positions(search.env, plan) for plan in plans])
            seen = np.repeat(OneShotEnv(search.env).bounds()[None], len(plans), axis=0)
            return self.values(seen, actions)
        played = [search.env.trajectory(plan) for plan in plans]
        seen = np.concatenate([observations for observations, _ in played])
        acted = np.concatenate([actions for _, actions in played])[:, None]
        shape = (-1, len(plans), search.env.n_decisions)
        values: npt.NDArray[np.float64] = self.values(seen, acted).reshape(shape).mean(2)
        return values

    def values(
        self, observations: npt.NDArray[np.float32], actions: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]:
        """Returns what each critic of :attr:`model` says, shape ``(n_critics, n)``.

        Args:
            observations: Shape ``(n, n_features)``.
            actions: In [0, 1], shape ``(n, action size)``.
        """
        policy: Any = self.model.policy
        with torch.no_grad(), limited_threads(1):
            policy.set_training_mode(False)
            found = policy.critic(torch.as_tensor(observations), torch.as_tensor(2 * actions - 1))
        # A tensor (n, 1) per critic, or quantiles of shape (n, n_critics, n_quantiles).
        means = torch.cat(found, dim=1) if isinstance(found, tuple) else found.mean(2)
        values: npt.NDArray[np.float64] = np.asarray(means, dtype=np.float64).T
        return values


def _losses(logger: Logger) -> dict[str, float]:
    tags = ("train/critic_loss", "train/actor_loss")
    return {tag: float(logger.name_to_value[tag]) for tag in tags if tag in logger.name_to_value}


def _seed_of(search: Search) -> int:
    """The seed of a search in 32 bits, as NumPy's global generator needs it."""
    if search.seed < 2**32:
        return search.seed
    return int(np.random.SeedSequence(search.seed).generate_state(1)[0])

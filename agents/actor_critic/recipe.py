"""Hyperparameters shared by all actor-critics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from amc_compress.agents.actor_critic.exploration import Exploration
from amc_compress.agents.options import check_options
from amc_env.validation.checks import checked

CREDITS = ("monte_carlo", "broadcast", "one_step")


@checked
@dataclass(frozen=True)
class Recipe:
    """The settings of an SB3 actor-critic on compression episodes.

    Args:
        one_shot: Whether one action is the whole plan, rescaled until it meets the budget, instead
            of one action per decision.
        credit: ``"monte_carlo"``: every step's target is the final reward (n-step returns over
            the whole episode, gamma = 1). ``"broadcast"``: AMC's copied reward, moving baseline
            and one-step bootstrap. ``"one_step"``: the reward where it comes, one-step bootstrap,
            as SB3 does it. They are the same where an episode has one step.
        actor_learning_rate: Adam step of the actor.
        critic_learning_rate: Adam step of the critic.
        hidden: Width of the two hidden layers of actor and critic.
        n_critics: How many critics are trained side by side; 0 takes the algorithm's own number.
        batch_size: Transitions per update.
        tau: Rate of the target networks.
        buffer_episodes: Capacity of the replay buffer.
        updates_per_episode: Gradient steps after each episode, as multiples of ``n_decisions``.
        pretrain: Gradient steps, as multiples of ``n_decisions``, per episode that is known when
            the first episode of the policy begins.
        centre_rewards: Whether the reward of the uniform plan is the zero of all rewards.
        scale_rewards: Whether rewards are divided by their spread in the warm-up.
        opening: Whether the plan of least damage by the exploration's prior is evaluated right
            after the uniform one.
        exploration: Warm-up, noise, elites and screening.
    """

    one_shot: bool = False
    credit: str = "monte_carlo"
    actor_learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-3
    hidden: int = 300
    n_critics: int = 0
    batch_size: int = 64
    tau: float = 0.01
    buffer_episodes: int = 1000
    updates_per_episode: float = 2.0
    pretrain: float = 0.0
    centre_rewards: bool = True
    scale_rewards: bool = True
    opening: bool = False
    exploration: Exploration = field(default_factory=Exploration)

    def __post_init__(self) -> None:
        if self.credit not in CREDITS:
            raise ValueError(f"Expected credit to be one of {CREDITS}, got {self.credit!r}.")
        if min(self.actor_learning_rate, self.critic_learning_rate) <= 0.0:
            raise ValueError("Expected learning rates > 0.")
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"Expected 0 < tau <= 1, got {self.tau}.")
        if min(self.hidden, self.batch_size, self.buffer_episodes) < 1:
            raise ValueError("Expected hidden, batch_size and buffer_episodes >= 1.")
        if self.updates_per_episode <= 0.0 or self.pretrain < 0.0 or self.n_critics < 0:
            raise ValueError("Expected updates_per_episode > 0, pretrain and n_critics >= 0.")


def make_recipe(options: Mapping[str, Any]) -> Recipe:
    """Builds a recipe from flat options; exploration's options stand among the others.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is of another type, or out of range.
    """
    inner = {f.name for f in fields(Exploration)}
    outer = {f.name for f in fields(Recipe)} - {"exploration"}
    if unknown := sorted(options.keys() - inner - outer):
        raise TypeError(f"Unknown option {unknown}; expected some of {sorted(inner | outer)}.")
    check_options(options, get_type_hints(Recipe) | get_type_hints(Exploration))
    exploration = Exploration(**{k: v for k, v in options.items() if k in inner})
    return Recipe(exploration=exploration, **{k: v for k, v in options.items() if k in outer})

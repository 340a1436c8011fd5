"""The off-policy actor-critics of Stable-Baselines3 and its contrib package, one recipe for all."""

from __future__ import annotations

from typing import Any, ClassVar

from stable_baselines3 import DDPG as SB3DDPG
from stable_baselines3 import SAC as SB3SAC
from stable_baselines3 import TD3 as SB3TD3

from amc_compress.agents.actor_critic.sb3_agent import SB3Agent, TwoLearningRates
from amc_env.support.optional import needed

ONE_SHOT: dict[str, Any] = {
    "one_shot": True,
    "hidden": 64,
    "n_critics": 3,
    "screen": 16,
    "elite_share": 0.7,
    "warmup_episodes": 5,
    "prior": "gradient_scores",
    "opening": True,
}
"""What suits agents whose action is a whole plan; ``docs/agents/ddpg.md`` says why."""


class _DDPG(TwoLearningRates, SB3DDPG):
    """SB3's DDPG with two learning rates."""


class _TD3(TwoLearningRates, SB3TD3):
    """SB3's TD3 with two learning rates."""


class _SAC(TwoLearningRates, SB3SAC):
    """SB3's SAC with two learning rates."""


class DDPG(SB3Agent):
    """Deep deterministic policy gradient (Lillicrap et al. 2016) with Monte-Carlo credit.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("amc_env:amc/synthetic-v0", n_layers=4)
        >>> result = DDPG(warmup_episodes=5).search(env, episodes=10, seed=0)
    """

    name = "ddpg"

    def algorithm(self) -> type[TwoLearningRates]:  # noqa: D102
        return _DDPG


class TD3(SB3Agent):
    """Twin delayed DDPG (Fujimoto et al. 2018): two critics, delayed and smoothed updates."""

    name = "td3"

    def algorithm(self) -> type[TwoLearningRates]:  # noqa: D102
        return _TD3


class OneShotDDPG(DDPG):
    """DDPG whose action is the whole plan; its critics choose among changed elites."""

    name = "ddpg-one-shot"
    defaults: ClassVar[dict[str, Any]] = ONE_SHOT


class OneShotTD3(TD3):
    """TD3 whose action is the whole plan; its critics choose among changed elites."""

    name = "td3-one-shot"
    defaults: ClassVar[dict[str, Any]] = ONE_SHOT


class SAC(SB3Agent):
    """Soft actor-critic (Haarnoja et al. 2018); its own randomness takes the place of the noise."""

    name = "sac"
    defaults: ClassVar[dict[str, Any]] = {"sigma": 0.0, "actor_learning_rate": 1e-3}

    def algorithm(self) -> type[TwoLearningRates]:  # noqa: D102
        return _SAC


class TQC(SB3Agent):
    """Truncated quantile critics (Kuznetsov et al. 2020), from sb3-contrib."""

    name = "tqc"
    defaults: ClassVar[dict[str, Any]] = {"sigma": 0.0, "actor_learning_rate": 1e-3}

    def algorithm(self) -> type[TwoLearningRates]:  # noqa: D102
        base: Any = _contrib("TQC")
        return type("_TQC", (TwoLearningRates, base), {})


class CrossQ(SB3Agent):
    """CrossQ (Bhatt et al. 2024): batch norm in the critics, no target networks; sb3-contrib."""

    name = "crossq"
    defaults: ClassVar[dict[str, Any]] = {"sigma": 0.0, "actor_learning_rate": 1e-3}

    def algorithm(self) -> type[TwoLearningRates]:  # noqa: D102
        base: Any = _contrib("CrossQ")
        return type("_CrossQ", (TwoLearningRates, base), {})

    def _more_options(self) -> dict[str, Any]:
        return {}  # without target networks there is nothing for tau to do


def _contrib(name: str) -> Any:
    found = needed("sb3_contrib", f'{name} needs sb3-contrib: pip install "amc-compress[contrib]"')
    return getattr(found, name)

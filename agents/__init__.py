"""Agents: what chooses a plan.

>>> import gymnasium
>>> from amc_compress.agents import RandomSearch
>>> env = gymnasium.make("amc_env:amc/synthetic-v0")
>>> result = RandomSearch().search(env, episodes=5, seed=0)
>>> len(result.trials)
5
"""

from amc_compress.agents.actor_critic.algorithms import (
    DDPG,
    SAC,
    TD3,
    TQC,
    CrossQ,
    OneShotDDPG,
    OneShotTD3,
)
from amc_compress.agents.actor_critic.exploration import Exploration
from amc_compress.agents.actor_critic.one_policy import Front, OnePolicy
from amc_compress.agents.actor_critic.recipe import Recipe
from amc_compress.agents.base import Agent
from amc_compress.agents.curves.sensitivity import (
    GradientScores,
    LayerErrors,
    Sensitivity,
    SensitivityThreshold,
)
from amc_compress.agents.heuristics.evolution import Evolution
from amc_compress.agents.heuristics.handcrafted import DeepHeavy, ShallowHeavy, Uniform
from amc_compress.agents.heuristics.local_search import LocalSearch
from amc_compress.agents.heuristics.random_search import RandomSearch
from amc_compress.agents.logging import EpisodeLogger
from amc_compress.agents.pareto import pareto_front
from amc_compress.agents.registry import AGENTS, agent_from_label, is_deterministic, make_agent
from amc_compress.agents.rollout import Search
from amc_compress.agents.samplers.optuna_search import (
    CMAES,
    NSGA2,
    TPE,
    GaussianProcess,
    OptunaSearch,
)
from amc_compress.agents.seeded import Seeded
from amc_compress.agents.trials import AgentError, SearchResult, Trial

__all__ = [
    "Agent",
    "AgentError",
    "Search",
    "SearchResult",
    "Trial",
    "DDPG",
    "OneShotDDPG",
    "TD3",
    "OneShotTD3",
    "SAC",
    "TQC",
    "CrossQ",
    "Recipe",
    "Exploration",
    "OnePolicy",
    "Front",
    "OptunaSearch",
    "TPE",
    "GaussianProcess",
    "CMAES",
    "NSGA2",
    "pareto_front",
    "LocalSearch",
    "Evolution",
    "Sensitivity",
    "SensitivityThreshold",
    "GradientScores",
    "LayerErrors",
    "RandomSearch",
    "Uniform",
    "DeepHeavy",
    "ShallowHeavy",
    "Seeded",
    "AGENTS",
    "make_agent",
    "agent_from_label",
    "is_deterministic",
    "EpisodeLogger",
]

"""Agents: who chooses the plan.

>>> import gymnasium
>>> from agents import RandomSearch
>>> env = gymnasium.make("amc_env:amc/synthetic-v0")
>>> result = RandomSearch().search(env, episodes=5, seed=0)
>>> len(result.trials)
5
"""

from agents.actor_critics import DDPG, SAC, TD3, TQC, CrossQ, OneShotDDPG, OneShotTD3
from agents.base import Agent, AgentError, SearchResult, Trial
from agents.evolution import Evolution
from agents.exploration import Exploration
from agents.handcrafted import DeepHeavy, ShallowHeavy, Uniform
from agents.local_search import LocalSearch
from agents.logging import EpisodeLogger
from agents.one_policy import Front, OnePolicy
from agents.optuna_search import CMAES, NSGA2, TPE, GaussianProcess, OptunaSearch
from agents.pareto import pareto_front
from agents.random_search import RandomSearch
from agents.recipe import Recipe
from agents.registry import AGENTS, agent_from_label, is_deterministic, make_agent
from agents.rollout import Search
from agents.seeded import Seeded
from agents.sensitivity import GradientScores, LayerErrors, Sensitivity, SensitivityThreshold

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

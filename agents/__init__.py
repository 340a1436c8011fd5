"""Agents: what chooses a plan.

>>> import gymnasium
>>> from amc_compress.agents import RandomSearch
>>> env = gymnasium.make("amc_env:amc/synthetic-v0")
>>> result = RandomSearch().search(env, episodes=5, seed=0)
>>> len(result.trials)
5
"""

import lazy_loader

# Each name is imported when it is first used: most of them bring more than a caller needs.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

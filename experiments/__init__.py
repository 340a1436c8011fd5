"""Automatic model compression: data, models, runs and the command line; agents and learners.

>>> import amc_compress
>>> data = amc_compress.load_data("digits")
>>> model = amc_compress.make_model("digitsnet")
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("amc-compress")

# Each name is imported when it is first used: the command line starts without torch, and learners
# are used without Stable-Baselines3.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

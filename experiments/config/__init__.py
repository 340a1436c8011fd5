"""The options of a run: declarations, defaults, checks, files."""

from amc_compress.config.run_config import RunConfig as RunConfig

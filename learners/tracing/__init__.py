"""Finds the channel groups of any network, proves them, and cuts along them."""

from amc_compress.learners.tracing.traced_model import TracedModel, trace

__all__ = ["TracedModel", "trace"]

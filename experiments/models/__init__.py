"""The model zoo, and user-defined networks."""

from amc_compress.models.registry import MODELS, ModelFactory, make_model
from amc_compress.models.weights import load_weights, pretrained_weights

__all__ = ["MODELS", "ModelFactory", "make_model", "load_weights", "pretrained_weights"]

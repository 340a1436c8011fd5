"""Failures of networks in training mode."""

from __future__ import annotations

import torch
from torch import nn

from amc_compress.learners.tasks.inputs import Inputs, ask


def runs_in_evaluation(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a network that fails in training mode runs in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            ask(model, inputs)
    except Exception:  # then the mode is not what is wrong
        return False
    finally:
        for module, training in modes:
            module.training = training
    return True

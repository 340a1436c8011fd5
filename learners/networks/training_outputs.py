"""Outputs of networks in training mode, and failures there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def main_output(output: object) -> object:
    """Returns the logits among what a network returns in training, the output itself if unsure.

    GoogLeNet, Inception and their kind return further classifiers besides the main one: as
    ``logits`` of an object or a dictionary, or as the first item of a tuple. The further ones are
    not part of the loss.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        first = output.get("logits")
    else:
        first = getattr(output, "logits", None)
        if first is None and isinstance(output, (tuple, list)) and output:
            first = output[0]
    return first if isinstance(first, Tensor) else output


def runs_in_evaluation(model: nn.Module, images: Tensor) -> bool:
    """Whether a network that fails in training mode runs in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(images)
    except Exception:  # then the mode is not what is wrong
        return False
    finally:
        for module, training in modes:
            module.training = training
    return True

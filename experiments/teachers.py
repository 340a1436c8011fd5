"""The network that teaches a fine-tuning: the run's original, none, or any other one."""

from __future__ import annotations

import sys

from torch import nn

from experiments.config_values import OWN_TEACHERS
from experiments.configs import RunConfig
from experiments.models import load_weights
from experiments.networks import build_original
from experiments.runs import TaskFacts


def load_teacher(
    config: RunConfig, facts: TaskFacts, *, allow_pickle: bool = False
) -> nn.Module | None:
    """Returns the teacher that ``--teacher`` names, in eval mode.

    Args:
        config: The options.
        facts: About the data, whose classes the teacher must know.
        allow_pickle: Whether its weights file may run code; asked of the command, not of a folder.

    Returns:
        None if the original network teaches, or nobody does.

    Raises:
        InputDataError: If there is no such network, or the weights do not fit it.
    """
    if config.teacher in OWN_TEACHERS:
        return None
    network = build_original(config.teacher, facts)
    if config.teacher_weights is not None:
        taken = load_weights(network, config.teacher_weights, allow_pickle=allow_pickle)
        if taken:
            print(f"    teacher: {taken}", file=sys.stderr)
    return network.eval()

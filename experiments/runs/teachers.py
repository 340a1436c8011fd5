"""The teacher of a fine-tuning: the run's original, none, or another network."""

from __future__ import annotations

import sys

from torch import nn

from amc_compress.config.run_config import RunConfig
from amc_compress.config.values import OWN_TEACHERS
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.networks import build_with_weights


def load_teacher(
    config: RunConfig, facts: DataFacts, *, allow_pickle: bool = False
) -> nn.Module | None:
    """Returns the teacher that ``--teacher`` names, in eval mode.

    Args:
        config: The options.
        facts: About the data, whose classes the teacher must know.
        allow_pickle: Whether its weights file may run code; asked of the command, not of a folder.

    Returns:
        None if the original network teaches, or there is no teacher.

    Raises:
        InputDataError: If there is no such network, or the weights do not fit it.
    """
    if config.teacher in OWN_TEACHERS:
        return None
    built = build_with_weights(
        config.teacher, facts, config.teacher_weights, allow_pickle=allow_pickle
    )
    for note in filter(None, (built.taken, *built.notes)):
        print(f"    teacher: {note}", file=sys.stderr)
    return built.network

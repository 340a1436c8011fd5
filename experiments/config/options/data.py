"""The options of how data are read, and how often a training is saved."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from amc_compress.config.option import ANY_TIME, option
from amc_compress.config.options.task import RUN
from amc_compress.config.texts import snapshots

_free = functools.partial(option, stage=ANY_TIME, panel=RUN)


@dataclass(frozen=True)
class DataOptions:
    """How data are read, which changes no result."""

    snapshot_every: str = _free(
        "10m",
        "How often a training is saved inside its epochs too, to go on from there when it is "
        "killed: a time (10m) or a number of steps (500); none for after each epoch alone.",
        read=snapshots,
        metavar="TIME|STEPS",
    )

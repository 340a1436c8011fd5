"""The options of where plans are evaluated."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from amc_compress.config.option import ANY_TIME, option
from amc_compress.config.texts import cluster, duration

_free = functools.partial(option, stage=ANY_TIME, panel="Search")


@dataclass(frozen=True)
class WorkerOptions:
    """Where plans are evaluated, which changes no result."""

    workers: int = _free(
        1,
        "Processes that evaluate plans, each on --threads threads; one is the search itself. A run "
        "may be resumed with another number. How many plans are under way is --parallel.",
        least=1,
        everyday=True,
    )
    ray: str | None = _free(
        None,
        "Evaluate by workers of a Ray cluster: auto is the one that this machine is a node of, "
        "local starts one here. --workers says how many; 1 is as many as there is room for.",
        read=cluster,
        kind=str,
        metavar="auto|local|HOST:PORT",
    )
    evaluation_timeout: float | None = _free(
        None,
        "With --workers or --ray: an evaluation that takes longer, e.g. 90s or 10m, is stopped and "
        "tried again by another process; after three tries the plan is recorded as failed.",
        read=duration,
        kind=str,
        above=0,
        metavar="TIME",
    )

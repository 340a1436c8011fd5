"""The options of where plans are evaluated."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from amc_compress.config.option import ANY_TIME, flag, option
from amc_compress.config.texts import cluster, duration, memory, size

_free = functools.partial(option, stage=ANY_TIME, panel="Search")


@dataclass(frozen=True)
class WorkerOptions:
    """Where plans are evaluated, and in which memory, which changes no result."""

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
    moments_memory: str = _free(
        "2GiB",
        "What the second moments of layers' inputs may take, from which repairs and GPTQ are "
        "computed. Those of a larger network are taken piece by piece, and read from files in the "
        "folder that TMPDIR names, which gives the same result.",
        read=memory,
        metavar="SIZE",
    )
    scratch_disk: str = _free(
        "8GiB",
        "What these files may take, and likewise those of solved layers (GPTQ, SparseGPT) in "
        "levels/ of the run's folder; what they have no room for is computed again.",
        read=memory,
        metavar="SIZE",
    )

    @property
    def room(self) -> dict[str, int]:
        """The same as arguments of a learner."""
        return {
            name: size(flag(name), getattr(self, name))
            for name in ("moments_memory", "scratch_disk")
        }

"""The options of a run, one field each; the learner, which gives them their meaning, aside."""

from __future__ import annotations

from dataclasses import dataclass

from amc_compress.config.options.bits import BitOptions
from amc_compress.config.options.data import DataOptions
from amc_compress.config.options.devices import DeviceOptions
from amc_compress.config.options.finetuning import FinetuneOptions
from amc_compress.config.options.pruning import PruningOptions
from amc_compress.config.options.search import SearchOptions
from amc_compress.config.options.task import TaskOptions
from amc_compress.config.options.workers import WorkerOptions


@dataclass(frozen=True)
class Options(
    FinetuneOptions,
    DeviceOptions,
    BitOptions,
    PruningOptions,
    WorkerOptions,
    SearchOptions,
    TaskOptions,
    DataOptions,
):
    """What every learner is made from, see ``amc_compress.config.run_config.RunConfig``."""

    @property
    def is_progressive(self) -> bool:
        """Whether the budget is reached in more than one stage."""
        return self.progressive > 1 or bool(self.stages)

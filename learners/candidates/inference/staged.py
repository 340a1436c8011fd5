"""A staged evaluation: what is measured of a network after each batch, and when that is enough."""

from __future__ import annotations

import warnings
from typing import Any

from amc_compress.learners.tasks.inputs import count, rows
from amc_compress.learners.tasks.noise import score_or_none
from amc_compress.learners.tasks.task import Task
from amc_env.scores.stages import Measured, Race, Stages, group_end


class Looks:
    """Measures a network on samples as they come, as a whole and group by group.

    Args:
        task: What networks are for.
        n_samples: How many there are.
        stages: When to look whether the network has lost.
        race: What it is compared with; None for nothing: it is measured on all.

    Attributes:
        ends: After how many samples it is looked at.
    """

    def __init__(self, task: Task, n_samples: int, stages: Stages, race: Race | None) -> None:
        self.ends = stages.ends(n_samples)
        self._task = task
        self._n_samples = n_samples
        self._stages = stages
        self._race = race
        self._whole = task.meter()
        self._group = task.meter()
        self._groups: list[float | None] = []
        self._in_groups = True
        self._seen = self._stage = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Takes in what the network says of the next samples, and what is right."""
        self._whole.update(outputs, targets)
        if self._in_groups:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of few samples
                    self._share_out(outputs, targets)
            except Exception:  # as many structures as there are tasks
                self._in_groups, self._groups = False, []  # what cannot be taken apart is no race
        self._seen += count(targets)

    def _share_out(self, outputs: Any, targets: Any) -> None:
        size, start = count(targets), 0
        while start < size:
            last = group_end(len(self._groups) + 1, self._n_samples) - self._seen
            part = slice(start, min(last, size))
            if part.stop > start:
                self._group.update(rows(outputs, part), rows(targets, part))
                start = part.stop
            if start == last:
                empty = group_end(len(self._groups), self._n_samples) - self._seen == last
                self._groups.append(None if empty else score_or_none(self._task, self._group))
                self._group = self._task.meter()

    def is_due(self) -> bool:
        """Whether the samples that came are those of another stage."""
        return self._seen >= self.ends[self._stage]

    def is_over(self) -> bool:
        """Looks at the network; whether it needs no more samples."""
        while self._stage < len(self.ends) and self.is_due():
            self._stage += 1
        if self._stage == len(self.ends):
            return True
        return self._race is not None and self._race.is_lost(tuple(self._groups), self._stages.risk)

    def found(self) -> Measured:
        """Returns what was measured.

        Raises:
            TrainingDivergedError: If the metric is not finite.
        """
        if self._seen < self._n_samples and self._race is not None:
            score = self._race.estimate(tuple(self._groups))
            return Measured(score, self._seen / self._n_samples, self._seen, self._stage)
        score = self._task.score(self._whole.compute())
        return Measured(score, 1.0, self._seen, self._stage, tuple(self._groups))

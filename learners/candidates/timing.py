"""CPU-seconds of an episode, by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class EpisodeSeconds:
    """CPU-seconds spent on candidates so far, by part."""

    episodes: int = 0
    slicing: float = 0.0
    reconstruction: float = 0.0
    finetuning: float = 0.0
    recalibration: float = 0.0
    evaluation: float = 0.0

    def add_building(self, clock: Sequence[float]) -> None:
        """Adds the four parts between the five readings of a clock."""
        self.slicing += clock[1] - clock[0]
        self.reconstruction += clock[2] - clock[1]
        self.finetuning += clock[3] - clock[2]
        self.recalibration += clock[4] - clock[3]

    def mean(self) -> dict[str, float]:
        """Returns the mean CPU-seconds per candidate of each part and of all together."""
        parts = {
            name: value / max(self.episodes, 1)
            for name, value in vars(self).items()
            if name != "episodes"
        }
        return {**parts, "total": sum(parts.values())}

"""CPU-seconds of an evaluation, by part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class CandidateSeconds:
    """CPU-seconds spent on candidates so far, by part.

    Attributes:
        episodes: How many candidates were evaluated.
        parts: Name of a part of the work -> its seconds.
    """

    episodes: int = 0
    parts: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Adds the seconds of a block to a part."""
        start = time.process_time()
        yield
        self.parts[part] = self.parts.get(part, 0.0) + time.process_time() - start

    def mean(self) -> dict[str, float]:
        """Returns the mean CPU-seconds per candidate of each part and of all together."""
        parts = {name: value / max(self.episodes, 1) for name, value in self.parts.items()}
        return {**parts, "total": sum(parts.values())}

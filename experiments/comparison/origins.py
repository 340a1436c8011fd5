"""Where evaluations come from, as a text: equal texts, equal evaluations."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def origin_of(weights: Path | None = None, **facts: Any) -> str:
    """Returns where evaluations come from as a text: equal texts, equal evaluations.

    Args:
        weights: File of the network's weights, named by its checksum.
        facts: Model, data and every option that changes an evaluation.
    """
    parts = [f"{name}={value}" for name, value in sorted(facts.items())]
    if weights is not None:
        parts.append(f"weights=sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}")
    return ", ".join(parts)

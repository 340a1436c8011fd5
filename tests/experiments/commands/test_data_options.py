"""Options of how data are read: texts to values, and one sentence for what is none."""

from __future__ import annotations

from typing import Any

import pytest

from amc_compress.config.run_config import RunConfig
from amc_compress.config.texts import snapshot_settings, snapshots


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [("500", 500, None), ("10m", None, 600.0), ("1h30m", None, 5400.0), ("none", None, None)],
)
def test_snapshots_are_steps_or_a_time(text: str, steps: int | None, seconds: float | None) -> None:
    assert snapshots("--snapshot-every", text) == text
    found: dict[str, Any] = snapshot_settings(text)
    assert found == {"snapshot_steps": steps, "snapshot_seconds": seconds}
    config = RunConfig(snapshot_every=text)
    assert config.spec.training_config().snapshot_steps == steps


@pytest.mark.parametrize("text", ["0", "-3", "soon", "", "1.5.2m"])
def test_snapshots_need_a_distance(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expected --snapshot-every as a time \(10m, 90s\)"):
        RunConfig(snapshot_every=text)

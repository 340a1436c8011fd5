"""The benchmark of streamed data: shards of all classes, bounded memory, a kill costs little."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc_compress.benchmarks.speed.streaming import (
    Shape,
    killed_and_resumed,
    make_shards,
    rows,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "cache"))


def test_a_mid_sized_data_set_is_read_in_little_memory_and_survives_a_kill(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", 6000, 1000, 64)
    shape = Shape(tmp_path / "data", memory=4 * 10**6, size=56, batch=64)
    found = dict(rows(shape, [0, 1], 5000))
    # The pixels are 7,000 x 3 x 64 x 64 = 86 MB, held twice while they are cut.
    assert found["streamed, 0 workers"].process < found["in memory"].process - 60
    # A worker that kept its batches would have 190 MB more than the process that it comes from.
    assert found["streamed, 1 workers"].worker < found["streamed, 1 workers"].process + 80
    reached, steps, same = killed_and_resumed(shape, 1, tmp_path)
    assert 0 < reached < steps
    assert same

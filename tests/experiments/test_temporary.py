"""Folders that go with the process that made them."""

from __future__ import annotations

import errno
import gc
import sys
import tempfile
from pathlib import Path

import pytest

from amc_compress.temporary import TemporaryFolder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_goes_when_it_is_closed_or_forgotten(place: Path) -> None:
    with TemporaryFolder("test") as folder:
        assert folder.path.parent == place
        (folder.path / "work").write_text("x")
    assert not folder.path.exists()
    path = TemporaryFolder("test").path
    gc.collect()
    assert not path.exists()


def test_a_place_without_locks_will_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("amc_compress.temporary._lock", lock)
    with TemporaryFolder("test") as first, TemporaryFolder("test") as second:
        assert {first.path, second.path} == {*place.iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="has no locks to tell by")
def test_the_next_folder_removes_those_of_processes_that_are_gone(place: Path) -> None:
    left, old, run = place / "amc-test-left", place / "amc-test-old", place / "run"
    for path in (left, old, run):
        path.mkdir()
    for path in (left, run):
        (path / ".alive").touch()  # which no process has locked
    (place / "amc-test-link").symlink_to(run)
    with TemporaryFolder("test") as living, TemporaryFolder("test"):
        there = {path.name for path in place.iterdir()}
        assert living.path.name in there  # it is locked
        assert not left.exists()
        assert {old.name, run.name, "amc-test-link"} < there
        assert (run / ".alive").exists()

"""Fixtures for the tests of the command line: a complete run, and commands that must fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from amc_compress.cli import run
from support.once import SharedFolders
from support.runs.command_line import QUICK


@pytest.fixture(scope="session")
def run_made(shared_folders: SharedFolders) -> Callable[..., Path]:
    """Returns the finished run of a name; one for all tests, which must leave it as it is."""

    def get(name: str, *options: str) -> Path:
        def make(folder: Path) -> None:
            assert run(["compress", *options, "--out", str(folder), "--quiet"]) == 0

        return shared_folders.get(name.replace(":", "-"), make)

    return get


@pytest.fixture(scope="session")
def finished(run_made: Callable[..., Path]) -> Path:
    """A complete run; one for all tests, which must leave it as it is."""
    return run_made("run", *QUICK)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the complete run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail, and returns its one sentence."""

    def call(*arguments: str, code: int = 2) -> str:
        capsys.readouterr()
        assert run(arguments) == code
        lines = capsys.readouterr().err.strip().splitlines()
        sentence = lines[-1]
        assert sentence.startswith("amc: ")
        assert not any("Traceback" in line for line in lines)
        return sentence

    return call

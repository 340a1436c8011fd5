"""Verbs that continue a finished run: what they keep, and what a mistake must not lose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from amc_compress.cli import run
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.networks import trace_original


def stages(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "state.json").read_text())["stages"])


def test_a_bad_option_of_finetune_loses_nothing(copy: Path, fails: Callable[..., str]) -> None:
    before = stages(copy)
    assert "--learning-rate" in fails("finetune", str(copy), "--learning-rate", "-1")
    assert "--teacher" in fails("finetune", str(copy), "--teacher", "nobody")
    assert stages(copy) == before


def test_finetune_keeps_the_options_that_are_not_given(copy: Path) -> None:
    config = RunFolder.open(copy).config
    free = ["--snapshot-every", "7"]  # of those that may change at any time
    assert run(["finetune", str(copy), "--learning-rate", "0.011", *free, "--quiet"]) == 0
    after = RunFolder.open(copy).config
    assert (after.learning_rate, after.snapshot_every) == (0.011, "7")
    assert (after.epochs, after.teacher) == (config.epochs, config.teacher)


def test_a_folder_named_like_the_embedded_data_does_not_replace_them(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert RunFolder.open(copy).config.data == "digits"
    assert run(["evaluate", str(copy)]) == 0


def test_the_original_is_traced_once_while_its_file_stays_the_same(copy: Path) -> None:
    folder = RunFolder.open(copy)
    traced = trace_original(folder)
    assert trace_original(folder) is traced
    os.utime(copy / "original.safetensors")
    assert trace_original(folder) is not traced

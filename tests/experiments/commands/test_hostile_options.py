"""Every option of every verb with values that it cannot mean: one sentence, exit code 2, no trace.

What a verb does after its checks is left out, so that a value that is accepted costs nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from support.runs.command_line import WEIGHTS
from support.runs.hostile import Case, cases

import amc_compress.automl.environments
import amc_compress.automl.protocol
import amc_compress.commands.runs
import amc_compress.comparison.recording.recording
import amc_compress.comparison.report.report
import amc_compress.comparison.searches.running
import amc_compress.comparison.searches.searching
import amc_compress.comparison.tasks
import amc_compress.learners.latency.table
import amc_compress.stages.measure
import amc_compress.stages.pipeline
import amc_compress.stages.sensitivity
import amc_compress.stages.train
from amc_compress.cli import run

LONGEST = 2000  # letters of a sentence
BASE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("compress",): ("--weights", WEIGHTS, "--out", "out", "-q"),
    ("search",): ("--weights", WEIGHTS, "--out", "out", "-q"),
    ("sensitivity",): ("--weights", WEIGHTS, "--out", "out", "-q"),
    ("train",): ("--out", "out", "-q"),
    ("finetune",): ("run", "-q"),
    ("evaluate",): ("--weights", WEIGHTS),
    ("export",): ("run", "-q"),
    ("report",): (),
    ("latency-table",): ("--model", "digitsnet", "--input", "1x8x8", "--out", "out", "-q"),
    ("compare",): ("--out", "out", "-q"),
    ("record",): ("--task", "digits-channels", "--folder", "out", "--out", "out.npz", "-q"),
    ("automl", "setup"): (),
    ("automl", "run"): ("--out", "out", "-q"),
    ("automl", "table"): (),
}
Ending = Callable[[Case], str | None]


def _stop(*_: object, **__: object) -> None:
    raise typer.Exit(0)


@pytest.fixture
def ending(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ending:
    """Runs a case, and returns what is wrong with how it ended; None if nothing is."""
    monkeypatch.chdir(tmp_path)
    nothing: dict[Any, tuple[str, ...]] = {
        amc_compress.stages.pipeline: ("run_stages",),
        amc_compress.commands.runs: ("print_summary",),
        amc_compress.stages.train: ("write_training_results",),
        amc_compress.comparison.searches.running: ("make_searches",),
        amc_compress.comparison.report.report: ("write_report",),
        amc_compress.comparison.searches.searching: ("open_store",),
        amc_compress.comparison.tasks: ("build_env",),
        amc_compress.automl.protocol: ("check_ready", "run_all"),
    }
    for module, names in nothing.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr(amc_compress.comparison.recording.recording, "record", _stop)
    monkeypatch.setattr(amc_compress.learners.latency.table, "measure_table", _stop)
    monkeypatch.setattr(amc_compress.automl.environments, "setup", _stop)
    monkeypatch.setattr(amc_compress.stages.measure, "measure", lambda *_, **__: {})
    monkeypatch.setattr(amc_compress.stages.sensitivity, "run_sensitivity", _stop)
    before = {path.name for path in things()}

    def call(case: Case) -> str | None:
        if "run" in BASE[case.verb]:
            shutil.copytree(finished, "run")
        capsys.readouterr()
        try:
            code = run([*case.verb, *_without(BASE[case.verb], case), *case.words])
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        said = capsys.readouterr().err.strip()
        left = sorted({*os.listdir(), *()} - before - {"run"})
        for name in (*left, "run"):
            shutil.rmtree(name, ignore_errors=True)
            Path(name).unlink(missing_ok=True)
        if code == 0 and not case.is_sure:
            return None
        fits = code == 2 and said.startswith("amc: ") and len(said.splitlines()) == 1
        is_right = fits and "Internal error" not in said and len(said) < LONGEST and not left
        return None if is_right and said.isprintable() else f"{code}, left {left}: {said[-300:]}"

    return call


def _without(words: tuple[str, ...], case: Case) -> list[str]:
    """The usual words without those that the case gives itself."""
    if not case.option:
        return [word for word in words if word != "run"]
    kept = list(words)
    if case.option in kept:
        at = kept.index(case.option)
        del kept[at : at + 2]
    return kept


def things() -> list[Path]:
    """Paths in the current folder, and elsewhere, of what no option asks for."""
    for folder in ("folder", "filled"):
        Path(folder).mkdir(exist_ok=True)
    for file in ("file.txt", "filled/file.txt"):
        Path(file).write_text("hello")
    Path("empty").touch()
    if not Path("loop").is_symlink():
        Path("loop").symlink_to("loop")
    names = ("folder", "filled", "file.txt", "empty", "loop", "file.txt/below", "n" * 300)
    return [*map(Path, names), Path("/dev/null")]


def sweep(ending: Ending, parts: int, part: int) -> list[str]:
    """Returns what is wrong in one of so many parts of all cases."""
    chosen = list(cases(things()))[part::parts]
    said = {str(case): ending(case) for case in chosen}
    assert said
    return [f"{case}: {what}" for case, what in said.items() if what is not None]


def test_value_that_no_option_takes_is_one_sentence(ending: Ending) -> None:
    assert sweep(ending, 61, 0) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))
def test_value_that_no_option_takes_is_one_sentence_for_every_option(
    ending: Ending, part: int
) -> None:
    assert sweep(ending, 12, part) == []


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:99", "cuda:-1", "cpu:x", ""])
@pytest.mark.parametrize("verb", ["search", "train"])
def test_device_that_is_not_there_is_one_sentence(verb: str, device: str, ending: Ending) -> None:
    assert ending(Case((verb,), "--device", "text", device)) is None


def test_more_seeds_than_fit_into_memory_are_rejected(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = str(tmp_path / "out")
    assert "--seeds" in fails("compare", "--seeds", "2147483647", "--out", out, "-q")


def test_thousands_of_threads_end_no_process(tmp_path: Path) -> None:
    command = ["train", "--epochs", "1", "--threads", "100000", "--out", "run", "-q"]
    ended = subprocess.run(
        [sys.executable, "-m", "amc_compress", *command],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "--threads" in ended.stderr
    assert not (tmp_path / "run").exists()

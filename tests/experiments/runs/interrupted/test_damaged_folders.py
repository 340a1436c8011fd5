"""A damaged run folder: the verbs work as before, or say in one sentence which file is damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs.command_line import QUICK, WEIGHTS
from support.runs.damage import Damage, file_for_folder, ways

import amc_compress.stages.export
from amc_compress.cli import run
from amc_compress.runs.networks import load_compressed
from amc_env import CompressionError

FILES = (
    "config.json", "state.json", "plan.json", "summary.json", "trials.jsonl",
    "original.safetensors", "pruned.safetensors", "model.safetensors", "model.onnx",
)  # fmt: skip
SEARCH = ("--weights", WEIGHTS, "--round-to", "4", "--precision", "fp32", "--evaluations", "1",
          "--agent", "uniform", "-q")  # fmt: skip
VERBS: dict[str, tuple[str, ...]] = {
    "report": ("report", "run"),
    "evaluate": ("evaluate", "run"),
    "finetune": ("finetune", "run", "--resume", "-q"),
    "compress": ("compress", *QUICK, "--out", "run", "--resume", "-q"),
    "search": ("search", *SEARCH, "--warm-start", "run", "--out", "another"),
    "export": ("export", "run", "-q"),
}
EVERY = {"report": 1, "load": 3, "finetune": 5, "compress": 23, "evaluate": 23, "search": 97,
         "export": 401}  # fmt: skip
"""Of how many cases one is taken, as long as they take."""


@pytest.fixture
def damaged(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str, Damage, str], str | None]:
    """Damages a file of a copy, runs a verb, and returns what is wrong with how it ended."""
    monkeypatch.chdir(tmp_path)
    # How fast the networks are does not matter here.
    times = {"original": {"1": 1.0}, "compressed": {"1": 1.0}}
    monkeypatch.setattr(amc_compress.stages.export, "time_onnx", lambda *_, **__: times)

    def call(name: str, damage: Damage, verb: str) -> str | None:
        for folder in ("run", "another"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished, "run")
        damage(Path("run", name))
        capsys.readouterr()
        if verb == "load":
            return _loading()
        try:
            code = run(VERBS[verb])
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        said = capsys.readouterr().err.strip()
        if code == 0:
            return None
        last = said.splitlines()[-1]
        is_named = "run" in last or name in last
        fits = code == 2 and last.startswith("amc: ") and is_named and len(last) < 1200
        is_clean = "Traceback" not in said and not Path("another").exists()
        leftovers = list(Path("run").rglob("*.tmp"))
        return (
            None if fits and is_clean and not leftovers else f"{code}, {leftovers}: {said[-300:]}"
        )

    return call


def _loading() -> str | None:
    try:
        load_compressed("run")
    except CompressionError as error:
        return None if "run" in str(error) else f"names no file: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def sweep(finished: Path, damaged: Callable[..., str | None], parts: int, part: int) -> list[str]:
    """Returns what is wrong, over all files and one of so many parts of the ways to damage them."""
    wrong = []
    number = 0
    for name in FILES:
        for way, damage in ways(finished / name):
            for verb, every in EVERY.items():
                number += 1
                if number % (parts * every) != part % (parts * every):
                    continue
                if (said := damaged(name, damage, verb)) is not None:
                    wrong.append(f"{name}, {way}, {verb}: {said}")
    return wrong


def test_damaged_file_is_harmless_or_named(
    finished: Path, damaged: Callable[..., str | None]
) -> None:
    assert sweep(finished, damaged, 300, 0) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 13))
def test_damaged_file_is_harmless_or_named_whatever_the_damage(
    finished: Path, damaged: Callable[..., str | None], part: int
) -> None:
    assert sweep(finished, damaged, 12, part) == []


@pytest.mark.parametrize("verb", ["report", "finetune"])
@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_file_in_the_place_of_a_folder_is_harmless_or_named(
    damaged: Callable[..., str | None], name: str, verb: str
) -> None:
    assert damaged(name, file_for_folder, verb) is None

"""``amc automl`` on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs.automl import NEAREST, fake_framework, installed

from amc_compress.automl import environments, frameworks, protocol
from amc_compress.automl.environments import SetupError
from amc_compress.automl.records import read_trainings
from amc_compress.cli import run
from amc_env import MissingDependencyError


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frameworks in place of the four: one that works, and one that is not set up."""
    near = fake_framework(tmp_path, NEAREST, "near")
    absent = fake_framework(tmp_path, NEAREST, "absent", needs_java=True)
    monkeypatch.setattr(frameworks, "FRAMEWORKS", {"near": near, "absent": absent})
    status = {"near": installed(near), "absent": None}
    monkeypatch.setattr(protocol, "read_status", lambda framework, root: status[framework.name])


def arguments(out: Path, *more: str) -> list[str]:
    return ["automl", "run", "--framework", "near", "--dataset", "iris", "--seeds", "2",
            "--seconds", "1", "--out", str(out), *more]  # fmt: skip


@pytest.mark.usefixtures("fakes")
def test_run_and_table_go_together(tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    assert run(arguments(out)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("iris, seed 0: near 0.9")
    assert lines[-1] == str(out)
    rows = read_trainings(out).rows
    assert {key[:2] for key in rows} == {("near", "iris"), ("constant", "iris")}
    assert run(arguments(out)) == 0
    assert capsys.readouterr().out.splitlines() == [str(out)]  # nothing was trained again
    table = tmp_path / "table.md"
    assert run(["automl", "table", str(out), "--out", str(table)]) == 0
    assert "| near | 0.9" in table.read_text()
    assert run(["automl", "table", str(out)]) == 0
    assert capsys.readouterr().out.endswith(table.read_text())


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--framework", "absent"], "absent is not set up in .*amc automl setup absent --root"),
        (["--framework", "neer"], "Unknown framework 'neer'; did you mean 'near'"),
        (["--dataset", "irises"], "Unknown data set 'irises'; did you mean 'iris'"),
        (["--seconds", "0"], "Expected --seconds above 0, got 0"),
        (["--seconds", "-5"], "Expected --seconds above 0, got -5"),
        (["--seeds", "0"], "Expected --seeds of at least 1, got 0"),
    ],
)
def test_a_wrong_option_of_run_is_one_sentence(fails, tmp_path, options, message):
    out = tmp_path / "out" / "results.jsonl"
    assert re.search(message, fails(*arguments(out), *options))
    assert not out.exists()


@pytest.mark.usefixtures("fakes")
def test_java_that_is_gone_is_noticed_before_anything_is_trained(fails, tmp_path, monkeypatch):
    def missing(framework: frameworks.Framework) -> None:
        raise MissingDependencyError(f"{framework.name} needs Java 8 to 17")

    monkeypatch.setattr(protocol, "check_java", missing)
    assert "near needs Java" in fails(*arguments(tmp_path / "results.jsonl"))


@pytest.mark.usefixtures("fakes")
def test_other_seconds_are_rejected_in_the_same_file(fails, tmp_path):
    out = tmp_path / "results.jsonl"
    assert run(arguments(out, "--quiet")) == 0
    assert "give the same --seconds" in fails(*arguments(out), "--seconds", "2")


@pytest.mark.usefixtures("fakes")
def test_an_interrupted_run_says_how_to_go_on(fails, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(protocol, "run_limited", interrupted)
    sentence = fails(*arguments(tmp_path / "results.jsonl"), code=130)
    assert sentence == "amc: Interrupted; nothing is lost. Repeat the command to resume."


@pytest.mark.usefixtures("fakes")
def test_paths_that_cannot_be_used_are_one_sentence(fails, tmp_path):
    assert "is a folder" in fails(*arguments(tmp_path))
    assert "There is no" in fails("automl", "table", str(tmp_path / "none.jsonl"))
    out = tmp_path / "results.jsonl"
    assert run(arguments(out, "--quiet")) == 0
    assert "holds the results" in fails("automl", "table", str(out), "--out", str(out))


@pytest.mark.usefixtures("fakes")
def test_setup_of_all_goes_on_after_a_failure_and_tells_of_it(tmp_path, capsys, monkeypatch):
    def setup(framework: frameworks.Framework, *, root: Path, python: Path | None) -> object:
        if framework.name == "near":
            raise SetupError("near could not be installed: pip failed: no wheel")
        return installed(framework)

    monkeypatch.setattr(environments, "setup", setup)
    assert run(["automl", "setup", "all", "--root", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("pip failed: no wheel") for line in lines)
    assert lines[-1].startswith("absent: ready, Python 3.11")


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["neer"], "Unknown framework 'neer'; did you mean 'near'"),
        (["all", "--python", "python3"], "--python is for one framework"),
        (["near", "--python", "no-such-python"], "no-such-python is no Python that runs"),
    ],
)
def test_a_wrong_option_of_setup_is_one_sentence(
    fails: Callable[..., str], tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in fails("automl", "setup", *options, "--root", str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()

"""``python -m amc_compress.benchmarks``: every benchmark has a name, and runs by it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from amc_compress import benchmarks
from amc_compress.benchmarks.__main__ import BENCHMARKS, listed, main

_FOLDER = Path(benchmarks.__file__).parent


def test_every_program_of_the_folder_is_registered():
    programs = {
        ".".join(path.relative_to(_FOLDER).with_suffix("").parts)
        for path in _FOLDER.glob("*/*.py")
        if "main" in {getattr(node, "name", "") for node in ast.parse(path.read_text()).body}
    }
    assert programs == {*BENCHMARKS.values()}


def test_the_list_says_what_each_measures(capsys):
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*BENCHMARKS]
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_name_the_help_lists_all(arguments, capsys):
    main(arguments)
    assert listed() in capsys.readouterr().out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_explains_its_options(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    monkeypatch.delitem(sys.modules, f"amc_compress.benchmarks.{BENCHMARKS[name]}", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["--benchmark", name, "--help"])
    assert end.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_options_are_passed_on(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    name = "amc_compress.benchmarks.speed.environment_steps"
    monkeypatch.delitem(sys.modules, name, raising=False)
    options = ["--kind", "channels", "--layers", "3", "--seconds", "0.001", "--parts"]
    with pytest.raises(SystemExit) as end:
        main(["--benchmark", "env", *options])
    assert end.value.code == 0
    assert "| channels, 3 layers | microseconds |" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--benchmark", "speed"], ["--layers", "3"]])
def test_what_is_not_known_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert arguments[-2 if "speed" not in arguments else 1] in capsys.readouterr().err

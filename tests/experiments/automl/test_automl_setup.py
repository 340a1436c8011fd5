"""Environments of the AutoML frameworks: what is found, what is installed, what is noted."""

from __future__ import annotations

import ast
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
from support.runs.automl import NEAREST, fake_framework

from amc_compress.automl.environments import (
    Failed,
    Installed,
    SetupError,
    read_status,
    reason_from,
    setup,
)
from amc_compress.automl.frameworks import ADAPTERS, FRAMEWORKS
from amc_compress.automl.interpreters import check_interpreter, find_interpreter
from amc_env import MissingDependencyError, RunFolderError
from amc_env.files import only_one
from amc_env.validation.checks import check_known

OFFLINE = {**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def make_wheel(folder: Path) -> Path:
    """A package of one empty module, which pip installs without any index."""
    path = folder / "tiny_automl-1.0-py3-none-any.whl"
    info = "tiny_automl-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_automl.py", "")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-automl\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def quick_python(folder: Path) -> Path:
    """A Python whose environments are itself: making a real one takes many seconds."""
    run = f'exec {sys.executable} "$@"'
    make = f"mkdir -p \"$3/bin\"; printf '#!/bin/sh\\n%s\\n' '{run}' > \"$3/bin/python\""
    make += '; chmod +x "$3/bin/python"'
    return script(folder / "python", f'if [ "$2" = venv ]; then {make}; else {run}; fi')


# ---- setting up


def test_a_failed_setup_is_noted_with_its_reason(tmp_path):
    requirements = ("no-such-package-of-amc-compress==1",)
    framework = fake_framework(tmp_path, NEAREST, requirements=requirements, pythons=(HERE,))
    root = tmp_path / "root"
    with pytest.raises(SetupError, match="fake could not be installed: pip failed: No matching"):
        setup(framework, root=root, python=quick_python(tmp_path), environment=OFFLINE)
    status = read_status(framework, root)
    assert isinstance(status, Failed)
    assert "No matching distribution found for no-such-package-of-amc-compress" in status.reason
    assert "no-such-package" in (root / "fake" / "setup.log").read_text()


@pytest.mark.slow
def test_a_setup_can_be_repeated_after_a_failure_and_does_nothing_after_a_success(tmp_path):
    requirements = (str(make_wheel(tmp_path)),)
    facts = {"requirements": requirements, "pythons": (HERE,)}
    root = tmp_path / "root"
    broken = fake_framework(tmp_path, NEAREST, modules=("no_such_module",), **facts)
    with pytest.raises(SetupError, match="cannot be imported: ModuleNotFoundError"):
        setup(broken, root=root, python=Path(sys.executable), environment=OFFLINE)
    framework = fake_framework(tmp_path, NEAREST, modules=("tiny_automl",), **facts)
    made = setup(framework, root=root, python=Path(sys.executable), environment=OFFLINE)
    assert made.packages["tiny-automl"] == "1.0"
    assert made.python.startswith(HERE)
    assert Path(made.interpreter).is_relative_to(root)
    assert not (root / "fake" / "failed.json").exists()
    stamp = (root / "fake" / "installed.json").stat().st_mtime_ns
    assert setup(framework, root=root, environment=OFFLINE) == made == read_status(framework, root)
    assert (root / "fake" / "installed.json").stat().st_mtime_ns == stamp


def test_other_requirements_make_a_setup_count_as_none(tmp_path):
    framework = fake_framework(tmp_path, NEAREST)
    folder = tmp_path / "fake"
    folder.mkdir()
    document = {"format": "amc-automl-failed", "version": 1, "name": "fake", "reason": "no wheel"}
    failed = folder / "failed.json"
    failed.write_text(json.dumps({**document, "requirements": ["nothing"]}))
    assert read_status(framework, tmp_path) == Failed("fake", "no wheel", ("nothing",))
    failed.write_text(json.dumps({**document, "requirements": ["something"]}))
    assert read_status(framework, tmp_path) is None


def test_an_environment_that_is_gone_counts_as_none(tmp_path):
    framework = fake_framework(tmp_path, NEAREST)
    gone = Installed("fake", str(tmp_path / "gone"), "3.11", "python", ("nothing",), {}, 1.0)
    (tmp_path / "fake").mkdir()
    document = {"format": "amc-automl-installed", "version": 1, **vars(gone)}
    (tmp_path / "fake" / "installed.json").write_text(json.dumps(document))
    assert read_status(framework, tmp_path) is None


@pytest.mark.parametrize("content", ["{", '{"format": "amc-automl-installed", "version": 1}'])
def test_a_damaged_note_of_a_setup_is_rejected(tmp_path, content):
    framework = fake_framework(tmp_path, NEAREST)
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "installed.json").write_text(content)
    with pytest.raises(RunFolderError, match="is damaged"):
        read_status(framework, tmp_path)


def test_two_setups_at_once_are_rejected(tmp_path):
    framework = fake_framework(tmp_path, NEAREST)
    with only_one(tmp_path / "fake"), pytest.raises(RunFolderError, match="Another process"):
        setup(framework, root=tmp_path)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("ERROR: first\nERROR: No matching distribution found for x\n", "No matching distribution"),
        ("Traceback\n  File x\nKeyError: 'a'\nclosing the server\n", "KeyError: 'a'"),
        ("a.b.CustomError: it broke\n\n", "a.b.CustomError: it broke"),
        ("Segmentation fault\n", "Segmentation fault"),
        ("\n\n", "it ended without a word"),
    ],
)
def test_the_reason_is_the_line_that_says_what_went_wrong(output, reason):
    assert reason_from(output).startswith(reason)


# ---- interpreters and Java


def test_interpreters_are_found_on_the_path_then_among_pyenvs_newest_first(tmp_path, monkeypatch):
    framework = fake_framework(tmp_path, NEAREST, pythons=("3.7", "3.6"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    with pytest.raises(
        MissingDependencyError, match=r"Python 3.7 or 3.6.*setup fake --python PATH"
    ):
        find_interpreter(framework)
    old = script(tmp_path / "pyenv" / "versions" / "3.6.15" / "bin" / "python", "echo 3.6")
    assert find_interpreter(framework) == old
    script(tmp_path / "pyenv" / "versions" / "3.7.9" / "bin" / "python", "echo 3.7")
    newer = script(tmp_path / "pyenv" / "versions" / "3.7.16" / "bin" / "python", "echo 3.7")
    script(tmp_path / "bin" / "python3.7", "echo no such version >&2; exit 127")  # a pyenv shim
    assert find_interpreter(framework) == newer
    on_path = script(tmp_path / "bin" / "python3.7", "echo 3.7")
    assert find_interpreter(framework) == on_path


def test_an_interpreter_that_does_not_fit_is_rejected_and_nothing_is_lost(tmp_path):
    framework = fake_framework(tmp_path, NEAREST, pythons=("3.7",))
    (tmp_path / "fake").mkdir()
    note = tmp_path / "fake" / "failed.json"
    note.write_text("{}")
    with pytest.raises(MissingDependencyError, match=r"needs Python 3.7, and .* is Python 3.6"):
        setup(framework, root=tmp_path, python=script(tmp_path / "python", "echo 3.6"))
    with pytest.raises(MissingDependencyError, match="is no Python that runs"):
        check_interpreter(framework, tmp_path / "missing")
    assert note.read_text() == "{}"


def test_missing_java_is_noted_as_the_reason(tmp_path, monkeypatch):
    framework = fake_framework(tmp_path, NEAREST, needs_java=True, pythons=(HERE,))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "no-java"))
    with pytest.raises(SetupError, match=r"fake needs Java 8 to 17.*JAVA_HOME"):
        setup(framework, root=tmp_path, python=Path(sys.executable))
    status = read_status(framework, tmp_path)
    assert isinstance(status, Failed)
    assert "needs Java" in status.reason


# ---- the four


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=lambda f: f.name)
def test_adapters_are_written_for_the_oldest_python_of_their_framework(framework):
    oldest = min(tuple(map(int, version.split("."))) for version in framework.pythons)
    for path in (framework.adapter, ADAPTERS / "harness.py"):
        tree = ast.parse(path.read_text(), feature_version=oldest)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not any((node.module or "").startswith("experiments") for node in imports)
    tree = ast.parse(framework.adapter.read_text())
    assert "fit" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("name", "near"), [("autosklearn", "auto-sklearn"), ("TPOT", "tpot"), ("h20", "h2o")]
)
def test_an_unknown_framework_suggests_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"Unknown framework '{name}'; did you mean '{near}'"):
        check_known("framework", name, tuple(FRAMEWORKS))

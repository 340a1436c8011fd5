"""What is installed: two import names, every room of the product, and nothing else."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

import amc_compress
import amc_env
from amc_compress.cli import run
from amc_compress.commands import automl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {
    "amc_env": "amc_env",
    "agents": "amc_compress.agents",
    "learners": "amc_compress.learners",
    "experiments": "amc_compress",
}
STAY_IN_THE_CHECKOUT = ("amc_compress.automl", "amc_compress.benchmarks")


def test_every_room_is_installed_and_no_apparatus():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    names = [
        ".".join((name, *init.parent.relative_to(ROOT / folder).parts))
        for folder, name in IMPORTED_AS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(n for n in names if not n.startswith(STAY_IN_THE_CHECKOUT))
    assert {name.partition(".")[0] for name in listed} == {"amc_env", "amc_compress"}


def test_what_the_product_imports_is_declared():
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_").lower() for line in lines}
    other_names = {"sklearn": "scikit_learn", "PIL": "pillow", "yaml": "pyyaml"}
    ours = {*sys.stdlib_module_names, "amc_env", "amc_compress"}
    for folder in IMPORTED_AS:
        for file in (ROOT / folder).rglob("*.py"):
            for name in set(imports_of(file)) - ours:
                assert other_names.get(name, name) in declared, (file, name)


def imports_of(file: Path) -> Iterator[str]:
    """First parts of the names of all modules that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def build(what: str, tmp_path: Path) -> Path:
    """Builds the wheel or the sdist of a copy: building leaves files behind."""
    tree = tmp_path / "tree"
    for folder in IMPORTED_AS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    command = f"from setuptools.build_meta import build_{what} as b; b({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", command], cwd=tree, check=True, capture_output=True)
    (built,) = tmp_path.glob("amc_compress-*.*")
    return built


def test_the_wheel_holds_the_product_with_its_data_and_its_version(tmp_path):
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(wheel.read(metadata).decode())
    assert facts["Version"] == PROJECT["version"] == amc_compress.__version__ == amc_env.__version__
    assert {n.partition("/")[0] for n in names if ".dist-info/" not in n} == {
        "amc_env", "amc_compress"
    }  # fmt: skip
    for package in ("amc_env", "amc_compress", "amc_compress/agents", "amc_compress/learners"):
        assert f"{package}/py.typed" in names
    for package in ("amc_compress", "amc_compress/agents", "amc_compress/learners"):
        assert f"{package}/__init__.pyi" in names
    for file in (
        "amc_env/recorded_tasks/digits-channels.npz",
        "amc_compress/weights/digitsnet.safetensors",
        "amc_compress/report/templates/run.html",
        "amc_compress/learners/tracing/rewriting/plan.py",
        "amc_compress/agents/testing/contract.py",
        "amc_compress/__main__.py",
    ):
        assert file in names
    for folder in ("automl", "benchmarks", "examples", "recipes"):
        assert not any(name.startswith(f"amc_compress/{folder}/") for name in names)


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    command = f"from setuptools.build_meta import build_wheel as b; b({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", command], cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "amc_compress/learners/__init__.pyi" in names
    assert "amc_compress/learners/export/onnx_file.py" in names


@pytest.mark.parametrize("command", [["setup", "x"], ["run", "--out", "x"], ["table", "x"]])
def test_a_comparison_of_automl_frameworks_says_that_it_needs_a_checkout(
    command, monkeypatch, capsys
):
    monkeypatch.setattr(automl, "find_spec", lambda name: None)
    assert run(["automl", *command]) == 2
    said = capsys.readouterr().err
    assert (
        "not part of the installed package: clone the repository and run `pip install -e .`" in said
    )
    assert "Traceback" not in said

"""Imports go one way: experiments -> {agents, learners} -> amc_env."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AGENTS, LEARNERS = "amc_compress.agents", "amc_compress.learners"
ALLOWED = {
    "amc_env": {"amc_env"},
    "agents": {AGENTS, "amc_env"},
    "learners": {LEARNERS, "amc_env"},
    "experiments": {AGENTS, LEARNERS, "amc_env", "amc_compress"},
}


def imported(path: Path) -> set[str]:
    """Our packages that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {package for name in names if (package := _package(name))}


def _package(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] == "amc_compress":
        full = ".".join(parts[:2])
        return full if full in (AGENTS, LEARNERS) else "amc_compress"
    return "amc_env" if parts[0] == "amc_env" else None


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_package_imports_only_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no files found for {package}"
    wrong = {
        str(file.relative_to(ROOT)): sorted(extra)
        for file in files
        if (extra := imported(file) - ALLOWED[package])
    }
    assert wrong == {}


def test_environment_can_be_used_without_stable_baselines() -> None:
    for file in (ROOT / "amc_env").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        modules = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(text))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not modules & {"stable_baselines3", "torch"}, file

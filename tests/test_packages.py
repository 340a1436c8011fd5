"""What is installed: every package of the project, and no other."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("amc_env", "agents", "learners", "experiments")


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inits = [init for folder in FOLDERS for init in (ROOT / folder).rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(init.parent.relative_to(ROOT).parts) for init in inits)

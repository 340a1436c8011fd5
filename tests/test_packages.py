"""What is installed: two import names, every room of the product, and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
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

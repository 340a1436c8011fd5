"""Recipes and examples run as files of a checkout, from any directory."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from amc_compress.cli import app

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
RECIPES = sorted((EXPERIMENTS / "recipes").glob("*.sh"))
EXAMPLES = sorted((EXPERIMENTS / "examples").rglob("*.py"))
ARGUMENTS = {
    "ddpg_ablation": ["OUT"],
    "resnet20_half_macs": ["DATA", "WEIGHTS", "OUT", "local"],
    "resnet20_ways_of_training": ["DATA", "WEIGHTS", "OUT", "TEACHER"],
    "train_digitsnet": [],
}
"""Recipe -> its arguments; the others take data, weights and a folder."""


def commands_of(recipe: Path, folder: Path) -> list[list[str]]:
    """Calls of ``amc`` by a recipe, each as its arguments; nothing is run."""
    log = folder / "log"
    for name, body in (("amc", f'printf "%q " "$@" >> {log}; echo >> {log}'), ("python", "true")):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": "python"}
    subprocess.run(
        [recipe, *ARGUMENTS.get(recipe.stem, ["DATA", "WEIGHTS", "OUT"])],
        cwd=folder, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    return [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_asks_for_what_the_command_line_takes(recipe, tmp_path):
    commands = commands_of(recipe, tmp_path)
    assert commands or recipe.stem == "train_digitsnet"
    for verb, *arguments in commands:
        get_command(app).get_command(None, verb).make_context(verb, arguments)  # parses


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_imports_what_it_needs_wherever_it_is_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path(str(example), run_name="not main")["__doc__"]

"""Imports go one way: between the packages, between the rooms of a package, between the files."""

from __future__ import annotations

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AGENTS, LEARNERS = "amc_compress.agents", "amc_compress.learners"
FOLDERS = {
    "amc_env": "amc_env",
    AGENTS: "agents",
    LEARNERS: "learners",
    "amc_compress": "experiments",
}
"""Import name of a package -> its folder; a name's parent comes after it."""
ALLOWED = {
    "amc_env": {"amc_env"},
    AGENTS: {AGENTS, "amc_env"},
    LEARNERS: {LEARNERS, "amc_env"},
    "amc_compress": {AGENTS, LEARNERS, "amc_env", "amc_compress"},
}
FACE = "__init__"
FLOORS: dict[str, list[set[str]]] = {
    "amc_env": [
        {"errors"},
        {"validation"},
        {"files", "graph", "support"},
        {"kinds"},
        {"plan"},
        {"costs", "scores"},
        {"budgets", "render", "reward"},
        {"actions", "observation"},
        {"env"},
        {"one_shot", "recorded_tasks", "vector_env"},
        {FACE},
    ],
    AGENTS: [
        {FACE, "determinism", "options", "trials"},
        {"logging", "pareto", "testing"},
        {"rollout"},
        {"base"},
        {"curves", "heuristics", "own", "seeded"},
        {"actor_critic", "floors", "samplers"},
        {"registry"},
    ],
    LEARNERS: [
        {FACE, "tasks"},
        {"layers", "numerics"},
        {"networks"},
        {"tracing", "training"},
        {"base", "packing"},
        {"candidates", "testing"},
        {"channel_pruning", "quantization", "sparsification"},
        {"export", "joint"},
        {"latency"},
    ],
    "amc_compress": [
        {FACE, "config", "interruptions", "temporary", "user_code"},
        {"automl", "data", "evaluations"},
        {"examples", "models", "recipes"},
        {"runs", "tasks"},
        {"report"},
        {"comparison", "stages"},
        {"commands", "front"},
        {"benchmarks", "cli"},
        {"__main__"},
    ],
}
"""Package -> its rooms, the lowest first: folders and files at its root.

A room imports from lower floors only. A new one goes on the lowest floor where that holds.
"""


def package_of(module: str) -> str:
    return next(name for name in FOLDERS if f"{module}.".startswith(f"{name}."))


def room_of(module: str) -> str:
    below = module.removeprefix(package_of(module)).split(".")[1:]
    return below[0] if below else FACE


@cache
def modules() -> dict[str, Path]:
    """Import name -> file."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


def named(path: Path, *, for_types: bool = True) -> set[str]:
    """Everything that a file imports, wherever in the file; what only types need, if asked for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    if not for_types:
        checked = [
            n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
        ]
        left_out = {inner for node in checked for inner in ast.walk(node)}
        nodes = [node for node in nodes if node not in left_out]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def imports(*, for_types: bool = True) -> dict[str, set[str]]:
    """Module of ours -> the modules of ours that it imports."""
    known = modules()
    return {
        module: {
            name if name in known else name.rpartition(".")[0]
            for name in named(path, for_types=for_types)
            if name in known or name.rpartition(".")[0] in known
        }
        - {module}
        for module, path in known.items()
    }


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = [module for module in modules() if package_of(module) == package]
    assert files
    wrong = {
        module: sorted(extra)
        for module in files
        if (extra := {package_of(x) for x in imports()[module]} - ALLOWED[package])
    }
    assert wrong == {}


@pytest.mark.parametrize("package", FLOORS)
def test_a_room_imports_from_lower_floors_only(package: str) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    inner = {m: room_of(m) for m in modules() if package_of(m) == package}
    assert floor.keys() == set(inner.values()), "FLOORS names every room and nothing else"
    wrong = [
        f"{module} -> {other}"
        for module, room in inner.items()
        for other in imports()[module] & inner.keys()
        if room != inner[other] and floor[inner[other]] >= floor[room]
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        list(graphlib.TopologicalSorter(imports(for_types=False)).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_environment_can_be_used_without_torch_and_stable_baselines() -> None:
    for path in (ROOT / "amc_env").rglob("*.py"):
        assert not {n.split(".")[0] for n in named(path)} & {"stable_baselines3", "torch"}, path

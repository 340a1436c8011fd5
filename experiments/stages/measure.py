"""Score and costs of one network, for ``amc evaluate``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from amc_compress.config.run_config import RunConfig
from amc_compress.config.texts import split_key
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.runs.folder import PACKED, RunFolder
from amc_compress.runs.networks import (
    build_with_weights,
    compressed_name,
    example_input,
    load_original,
    load_smaller,
    trace_original,
)
from amc_compress.runs.problem import make_problem
from amc_compress.runs.storage.trust import NOTHING, PURPOSE, Trust
from amc_compress.runs.task import facts_of, load_splits, stored_splits, use_threads
from amc_compress.stages.evaluate import measure, predicted_costs
from amc_compress.stages.pipeline import say
from amc_env import make_cost
from amc_env.costs.costs import COSTS


def measure_run(
    directory: Path,
    *,
    original: bool,
    trust: Trust = NOTHING,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures the compressed (or the original) network of a run on its test images.

    Args:
        directory: The folder of the run.
        original: Whether to measure the original.
        trust: Which code that the folder names may be run.
        options: Some in place of the folder's, of those that may change at any time.

    Raises:
        RunFolderError: If the folder is no run, or names a model that may not be run.
    """
    folder = RunFolder.open(directory, trust=trust, uses=("model", *PURPOSE))
    folder.config = replace(folder.config, **(options or {}))
    use_threads(folder.config, folder.facts, training=True)
    network = load_original(folder)
    problem = make_problem(folder.config, trace_original(folder), tables=False)
    data = stored_splits(folder)
    loader, task = data.test, folder.config.spec.task(data.task).bind(network, "cpu")
    if original:
        size = (folder / "original.safetensors").stat().st_size
        return measure(network, problem.original(), loader, size, task=task)
    name = compressed_name(folder)
    small = load_smaller(folder, name)
    costs = predicted_costs(problem, folder.read_plan())
    return measure(small, costs, loader, _file_size(folder, name), task=task)


def _file_size(folder: RunFolder, name: str) -> int | None:
    """Bytes of what is stored; None for a network that will be packed and is not yet."""
    if not folder.config.spec.packs:
        return (folder / name).stat().st_size
    return (folder / PACKED).stat().st_size if folder.is_done("finetune") else None


def measure_file(config: RunConfig, path: Path) -> dict[str, Any]:
    """Measures a weights file on the test images."""
    data = load_splits(config, say)
    facts = facts_of(data)
    use_threads(config, facts, training=True)
    built = build_with_weights(
        config.model, facts, path, config.model_args, allow_pickle=config.allow_pickle
    )
    network = built.network
    for note in filter(None, (built.taken, *built.notes)):
        print(note, file=sys.stderr)  # not among the results, which are one line of JSON
    example = data.example if facts.image_shape is None else example_input(facts)
    graph = trace(network, example, part=config.part).graph
    costs = {name: make_cost(name, graph, ()).original(()) for name in COSTS}
    task, size = config.spec.task(data.task).bind(network, "cpu"), split_key(path)[0].stat().st_size
    return measure(network, costs, data.test, size, task=task)

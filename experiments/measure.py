"""Accuracy and costs of one network, for ``amc evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amc_env import CompressionPlan
from experiments.configs import RunConfig
from experiments.context import facts_of, load_splits, use_threads
from experiments.evaluate import measure
from experiments.models import load_weights
from experiments.networks import (
    build_original,
    compressed_name,
    example_input,
    load_original,
    load_smaller,
    trace_original,
)
from experiments.runs import RunFolder
from learners.tracing import trace


def measure_run(directory: Path, *, original: bool) -> dict[str, Any]:
    """Measures the compressed (or the original) network of a run on its test images."""
    folder = RunFolder.open(directory)
    use_threads(folder.config, folder.facts, training=True)
    network = load_original(folder)
    traced = trace_original(folder, network)
    loader = load_splits(folder.config).test
    if original:
        file = folder / "original.safetensors"
        return measure(network, traced, CompressionPlan({}), loader, file)
    name = compressed_name(folder)
    small = load_smaller(folder, name, traced)
    return measure(small, traced, folder.read_plan(), loader, folder / name)


def measure_file(config: RunConfig, path: Path) -> dict[str, Any]:
    """Measures a weights file on the test images."""
    data = load_splits(config)
    facts = facts_of(data)
    use_threads(config, facts, training=True)
    network = build_original(config.model, facts)
    load_weights(network, path, allow_pickle=config.allow_pickle)
    traced = trace(network, example_input(facts))
    return measure(network, traced, CompressionPlan({}), data.test, path)

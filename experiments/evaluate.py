"""Stages ``export`` and ``evaluate``: the files for deployment, and before and after in numbers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc_env import Budget, CompressionPlan, make_cost
from amc_env.cost import COSTS
from experiments.context import Task, use_threads
from experiments.export import export_onnx, require_onnx, time_onnx
from experiments.files import write_json
from experiments.networks import example_input, load_smaller, trace_original
from experiments.runs import RunFolder
from learners.tracing import TracedModel
from learners.training import evaluate

# Images of the validation split on which ONNX Runtime must agree with torch.
_N_COMPARED = 256


def run_export(task: Task) -> None:
    """Writes ``model.onnx`` and ``original.onnx``, checks them against torch and times them."""
    folder = task.folder
    if folder.is_done("export"):
        return
    folder.results("finetune")
    require_onnx()
    folder.start("export")
    use_threads(task.config, folder.facts, training=False)
    started = time.perf_counter()
    example = example_input(folder.facts)
    images = task.data.validation.images[:_N_COMPARED].float().cpu()
    small = load_smaller(folder, "model.safetensors")
    checked = export_onnx(small, example, folder / "model.onnx", images=images)
    export_onnx(task.original, example, folder / "original.onnx", images=images)
    latency = time_onnx(
        {"original": folder / "original.onnx", "compressed": folder / "model.onnx"},
        folder.facts.image_shape,
    )
    folder.finish(
        "export",
        seconds=round(time.perf_counter() - started, 3),
        latency_ms=latency,
        max_difference=checked.max_difference,
        agreement=checked.agreement,
        n_images=checked.n_images,
        onnx_bytes={
            "original": (folder / "original.onnx").stat().st_size,
            "compressed": (folder / "model.onnx").stat().st_size,
        },
    )


def run_evaluate(task: Task) -> None:
    """Touches the test set, once, and writes ``summary.json``."""
    folder, config = task.folder, task.config
    if not folder.is_done("evaluate"):
        folder.results("finetune")
        folder.start("evaluate")
        use_threads(config, folder.facts, training=True)
        started = time.perf_counter()
        small = load_smaller(folder, "model.safetensors")
        accuracy = {
            name: evaluate(model, task.data.test, precision="fp32", device=config.device)
            for name, model in (("original", task.original), ("compressed", small))
        }
        traced = trace_original(folder, task.original.cpu())
        folder.finish(
            "evaluate",
            seconds=round(time.perf_counter() - started, 3),
            accuracy=accuracy,
            costs=plan_costs(traced, folder.read_plan()),
            group_sizes={group.name: group.size for group in traced.graph.groups},
            n_images=task.data.test.n_images,
        )
    write_json(folder / "summary.json", summarise(folder))


def plan_costs(traced: TracedModel, plan: CompressionPlan) -> dict[str, dict[str, float]]:
    """Returns the costs of the original and of the plan: ``{"original": {"macs": ..}, ..}``."""
    from amc_env import Decision, DecisionKind

    # Only the targets matter for costs; a one-choice grid per group needs no round_to.
    decisions = [
        Decision(g.name, DecisionKind.KEEP_RATIO, (1.0,), g.size) for g in traced.graph.groups
    ]
    chosen = [plan.get(d.key, 1.0) for d in decisions]
    models = {name: make_cost(name, traced.graph, decisions) for name in COSTS}
    return {
        "original": {name: cost([1.0] * len(decisions)) for name, cost in models.items()},
        "compressed": {name: cost(chosen) for name, cost in models.items()},
    }


def summarise(folder: RunFolder) -> dict[str, Any]:
    """Returns the content of ``summary.json``.

    ``bytes`` is the size of each network's safetensors file. ``latency_ms`` is null for a run
    without export.
    """
    config = folder.config
    search, finetune = folder.results("search"), folder.results("finetune")
    measured = folder.results("evaluate")
    export = folder.results("export") if folder.is_done("export") else None
    files = {"original": "original.safetensors", "compressed": "model.safetensors"}
    networks = {
        name: {
            "accuracy": measured["accuracy"][name],
            "macs": round(measured["costs"][name]["macs"]),
            "params": round(measured["costs"][name]["params"]),
            "bytes": (folder / file).stat().st_size,
            "latency_ms": export["latency_ms"][name] if export else None,
        }
        for name, file in files.items()
    }
    return {
        **networks,
        "cost_ratio": search["best"]["cost_ratio"],
        "budget": {n: list(bounds) for n, bounds in Budget.parse(config.budget).bounds.items()},
        "agent": config.agent,
        "episodes": search["n_trials"],
        "seed": config.seed,
        "seconds": {
            "search": search["seconds"],
            "finetune": finetune["seconds"],
            "export": export["seconds"] if export else None,
        },
        "cpu_seconds_per_episode": search["cpu_seconds_per_episode"],
    }


def measure(
    model: nn.Module, traced: TracedModel, plan: CompressionPlan, loader: Any, weights: Path | None
) -> dict[str, Any]:
    """Returns accuracy and costs of one network, for ``amc evaluate``.

    Args:
        model: The network.
        traced: The original network it comes from (or itself).
        plan: Its plan; an empty one for an uncompressed network.
        loader: Images and labels.
        weights: Its file, whose size is reported.
    """
    with torch.no_grad():
        accuracy = evaluate(model, loader, precision="fp32")
    costs = plan_costs(traced, plan)["compressed"]
    return {
        "accuracy": accuracy,
        "n_images": loader.n_images,
        "macs": round(costs["macs"]),
        "params": round(costs["params"]),
        "bytes": weights.stat().st_size if weights is not None else None,
    }

"""Stages ``export`` and ``evaluate``: deployment files, and figures before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from amc_compress.config.run_config import RunConfig
from amc_compress.config.values import ONNX_BYTES
from amc_compress.data.given import CountedBatches
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_layers, quantized_weights
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.noise import standard_error
from amc_compress.learners.tasks.task import Task as Purpose
from amc_compress.learners.training.evaluation import evaluate, evaluate_in_groups
from amc_compress.report.cautions import cautions
from amc_compress.runs.folder import PACKED, RunFolder
from amc_compress.runs.networks import load_smaller
from amc_compress.runs.problem import Problem
from amc_compress.runs.storage.stored_state import blamed_on
from amc_compress.runs.task import Task, use_threads
from amc_env import CompressionPlan
from amc_env.costs.canonical import VoidDecisions
from amc_env.costs.costs import COSTS, FURTHER_COSTS
from amc_env.costs.latency import TableCost
from amc_env.files import write_json
from amc_env.graph import CHANNELS, ChannelGroup
from amc_env.kinds import Quantity
from amc_env.scores.metric import Metric


def run_evaluate(task: Task) -> None:
    """Evaluates on the test set, once, and writes ``summary.json``."""
    folder, config = task.folder, task.config
    if not folder.is_done("evaluate"):
        folder.results("finetune")
        folder.start("evaluate")
        use_threads(config, folder.facts, training=True)
        started = time.perf_counter()
        small = load_smaller(folder, "model.safetensors")
        test = CountedBatches(task.data.test, task.purpose)
        found = {
            name: evaluate_in_groups(
                model, test, task=task.bound, precision="fp32", device=config.device
            )
            for name, model in (("original", task.original), ("compressed", small))
        }
        problem, plan = task.problem, folder.read_plan()
        groups = groups_there(problem, plan)
        roles = {group.name: group.role for group in groups if group.role != CHANNELS}
        folder.finish(
            "evaluate",
            seconds=round(time.perf_counter() - started, 3),
            score={name: score for name, (score, _) in found.items()},
            standard_error=standard_error(*(groups for _, groups in found.values())),
            costs={
                "original": problem.original(),
                "compressed": predicted_costs(problem, plan),
            },
            group_sizes={group.name: group.size for group in groups},
            **({"group_roles": roles} if roles else {}),
            bits=layer_bits(small),
            densities=layer_densities(small),
            n_images=test.n_samples,
        )
    with blamed_on(folder / "state.json"):
        summary = summarise(folder)
    write_json(folder / "summary.json", summary)


def groups_there(problem: Problem, plan: CompressionPlan) -> list[ChannelGroup]:
    """Returns the channel groups that did not go with a branch.

    Raises:
        PlanMismatchError: If the plan does not fit.
    """
    decisions = problem.decisions
    void = VoidDecisions(problem.graph, decisions).of(plan.values_for(decisions))
    gone = {
        d.target
        for d, v in zip(decisions, void, strict=True)
        if v and d.kind.quantity is Quantity.WIDTH
    }
    return [group for group in problem.graph.groups if group.name not in gone]


def predicted_costs(problem: Problem, plan: CompressionPlan) -> dict[str, float]:
    """Returns the absolute costs of a complete plan; of tables the sum of what was measured.

    What budgets count is the least monotone cost above that, which is no prediction.

    Raises:
        PlanMismatchError: If the plan does not fit.
    """
    values = plan.values_for(problem.decisions)
    tables = {n: cost for n, cost in problem.costs.items() if isinstance(cost, TableCost)}
    return problem.cost(plan) | {name: cost.predict(values) for name, cost in tables.items()}


def layer_bits(network: nn.Module) -> dict[str, dict[str, int | None]]:
    """Returns the bits of every quantized layer; None where something is left in float32."""

    def bits(quantizer: Any) -> int | None:
        return None if quantizer is None else int(quantizer.bits)

    return {
        name: {
            "weights": bits(weight.quantizer),
            "activations": bits(weight.layer.input_quantizer),
        }
        for name, weight in quantized_weights(network).items()
    }


def layer_densities(network: nn.Module) -> dict[str, list[int]]:
    """Returns left and original weights of every layer with a mask."""
    return {
        name: [int(layer.masked_weight().count_nonzero()), layer.weight.numel()]
        for name, layer in masked_layers(network).items()
    }


def summarise(folder: RunFolder) -> dict[str, Any]:
    """Returns the content of ``summary.json``.

    ``bytes`` is the size of each network's file: safetensors, and for a quantized or sparse
    network the packed file; ``onnx_bytes`` is the size of the files that ``latency_ms`` was
    measured on. Both are null for a run without export, and where no runtime
    executes the network. A run that quantizes has ``bops`` and ``mean_bits`` as well, one with
    zeros in its weights ``density``; a run with cost tables has what they predict: the sum of the
    measured values, which a budget may count higher.
    """
    config, metric = folder.config, folder.metric
    search, finetune = folder.results("search"), folder.results("finetune")
    measured = folder.results("evaluate")
    export = folder.results("export") if folder.is_done("export") else None
    latency = export["latency_ms"] if export else None
    files = {
        "original": "original.safetensors",
        "compressed": PACKED if config.spec.packs else "model.safetensors",
    }
    networks = {
        name: {
            **metric.named(measured["score"][name]),
            **shown_costs(
                measured["costs"][name],
                quantized=config.spec.quantizes,
                sparse=config.spec.sparsifies,
            ),
            "bytes": (folder / file).stat().st_size,
            "latency_ms": latency[name] if latency else None,
            "onnx_bytes": export["onnx_bytes"][name] if export and latency else None,
        }
        for name, file in files.items()
    }
    return {
        **networks,
        "validation": {
            name: metric.named(score) for name, score in _validation_scores(finetune).items()
        },
        "cautions": cautions(folder, networks),
        "cost_ratio": search["best"]["cost_ratio"],
        "budget": search.get("bounds") or {n: list(b) for n, b in config.budget.bounds.items()},
        "agent": config.agent,
        "episodes": search["n_trials"],
        "seed": config.seed,
        "seconds": {
            "search": search["seconds"],
            "finetune": finetune["seconds"],
            "export": export["seconds"] if export else None,
        },
        "cpu_seconds_per_episode": search["cpu_seconds_per_episode"],
        **_of_some_runs(folder, export),
    }


def _of_some_runs(folder: RunFolder, export: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what the summaries of some runs have: of their learner, task or data."""
    config, metric = folder.config, folder.metric
    search, finetune = folder.results("search"), folder.results("finetune")
    measured = folder.results("evaluate")
    # The default learner goes without saying.
    more: dict[str, Any] = (
        {} if config.learner == RunConfig.learner else {"learner": config.learner}
    )
    if not metric.is_accuracy:
        more["metric"] = asdict(metric)
    if not folder.facts.has_test:
        more["tested_on"] = "validation"
    if config.spec.quantizes:
        more["bits"] = measured["bits"]
        more["export_refused"] = export.get("refused") if export else None
    if export and "note" in export:
        more["export_note"] = export["note"]
    if "steps" in finetune:
        more["steps"] = [_named(metric, step) for step in finetune["steps"]]
    if "stages" in search:
        more["stages"] = [_named(metric, stage) for stage in search["stages"]]
    if config.spec.sparsifies:
        more["densities"] = measured["densities"]
    return more


def _validation_scores(finetune: Mapping[str, Any]) -> dict[str, float]:
    """Scores of both networks on all validation samples, as far as the run has noted them."""
    keys = {"original": "validation_score_original", "compressed": "validation_score"}
    return {name: finetune[key] for name, key in keys.items() if key in finetune}


def _named(metric: Metric, row: Mapping[str, Any]) -> dict[str, Any]:
    """A step or a stage, with its scores by the name and in the sign of their metric as well."""
    scores = {key: value for key, value in row.items() if key in ("score", "finetuned_score")}
    named = {
        key.replace("score", metric.name): None if value is None else metric.value(value)
        for key, value in scores.items()
    }
    return {**row, **named, **scores}


def shown_costs(
    costs: Mapping[str, float], *, quantized: bool, sparse: bool = False
) -> dict[str, Any]:
    """Returns the costs that are reported as numbers of their own; bytes are those of a file."""
    shown: dict[str, Any] = {name: round(costs[name]) for name in ("macs", "params")}
    if quantized:
        shown |= {"bops": round(costs["bops"]), "mean_bits": round(costs["mean_bits"], 4)}
    if sparse:
        shown["density"] = round(costs["density"], 4)
    measured = (*COSTS, *FURTHER_COSTS, ONNX_BYTES)
    if predicted := {name: value for name, value in costs.items() if name not in measured}:
        shown["predicted"] = predicted
    return shown


def measure(
    model: nn.Module,
    costs: Mapping[str, float],
    loader: Any,
    n_bytes: int | None,
    *,
    task: Purpose = CLASSIFICATION,
) -> dict[str, Any]:
    """Returns score and costs of one network, for ``amc evaluate``.

    Args:
        model: The network.
        costs: Its costs by name.
        loader: Images and labels.
        n_bytes: Size of its file; the predicted one if there is no file.
        task: What the network is for, bound to the original one.
    """
    seen = CountedBatches(loader, task)
    with torch.no_grad():
        score = evaluate(model, seen, task=task, precision="fp32")
    return {
        **Metric.of(task).named(score),
        "n_images": seen.n_samples,
        **shown_costs(
            costs, quantized=bool(quantized_layers(model)), sparse=bool(masked_layers(model))
        ),
        "bytes": round(costs["bytes"]) if n_bytes is None else n_bytes,
    }

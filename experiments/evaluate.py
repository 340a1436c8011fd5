"""Stages ``export`` and ``evaluate``: the files for deployment, and before and after in numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amc_env import Budget, CompressionPlan
from amc_env.cost import COSTS
from amc_env.latency import TableCost
from experiments.context import Task, use_threads
from experiments.export import BATCH_SIZES, export_onnx, require_onnx, time_onnx
from experiments.files import write_json
from experiments.networks import example_input, load_smaller
from experiments.onnx_options import OnnxOptions, file_metadata
from experiments.problem import Problem
from experiments.runs import PACKED, RunFolder
from experiments.stored_state import blamed_on
from learners.masking import masked_layers
from learners.quantization.modules import quantized_layers
from learners.sparsification.finalise import finalise
from learners.training import evaluate

# Images of the validation split on which ONNX Runtime must agree with torch.
_N_COMPARED = 256
# Images that settle the integer ranges of an exported network; they are training images.
_N_CALIBRATION = 256


def run_export(task: Task) -> None:
    """Writes ``model.onnx`` and ``original.onnx``, checks them against torch and times them.

    A quantized network is exported for integer arithmetic. Where no runtime executes its bits
    the stage says so instead, and the packed file is what there is.
    """
    folder = task.folder
    if folder.is_done("export"):
        return
    folder.results("finetune")
    require_onnx()
    folder.start("export")
    use_threads(task.config, folder.facts, training=False)
    started = time.perf_counter()
    small = load_smaller(folder, "model.safetensors")
    images = task.data.validation.images[:_N_COMPARED].float().cpu()
    results: dict[str, Any]
    if quantized_layers(small):
        results = _export_quantized(task, small, images)
    else:
        # Runtimes know no masks: the zeros are written into the weights.
        checked = export_onnx(
            finalise(small),
            example_input(folder.facts),
            folder / "model.onnx",
            images=images,
            options=_with_metadata(task),
        )
        results = {
            "max_difference": checked.max_difference,
            "agreement": checked.agreement,
            "n_images": checked.n_images,
        }
    if "refused" not in results:
        results |= _time_against_original(task, images)
    folder.finish("export", seconds=round(time.perf_counter() - started, 3), **results)


def _export_quantized(task: Task, small: nn.Module, images: Tensor) -> dict[str, Any]:
    from experiments.quantized_export import (
        UnsupportedPrecisionError,
        check_executable,
        export_quantized,
    )

    folder = task.folder
    try:
        check_executable(small)
        checked = export_quantized(
            small,
            example_input(folder.facts),
            folder / "model.onnx",
            calibration=task.data.calibration.images[:_N_CALIBRATION].float().cpu(),
            images=images,
            options=_with_metadata(task),
        )
    except UnsupportedPrecisionError as error:
        (folder / "model.onnx").unlink(missing_ok=True)  # of an earlier fine-tuning
        return {"refused": str(error), "latency_ms": None}
    return {
        "max_difference": checked.max_difference,
        "agreement": checked.agreement,
        "n_images": checked.n_images,
    }


def _with_metadata(task: Task) -> OnnxOptions:
    """Returns the options of the export, with what the file says of classes and images."""
    data, options = task.data, task.onnx
    normalisation = data.test.normalisation
    metadata = file_metadata(data.class_names, normalisation, data.image_shape)
    return replace(
        options,
        metadata={**metadata, **options.metadata},
        preprocessing=normalisation if task.onnx_preprocessing else None,
    )


def _time_against_original(task: Task, images: Tensor) -> dict[str, Any]:
    folder = task.folder
    files = {"original": folder / "original.onnx", "compressed": folder / "model.onnx"}
    options = _with_metadata(task)
    export_onnx(
        task.original,
        example_input(folder.facts),
        files["original"],
        images=images,
        options=options,
    )
    sizes = BATCH_SIZES if options.batch is None else (options.batch,)
    return {
        "latency_ms": time_onnx(files, folder.facts.image_shape, batch_sizes=sizes),
        "onnx_bytes": {name: file.stat().st_size for name, file in files.items()},
    }


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
        problem = task.problem
        folder.finish(
            "evaluate",
            seconds=round(time.perf_counter() - started, 3),
            accuracy=accuracy,
            costs={
                "original": problem.original(),
                "compressed": predicted_costs(problem, folder.read_plan()),
            },
            group_sizes={group.name: group.size for group in problem.graph.groups},
            bits=layer_bits(small),
            densities=layer_densities(small),
            n_images=task.data.test.n_images,
        )
    with blamed_on(folder / "state.json"):
        summary = summarise(folder)
    write_json(folder / "summary.json", summary)


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
            "weights": bits(layer.weight_quantizer),
            "activations": bits(layer.input_quantizer),
        }
        for name, layer in quantized_layers(network).items()
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
    config = folder.config
    search, finetune = folder.results("search"), folder.results("finetune")
    measured = folder.results("evaluate")
    export = folder.results("export") if folder.is_done("export") else None
    latency = export["latency_ms"] if export else None
    files = {
        "original": "original.safetensors",
        "compressed": PACKED if config.packs else "model.safetensors",
    }
    networks = {
        name: {
            "accuracy": measured["accuracy"][name],
            **shown_costs(
                measured["costs"][name], quantized=config.quantizes, sparse=config.sparsifies
            ),
            "bytes": (folder / file).stat().st_size,
            "latency_ms": latency[name] if latency else None,
            "onnx_bytes": export["onnx_bytes"][name] if export and latency else None,
        }
        for name, file in files.items()
    }
    more: dict[str, Any] = {}
    if config.quantizes:
        more = {
            "learner": config.learner,
            "bits": measured["bits"],
            "export_refused": export.get("refused") if export else None,
        }
    elif config.learner != "channels":
        more = {"learner": config.learner}
    if "steps" in finetune:
        more["steps"] = finetune["steps"]
    if "stages" in search:
        more["stages"] = search["stages"]
    if config.sparsifies:
        more["densities"] = measured["densities"]
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
        **more,
    }


def shown_costs(
    costs: Mapping[str, float], *, quantized: bool, sparse: bool = False
) -> dict[str, Any]:
    """Returns the costs that are reported as numbers of their own; bytes are those of a file."""
    shown: dict[str, Any] = {name: round(costs[name]) for name in ("macs", "params")}
    if quantized:
        shown |= {"bops": round(costs["bops"]), "mean_bits": round(costs["mean_bits"], 4)}
    if sparse:
        shown["density"] = round(costs["density"], 4)
    if predicted := {name: value for name, value in costs.items() if name not in COSTS}:
        shown["predicted"] = predicted
    return shown


def measure(
    model: nn.Module, costs: Mapping[str, float], loader: Any, n_bytes: int | None
) -> dict[str, Any]:
    """Returns accuracy and costs of one network, for ``amc evaluate``.

    Args:
        model: The network.
        costs: Its costs by name.
        loader: Images and labels.
        n_bytes: Size of its file; the predicted one if there is no file.
    """
    with torch.no_grad():
        accuracy = evaluate(model, loader, precision="fp32")
    return {
        "accuracy": accuracy,
        "n_images": loader.n_images,
        **shown_costs(
            costs, quantized=bool(quantized_layers(model)), sparse=bool(masked_layers(model))
        ),
        "bytes": round(costs["bytes"]) if n_bytes is None else n_bytes,
    }

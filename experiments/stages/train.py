"""Stage ``train``: the full-precision network, from scratch or from given weights."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch
from torch import nn

from amc_compress.config.run_config import RunConfig
from amc_compress.config.texts import snapshot_settings
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import train
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.events import open_writer
from amc_compress.runs.networks import (
    build_original,
    build_with_weights,
    save_network,
    trace_original,
)
from amc_compress.runs.task import Task, use_threads
from amc_compress.stages.evaluate import measure
from amc_env import make_cost
from amc_env.costs.costs import COSTS
from amc_env.files import write_atomic, write_json


def initial_network(config: RunConfig, facts: DataFacts) -> nn.Module:
    """Returns the network before training; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        torch.manual_seed(config.seed)
        return build_original(config.model, facts, config.model_args)


def run_train(task: Task) -> None:
    """Writes ``original.safetensors``: the given weights, or the network trained from scratch."""
    folder, config = task.folder, task.config
    if folder.is_done("train"):
        return
    folder.start("train")
    use_threads(config, folder.facts, training=True)
    started = time.perf_counter()
    if (taken := _taken(task)) is not None:
        network, how = taken
        save_network(network, folder / "original.safetensors")
        seconds = round(time.perf_counter() - started, 3)
        folder.finish("train", seconds=seconds, epochs=0, taken=how)
        return
    model = initial_network(config, folder.facts)
    settings = TrainingConfig(
        epochs=config.train_epochs,
        learning_rate=config.train_learning_rate,
        precision=config.precision,
        seed=config.seed,
        **config.device_settings,
        **snapshot_settings(config.snapshot_every),
    )
    checkpoints = folder / "checkpoints" / "train"
    with open_writer(folder / "tensorboard" / "train") as writer:
        result = train(
            model,
            task.data.train,
            task.data.validation,
            settings,
            checkpoint_dir=checkpoints,
            resume=True,
            writer=writer,
            progress=task.progress,
            task=task.purpose,
            device=config.device,
        )
    save_network(model, folder / "original.safetensors")
    folder.finish(
        "train",
        seconds=round(result.seconds, 3),
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        validation_score=result.best_score,
    )
    shutil.rmtree(checkpoints, ignore_errors=True)


def _taken(task: Task) -> tuple[nn.Module, str] | None:
    """Returns the network of a run that does not train it, and in words what it is."""
    folder, config = task.folder, task.config
    if folder.given is not None:
        return folder.given.network, "weights taken as they were given"
    if config.weights is not None:
        built = build_with_weights(
            config.model, folder.facts, config.weights, config.model_args,
            allow_pickle=config.allow_pickle,
        )  # fmt: skip
        return built.network, built.taken
    if not config.train_epochs:
        network = initial_network(config, folder.facts)
        return network, "skipped, 0 epochs: weights taken as the factory gave them"
    return None


def write_training_results(task: Task) -> Path:
    """Writes ``model.safetensors`` and ``summary.json`` of a run that only trains."""
    folder, config = task.folder, task.config
    path = folder / "model.safetensors"
    write_atomic(path, (folder / "original.safetensors").read_bytes())
    graph = trace_original(folder).graph
    costs = {name: make_cost(name, graph, ()).original(()) for name in COSTS}
    metric, size = folder.metric, path.stat().st_size
    measured = measure(task.original, costs, task.data.test, size, task=task.bound)
    stage = folder.results("train")
    validation = stage.get("validation_score")
    write_json(
        folder / "summary.json",
        {
            **measured,
            f"validation_{metric.name}": None if validation is None else metric.value(validation),
            "model": config.model,
            "data": config.data,
            "epochs": stage["epochs"],
            "seed": config.seed,
            "seconds": stage["seconds"],
        },
    )
    return path

"""Stage ``finetune``: recovers the score of the smaller network by distillation."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amc_compress.learners.packing.packed_file import save_packed
from amc_compress.learners.quantization.codebook.learner import set_mode
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.distributed.steps import steps_per_epoch
from amc_compress.learners.training.feature_matching import FeatureMatching
from amc_compress.learners.training.hooks import KeptStatistics, TrainingHook
from amc_compress.learners.training.loop import evaluate, train
from amc_compress.runs.events import open_writer
from amc_compress.runs.folder import PACKED
from amc_compress.runs.networks import example_of, save_network
from amc_compress.runs.task import Task, use_threads
from amc_compress.stages.finetuning.deep import finetune_deeply
from amc_compress.stages.finetuning.start import starting_network
from amc_env import CompressionPlan


def _hooks(task: Task, model: nn.Module) -> tuple[TrainingHook, ...]:
    """Returns what the fine-tuning needs and teaches besides answers."""
    config = task.config
    steps = config.epochs * steps_per_epoch(len(task.data.train), config.accumulate)
    hooks = config.spec.hooks(task.original, model, steps)
    if task.keeps_statistics:
        hooks = (KeptStatistics(), *hooks)
    if config.feature_matching:
        hooks += (FeatureMatching(weight=config.feature_matching),)
    return hooks


def run_finetune(task: Task) -> None:
    """Writes ``model.safetensors``; with ``epochs`` 0 the smaller network as it is.

    A quantized or sparse network is written packed as well: that file's size is what it takes
    to store.
    """
    folder, config = task.folder, task.config
    if folder.is_done("finetune"):
        return
    folder.results("search")
    plan: CompressionPlan = folder.read_plan()
    settings = config.spec.training_config()
    checkpoints = folder / "checkpoints" / "finetune"
    if not folder.has_begun("finetune"):  # what lies there is of an earlier fine-tuning
        shutil.rmtree(checkpoints, ignore_errors=True)
    folder.start("finetune")
    use_threads(config, folder.facts, training=True)
    more: dict[str, Any] = {}
    trained_on = task.data.content.get("train data")
    if config.spec.in_steps:
        deep = finetune_deeply(task, settings, checkpoints)
        done = _Done(deep.network, {}, deep.seconds, deep.original, deep.before, deep.after)
        more = {"steps": deep.stages}
    else:
        done = _finetune(task, settings, checkpoints)
    done.network.cpu()
    save_network(done.network, folder / "model.safetensors", plan=plan, kept=done.kept)
    if config.spec.packs:
        example = example_of(folder)
        save_packed(
            done.network, folder / PACKED, kept=done.kept, plan=plan, example_input=example,
            part=config.part,
        )  # fmt: skip
    folder.finish(
        "finetune",
        seconds=round(done.seconds, 3),
        epochs=config.epochs,
        validation_score_original=done.original,
        validation_score_before=done.before,
        validation_score=done.after,
        **more,
        **({"trained_on": trained_on} if trained_on else {}),
    )
    shutil.rmtree(checkpoints, ignore_errors=True)


@dataclass(frozen=True)
class _Done:
    """A fine-tuned network, the units that stay, and scores on all validation samples."""

    network: nn.Module
    kept: Mapping[str, Tensor]
    seconds: float
    original: float
    before: float | None
    after: float


def _finetune(task: Task, settings: TrainingConfig, checkpoints: Path) -> _Done:
    """Trains the network that the search has made, or one that was cut with more care."""
    config = task.config
    start = starting_network(task, settings, checkpoints)
    model, seconds = start.network, start.seconds
    if config.spec.quantization == "codebook":
        set_mode(model, config.codebook_mode)
    before, after, more = train_smaller(task, model, settings, checkpoints, "finetune")
    original = validation_score(task, task.original)
    return _Done(model, start.kept, seconds + more, original, before, after)


def validation_score(task: Task, network: nn.Module) -> float:
    """Returns the score of a network on all validation samples, in float32."""
    return evaluate(
        network, task.data.validation, task=task.bound, precision="fp32", device=task.config.device
    )


def train_smaller(
    task: Task, model: nn.Module, settings: TrainingConfig, checkpoints: Path, events: str
) -> tuple[float | None, float, float]:
    """Fine-tunes a network, in place; it is never worse afterwards.

    Args:
        task: The run.
        model: The smaller network.
        settings: Of the training.
        checkpoints: Where they are kept; a training that was interrupted is resumed.
        events: Folder of its TensorBoard events.

    Returns:
        Validation score before, if it had one, and afterwards, both in float32; and seconds.
    """
    folder, config = task.folder, task.config
    if not config.epochs:
        score = validation_score(task, model)
        return score, score, 0.0
    with open_writer(folder / "tensorboard" / events) as writer:
        result = train(
            model,
            task.data.train,
            task.data.validation,
            settings,
            teacher=task.teacher,
            hooks=_hooks(task, model),
            checkpoint_dir=checkpoints,
            resume=True,
            writer=writer,
            progress=task.progress,
            task=task.bound,
            device=config.device,
        )
    return result.start_score, result.final_score, result.seconds

"""Starting point of a fine-tuning: cut at once, group by group, or after sparse training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from amc_compress.learners.channel_pruning.gradual.group_finetuning import group_finetune
from amc_compress.learners.channel_pruning.gradual.sparse_training import cut_after, sparse_training
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.runs.events import open_writer
from amc_compress.runs.networks import load_smaller, read_shape, save_network
from amc_compress.runs.task import Task
from amc_env.files import read_document, write_json

_CUT = "cut.safetensors"
_SECONDS = "cut.json"


@dataclass(frozen=True)
class Start:
    """Starting point of the fine-tuning.

    Args:
        network: In eval mode.
        kept: Channel group -> units of the original that stay.
        seconds: Time spent on it, beyond the search.
    """

    network: nn.Module
    kept: dict[str, Tensor]
    seconds: float = 0.0


def starting_network(task: Task, settings: TrainingConfig, checkpoints: Path) -> Start:
    """Returns the network of the plan: from the search, or cut in stages, or after fading.

    Args:
        task: The run, searched.
        settings: Of its trainings, whatever the number of epochs.
        checkpoints: Folder that an interrupted one is continued from.
    """
    folder, config = task.folder, task.config
    name = "pruned.safetensors"
    if config.sparse_training == "none" and config.finetune_groups == 1:
        return Start(load_smaller(folder, name), read_shape(folder / name).kept)
    path = checkpoints / _CUT
    if not path.exists():
        started = time.perf_counter()
        cut = _after_fading if config.sparse_training != "none" else _in_groups
        network, kept = cut(task, settings, checkpoints)
        network.cpu()
        write_json(checkpoints / _SECONDS, {"seconds": time.perf_counter() - started})
        save_network(network, path, plan=folder.read_plan(), kept=kept)
    seconds = read_document(checkpoints / _SECONDS, shape={"seconds": float})["seconds"]
    # From the file in any case, so that a resumed run begins with the same.
    name = str(path.relative_to(folder.path))
    return Start(load_smaller(folder, name), read_shape(path).kept, seconds)


def _after_fading(
    task: Task, settings: TrainingConfig, checkpoints: Path
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Trains the original until what the plan cuts has faded, and cuts it."""
    config, plan = task.config, task.folder.read_plan()
    learner = task.channel_learner(task.original)
    with open_writer(task.folder / "tensorboard" / "sparse_training") as writer:
        trained = sparse_training(
            learner,
            plan,
            task.data.train,
            regulariser=config.sparse_training,
            strength=config.sparse_strength,
            epochs=config.sparse_epochs,
            config=settings,
            teacher=task.teacher,
            checkpoint_dir=checkpoints / "sparse_training",
            resume=True,
            writer=writer,
            progress=task.progress,
        )
    return cut_after(learner, trained, plan), learner.kept_units(plan)


def _in_groups(
    task: Task, settings: TrainingConfig, checkpoints: Path
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Cuts some layers, fine-tunes, cuts the next ones."""
    config = task.config
    with open_writer(task.folder / "tensorboard" / "groups") as writer:
        result = group_finetune(
            task.channel_learner,
            task.original,
            task.folder.read_plan(),
            task.data.train,
            groups=config.finetune_groups,
            epochs_between=config.group_epochs,
            config=settings,
            teacher=task.teacher,
            checkpoint_dir=checkpoints / "groups",
            resume=True,
            writer=writer,
            progress=task.progress,
        )
    return result.network, result.kept

"""Group fine-tuning: cut some channel groups, fine-tune, cut the next ones.

What PocketFlow's ``cp_list_group`` does and AMC's authors advise at high ratios: no stage takes
away more than fine-tuning can bring back, and the next stage is repaired on the statistics of a
network that works.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from amc_compress.learners.channel_pruning.decisions import check_channels_alone
from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches
from amc_compress.learners.training.identity import digest_of
from amc_env.errors import PlanMismatchError, RunFolderError
from amc_env.files import save_bytes
from amc_env.plan import CompressionPlan, Decision
from amc_env.validation.checks import check_whole, checked
from amc_env.validation.json_text import parse_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

KEPT_FILE = "kept.json"


@dataclass(frozen=True)
class GroupFinetuned:
    """What :func:`group_finetune` returns.

    Attributes:
        network: Cut in every group, in ``eval`` mode and the types that came; not fine-tuned since
            its last cut.
        kept: Channel group -> sorted units that stay, of the original network: its slice by them
            takes the weights of ``network``.
        learner: Of the last stage; what the final fine-tuning is done with.
        stages: The groups that each stage has cut.
    """

    network: nn.Module
    kept: dict[str, Tensor]
    learner: ChannelPruning
    stages: tuple[tuple[str, ...], ...]


@checked
def group_finetune(
    make_learner: Callable[[nn.Module], ChannelPruning],
    model: nn.Module,
    plan: CompressionPlan,
    train_loader: Batches,
    *,
    groups: int,
    epochs_between: int,
    config: TrainingConfig | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    writer: SummaryWriter | None = None,
) -> GroupFinetuned:
    """Carries a plan out in stages, with fine-tuning in between.

    The channel groups that the plan cuts are divided, in network order, into ``groups`` parts of
    equal count. Each stage prepares a learner on the network of the stage before, cuts its part,
    and is fine-tuned unless it is the last; that one is left to the final fine-tuning.

    Args:
        make_learner: Prepares a learner on a plain float32 network; deterministic, if the run is
            to be resumed.
        model: The original network, not changed.
        plan: A plan of ``make_learner(model)``.
        train_loader: Training batches.
        groups: Number of stages; fewer where the plan cuts fewer channel groups.
        epochs_between: Of each fine-tuning; 0 for none.
        config: All its other settings.
        teacher: Network to distil from, usually the original one.
        checkpoint_dir: Gets a folder per stage.
        resume: Whether to continue from there, to the same result. Cuts are made again, finished
            fine-tunings are read.
        progress: Whether to show progress bars.
        writer: TensorBoard writer.

    Raises:
        PlanMismatchError: If the plan does not fit the network, or the groups of a network that has
            been cut cannot be found again.
        RunFolderError: If the folder belongs to another run.
        ValueError: If an option is out of range.
    """
    check_whole("groups", groups, 1)
    check_whole("epochs_between", epochs_between, 0)
    if resume and checkpoint_dir is None:
        raise RunFolderError("Resuming needs the checkpoint_dir of the first run, got None.")
    taken = take_in(model)  # in float32 until the last stage: rounded once
    learner = make_learner(taken.network)
    original = learner.decisions
    check_channels_alone(original, "cutting in stages")
    stages = _stages(original, plan, groups)
    network, kept = learner.compress(CompressionPlan.full(original)), dict[str, Tensor]()
    for index, stage in enumerate(stages):
        if index:
            learner = make_learner(network)
            _check_groups(original, learner.decisions, kept)
        part = _part_of(plan, learner.decisions, stage)
        network = learner.compress(part)
        # Each group is cut once, so its units still have the numbers of the original.
        kept |= learner.kept_units(part)
        folder = None if checkpoint_dir is None else checkpoint_dir / f"stage-{index + 1}"
        if folder is not None:
            _note_kept(folder, kept, digest_of(network), resume)
        if epochs_between and index < len(stages) - 1:
            learner.finetune(
                network,
                train_loader,
                epochs=epochs_between,
                teacher=teacher,
                config=config,
                checkpoint_dir=folder,
                resume=resume,
                writer=writer,
                progress=progress,
            )
    network = taken.form.hand_back(network)
    return GroupFinetuned(network, kept, learner, tuple(stages))


def _stages(
    decisions: Sequence[Decision], plan: CompressionPlan, count: int
) -> list[tuple[str, ...]]:
    """Returns the groups to cut in each stage, in network order."""
    values = plan.values_for(decisions)
    cut = [d.target for d, v in zip(decisions, values, strict=True) if d.units(v) < d.size]
    parts = np.array_split(np.arange(len(cut)), max(1, min(count, len(cut))))
    return [tuple(cut[i] for i in part) for part in parts if len(part)]


def _part_of(
    plan: CompressionPlan, decisions: Sequence[Decision], stage: Sequence[str]
) -> CompressionPlan:
    """Returns the plan of one stage: its groups as planned, all others whole."""
    full = CompressionPlan.full(decisions)
    return CompressionPlan(
        {d.key: plan[d.key] if d.target in stage else full[d.key] for d in decisions}
    )


def _check_groups(
    original: Sequence[Decision], found: Sequence[Decision], kept: Mapping[str, Tensor]
) -> None:
    """Rejects a cut network whose channel groups are not those of the original, by name."""
    expected = {d.target: len(kept[d.target]) if d.target in kept else d.size for d in original}
    sizes = {d.target: d.size for d in found}
    for name in expected | sizes:
        if expected.get(name) != sizes.get(name):
            raise PlanMismatchError(
                f"Expected the channel group {name!r} of {expected.get(name, 0)} units in the "
                f"network of the last stage, found {sizes.get(name, 0)}: its forward has channel "
                f"numbers that can be rewritten only once, so cut this network in one stage."
            )


def _note_kept(folder: Path, kept: Mapping[str, Tensor], digest: str, resume: bool) -> None:
    """Writes which units stay so far and what was cut, or compares with what the first run wrote.

    The weights of a finished fine-tuning fit any network of the same shapes: of other units, and
    of the same units of another network or repaired on other images.
    """
    rows = {name: index.tolist() for name, index in kept.items()}
    note = {"kept": rows, "network": digest}
    path = folder / KEPT_FILE
    if path.is_file():
        if not resume:
            raise RunFolderError(
                f"The folder {folder} already holds a stage: resume it, or choose another folder."
            )
        try:
            stored = parse_json(path.read_bytes())
            before, network = dict(stored["kept"]), str(stored["network"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"Cannot read {path} ({error}): delete the folder and start again."
            ) from error
        if before != rows:
            names = sorted(n for n in before.keys() | rows.keys() if before.get(n) != rows.get(n))
            raise RunFolderError(
                f"The folder {folder} belongs to another run, which kept other units of "
                f"{', '.join(names)}: resume with the same plan, learner and data, or choose "
                f"another folder."
            )
        if network != digest:
            raise RunFolderError(
                f"The folder {folder} belongs to another run, whose network had other weights when "
                f"it was cut: resume with the same network, learner and data, or choose another "
                f"folder."
            )
        return
    save_bytes(path, json.dumps(note).encode())

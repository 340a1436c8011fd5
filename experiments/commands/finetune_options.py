"""The options of fine-tuning, for ``amc_compress.commands.options``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc_compress.config.run_config import RunConfig

_FINETUNE = "Fine-tuning"
_CUT = "Fine-tuning around the cut (learners that only cut channels)"
_SCHEDULE = "Fine-tuning of sparse networks (--learner sparse, deep)"

_DEFAULT = RunConfig()  # where the defaults live


class FinetuneOptions:
    """Every option of fine-tuning by name, with its type, its help and its default."""

    epochs: Annotated[
        int, typer.Option(help="Epochs of the fine-tuning; 0 for none.", rich_help_panel=_FINETUNE)
    ] = _DEFAULT.epochs
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Its peak learning rate; a fine-tuning takes 0.02 if not given; 0.01 for "
            "quantized networks, whose gradients are limited too; 0.001 for codebooks (0.003 with "
            "--codebook-mode weights). With --learner deep it is that of the codebooks.",
            show_default=False,
            rich_help_panel=_FINETUNE,
        ),
    ] = None
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="Its weight decay; 5e-4 if not given, 0 for quantized networks.",
            show_default=False,
            rich_help_panel=_FINETUNE,
        ),
    ] = None
    teacher: Annotated[
        str,
        typer.Option(
            help="Who teaches the small network (distillation): original (the uncompressed one), "
            "none, or any other network for these data: a name as for --model, or "
            "package.module:factory.",
            rich_help_panel=_FINETUNE,
        ),
    ] = _DEFAULT.teacher
    distillation_temperature: Annotated[
        float, typer.Option(help="Softens the teacher's answers.", rich_help_panel=_FINETUNE)
    ] = _DEFAULT.distillation_temperature
    distillation_weight: Annotated[
        float,
        typer.Option(
            help="Share of the teacher in the loss; the labels have the rest.",
            rich_help_panel=_FINETUNE,
        ),
    ] = _DEFAULT.distillation_weight

    teacher_weights: Annotated[
        Path | None,
        typer.Option(
            help="Trained weights of --teacher, where that is another network.",
            show_default=False,
            rich_help_panel=_FINETUNE,
        ),
    ] = None
    feature_matching: Annotated[
        float,
        typer.Option(
            help="Attention-transfer loss weight: attend to the same places of an image as the "
            "teacher (attention transfer); 1000 is usual, 0 is off.",
            rich_help_panel=_FINETUNE,
        ),
    ] = _DEFAULT.feature_matching
    sparse_training: Annotated[
        str,
        typer.Option(
            help="Before the channels are cut, train the whole network with a penalty on those "
            "that will go, until they have faded: growing (a factor that grows) or group-lasso; "
            "or none.",
            rich_help_panel=_CUT,
        ),
    ] = _DEFAULT.sparse_training
    sparse_epochs: Annotated[
        int, typer.Option(help="Epochs of --sparse-training.", rich_help_panel=_CUT)
    ] = _DEFAULT.sparse_epochs
    sparse_strength: Annotated[
        float | None,
        typer.Option(
            help="With --sparse-training: ceiling of the growing factor, or weight of the group "
            "lasso; larger where the training is shorter.",
            show_default="1 for growing, 0.002 for group-lasso",
            rich_help_panel=_CUT,
        ),
    ] = _DEFAULT.sparse_strength
    finetune_groups: Annotated[
        int,
        typer.Option(
            help="Cut the layers in this many groups, one after the other, and fine-tune "
            "--group-epochs in between; 1 cuts all at once.",
            rich_help_panel=_CUT,
        ),
    ] = _DEFAULT.finetune_groups
    group_epochs: Annotated[
        int, typer.Option(help="Epochs from one group to the next.", rich_help_panel=_CUT)
    ] = _DEFAULT.group_epochs

    schedule: Annotated[
        str,
        typer.Option(
            help="gradual: begin with all weights and let the zeros grow, so that weights can come "
            "back; one-shot: begin with the zeros of the plan.",
            rich_help_panel=_SCHEDULE,
        ),
    ] = _DEFAULT.schedule
    schedule_begin: Annotated[
        float,
        typer.Option(
            help="Share of the fine-tuning after which the zeros begin to grow.",
            rich_help_panel=_SCHEDULE,
        ),
    ] = _DEFAULT.schedule_begin
    schedule_end: Annotated[
        float,
        typer.Option(
            help="Share after which there are as many as the plan says.",
            rich_help_panel=_SCHEDULE,
        ),
    ] = _DEFAULT.schedule_end
    schedule_exponent: Annotated[
        float,
        typer.Option(
            help="How much faster they grow at first: 1 is steady, 3 the published one.",
            rich_help_panel=_SCHEDULE,
        ),
    ] = _DEFAULT.schedule_exponent
    schedule_frequency: Annotated[
        int | None,
        typer.Option(
            help="Training steps from one choice of zeros to the next. Not given: 100, or fewer "
            "so that there are 20 choices.",
            show_default=False,
            rich_help_panel=_SCHEDULE,
        ),
    ] = None
    retraining_epochs: Annotated[
        int,
        typer.Option(
            help="With --learner deep: epochs of the sparse network in float, before it is "
            "quantized; the codebooks have --epochs.",
            rich_help_panel=_SCHEDULE,
        ),
    ] = _DEFAULT.retraining_epochs


FINETUNE = (
    "epochs", "learning_rate", "weight_decay", "teacher", "distillation_temperature",
    "distillation_weight", "teacher_weights", "feature_matching", "sparse_training",
    "sparse_epochs", "sparse_strength", "finetune_groups", "group_epochs", "schedule",
    "schedule_begin", "schedule_end", "schedule_exponent", "schedule_frequency",
    "retraining_epochs",
)  # fmt: skip

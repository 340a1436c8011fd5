"""The options of fine-tuning."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from amc_compress.config.option import option
from amc_compress.config.texts import place
from amc_compress.config.values import CHANNEL_LEARNERS, OPTIMIZERS

_finetune = functools.partial(option, stage="finetune", panel="Fine-tuning")
_cut = functools.partial(
    option,
    stage="finetune",
    panel="Fine-tuning around the cut (learners that only cut channels)",
    learners=CHANNEL_LEARNERS,
)
_sparse = functools.partial(
    option,
    stage="finetune",
    panel="Fine-tuning of sparse networks (--learner sparse, deep)",
    learners=("sparse", "deep"),
)


@dataclass(frozen=True)
class FinetuneOptions:
    """How the smaller network is trained."""

    epochs: int = _finetune(
        None,
        "Epochs of the fine-tuning; 0 for none. Not given: 30; for digit-scenes 10; see --preset.",
        least=0,
        everyday=True,
    )
    optimizer: str = _finetune(
        "sgd",
        "What trains it: sgd, with momentum, or adamw, which suits transformers.",
        choices=OPTIMIZERS,
    )
    learning_rate: float = _finetune(
        None,
        "Its peak learning rate; a fine-tuning takes 0.02 if not given; 0.01 for "
        "quantized networks, whose gradients are limited too; 0.001 for codebooks (0.003 with "
        "--codebook-mode weights); a fortieth of these with --optimizer adamw. With --learner "
        "deep it is that of the codebooks.",
        above=0,
        everyday=True,
    )
    weight_decay: float = _finetune(
        None,
        "Its weight decay; 5e-4 if not given, 0.01 with --optimizer adamw; 0 for quantized "
        "networks.",
        least=0,
    )
    teacher: str = _finetune(
        "original",
        "The teacher of the small network (distillation): original (the uncompressed one), "
        "none, or any other network for these data: a name as for --model, or "
        "package.module:factory.",
    )
    distillation_temperature: float = _finetune(4.0, "Softens the teacher's answers.", above=0)
    distillation_weight: float = _finetune(
        0.7, "Share of the teacher in the loss; the labels have the rest.", least=0, most=1
    )
    teacher_weights: str | None = _finetune(
        None,
        "Trained weights of --teacher, where that is another network.",
        read=place,
        kind=Path,
    )
    feature_matching: float = _finetune(
        0.0,
        "Weight of the attention-transfer loss, by which the network looks at the same places "
        "of an image as the teacher; 1000 is usual, 0 is off.",
        least=0,
    )

    sparse_training: str = _cut(
        "none",
        "Before the channels are cut, train the whole network with a penalty on those "
        "that will go, until they have faded: growing (a factor that grows) or group-lasso; "
        "or none.",
        choices=("none", "growing", "group-lasso"),
    )
    sparse_epochs: int = _cut(10, "Epochs of --sparse-training.", least=1)
    sparse_strength: float | None = _cut(
        None,
        "With --sparse-training: ceiling of the growing factor, or weight of the group "
        "lasso; larger where the training is shorter.",
        default_text="1 for growing, 0.002 for group-lasso",
        above=0,
    )
    finetune_groups: int = _cut(
        1,
        "Cut the layers in this many groups, one after the other, and fine-tune "
        "--group-epochs in between; 1 cuts all at once.",
        least=1,
    )
    group_epochs: int = _cut(3, "Epochs from one group to the next.", least=0)

    schedule: str = _sparse(
        "gradual",
        "gradual: begin with all weights and let the zeros grow, so that weights can come "
        "back; one-shot: begin with the zeros of the plan.",
        choices=("gradual", "one-shot"),
    )
    schedule_begin: float = _sparse(
        0.0, "Share of the fine-tuning after which the zeros begin to grow.", least=0, most=1
    )
    schedule_end: float = _sparse(
        0.5, "Share after which there are as many as the plan says.", least=0, most=1
    )
    schedule_exponent: float = _sparse(
        3.0, "How much faster they grow at first: 1 is steady, 3 the published one.", above=0
    )
    schedule_frequency: int | None = _sparse(
        None,
        "Training steps from one choice of zeros to the next. Not given: 100, or fewer "
        "so that there are 20 choices.",
        least=1,
    )
    retraining_epochs: int = _sparse(
        30,
        "With --learner deep: epochs of the sparse network in float, before it is "
        "quantized; the codebooks have --epochs.",
        learners=("deep",),
        least=1,
    )

"""The options of how data are read, and how often a training is saved."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from amc_compress.config.option import ANY_TIME, option
from amc_compress.config.options.task import RUN
from amc_compress.config.texts import listed, memory, snapshots
from amc_compress.config.values import AUGMENTATIONS
from amc_env.validation.checks import MOST_THREADS

_task = functools.partial(option, stage="task", panel="Network and data")
_free = functools.partial(option, stage=ANY_TIME, panel=RUN)


@dataclass(frozen=True)
class DataOptions:
    """How data are read: augmented, by how many processes, in how much memory."""

    augment: tuple[str, ...] = _task(
        ("standard",),
        f"What is done to training images; several with commas, of {', '.join(AUGMENTATIONS)}. "
        "standard: a random shift, with --image-size a random part, scaled; colour images are "
        "mirrored. In its place crop (a random part, scaled) and flip, or none. Behind it "
        "randaugment, and of each batch mixup or cutmix, which need the vision extra.",
        read=listed,
        default_text="standard",
    )
    tokens: int = _task(
        128,
        "Tokens of a sample where --data is text: of blocks of the text joined for networks that "
        "generate, else of a line, which is cut off or filled up.",
        least=2,
    )
    memory: str = _free(
        "",
        "What decoded images may take, e.g. 4GB, counted twice where a data set is cut. Of larger "
        "data the images that calibrate and validate are held as far as they fit, and all others "
        "decoded anew for each batch, which gives the same result.",
        default_text="half of the machine's",
        read=memory,
        metavar="SIZE",
    )
    data_workers: int = _free(
        0,
        "Processes that decode and augment images, or read a data set of yours; 0 for none but "
        "the one that trains. Their number changes no result.",
        least=0,
        most=MOST_THREADS,
    )

    snapshot_every: str = _free(
        "10m",
        "How often a training is saved inside its epochs too, to go on from there when it is "
        "killed: a time (10m) or a number of steps (500); none for after each epoch alone.",
        read=snapshots,
        metavar="TIME|STEPS",
    )

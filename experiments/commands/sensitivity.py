"""``amc sensitivity``: what each layer loses when it alone is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc_compress.commands import options as o
from amc_compress.commands.options import takes
from amc_compress.commands.values import config_of

_OF_SEARCHES = (
    "budget", "agent", "evaluations", "time_limit", "max_drop", "max_drop_after", "minimize",
    "reward", "action", "warm_start", "progressive", "stages", "stage_epochs", "protocol",
)  # fmt: skip
_SEARCH = tuple(name for name in o.SEARCH if name not in _OF_SEARCHES)

Points = Annotated[int, typer.Option(min=1, help="Values of each decision that are evaluated.")]


@takes(*o.NEW_RUN, *o.OUTPUT, *o.TASK, *_SEARCH)
def sensitivity(
    ctx: typer.Context, out: Path, resume: bool, quiet: bool, points: Points = 4
) -> None:
    """Measure what each layer loses when it alone is compressed, before any search.

    Every decision takes a few values, from the smallest up, one decision at a
    time, and each candidate is evaluated as in a search. Prints a table, those
    that hurt most first, and writes OUT/sensitivity.csv, .json, .png and .svg.
    An interrupted measurement resumes with --resume; `amc compress --out OUT
    --resume` goes on from there.

    Examples:

    \b
      amc sensitivity --out runs/first
      amc sensitivity --model resnet20 --weights resnet20.safetensors \\
          --data data/cifar10 --points 3 --out runs/r20
    \b
      How many bits does each layer need?
        amc sensitivity --learner uniform --weight-bits 2-8 --points 6 \\
            --out runs/bits
    """
    stages = ("train",)
    checked = (*stages, "search")  # it measures what a search would
    config = config_of(ctx)
    config.validate(checked)
    from amc_compress.stages.pipeline import open_task, run_stages, say, silent
    from amc_compress.stages.sensitivity import run_sensitivity, sensitivity_table

    task = open_task(out, config, resume=resume, stages=checked, quiet=quiet)
    with task.folder:
        run_stages(task, stages, silent if quiet else say)
        rows = run_sensitivity(task, points)
        percent = task.folder.metric.is_accuracy
        print(sensitivity_table(rows, config.spec.costs[0], percent=percent))
        print(task.folder / "sensitivity.png")

"""``amc compress``, ``amc search`` and ``amc train``: the verbs that begin a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc_compress.commands import options as o
from amc_compress.commands.options import takes
from amc_compress.commands.values import config_of
from amc_compress.config.run_config import STAGES, RunConfig


@takes(*o.NEW_RUN, "devices", "no_export", *o.OUTPUT, *o.TASK, *o.SEARCH, *o.FINETUNE)
def compress(
    ctx: typer.Context, out: Path, devices: int | None, resume: bool, no_export: bool, quiet: bool
) -> None:
    """Make a trained network smaller and faster: search, fine-tune, export, report.

    An agent chooses how many channels each layer keeps (or weights, or how many
    bits they get, or all of these: --learner), under a budget that is never
    broken. The best plan is cut out of the network, fine-tuned with the original
    as its teacher, exported to ONNX, compared with the original on the test
    images, and reported in OUT/report.html.

    Examples:

    \b
      Half the multiply-adds, on the embedded digits, in two minutes:
        amc compress --budget macs=0.5 --out runs/digits
    \b
      A ResNet-20 of yours on a folder of parquet files:
        amc compress --model resnet20 --weights resnet20.safetensors \\
            --data data/cifar10 --budget macs=0.5 --evaluations 200 --out runs/r20
    \b
      A network of your own, with half the multiply-adds and 30% of the bytes:
        amc compress --model mypackage.nets:make_net --weights net.pt \\
            --data data/flowers --budget macs=0.5,bytes=0.3 --out runs/mine
    \b
      Eight bits everywhere; two to eight, decided layer by layer; channels too:
        amc compress --learner uniform --weight-bits 8 --out runs/int8
        amc compress --learner uniform --budget mean_bits=3/32 --out runs/bits
        amc compress --learner joint --budget macs=0.5,bytes=0.1 --out runs/both
    \b
      A tenth of the weights; a tenth of the bytes; a fifth of the MACs in stages:
        amc compress --learner sparse --budget density=0.1 --out runs/sparse
        amc compress --learner deep --budget bytes=0.1 --out runs/deep
        amc compress --budget macs=0.2 --progressive 3 --out runs/fifth
    \b
      Detection and segmentation, on scenes of digits that come along:
        amc compress --data digit-scenes --task detection --out runs/boxes
        amc compress --data digit-scenes --task segmentation --out runs/masks
    \b
      Trained in two processes, evaluated by two workers:
        amc compress --devices 2 --workers 2 --budget macs=0.5 --out runs/two
    \b
      Resume an interrupted run:
        amc compress --budget macs=0.5 --out runs/digits --resume
    """
    stages = [s for s in STAGES if not (no_export and s == "export")]
    config = config_of(ctx)
    config.validate(stages)  # before the imports, so that mistakes are answered at once
    from amc_compress.commands.devices import by_devices, on_devices, stage_to_join
    from amc_compress.stages.pipeline import open_task, run_stages, say, silent

    if (stage := stage_to_join()) is not None:

        def work(folder: Path, silently: bool) -> None:
            hidden = quiet or silently
            task = open_task(folder, config, resume=True, stages=stages, quiet=hidden, talk=silent)
            with task.folder:
                run_stages(task, (stage,), silent)

        on_devices(None, config.device, out.expanduser(), work)
        return
    elsewhere = by_devices(devices, config.device)
    task = open_task(out, config, resume=resume, stages=stages, quiet=quiet)
    with task.folder:
        run_stages(task, stages, silent if quiet else say, elsewhere=elsewhere)
        print_summary(task.folder.path)


@takes(*o.NEW_RUN, *o.OUTPUT, *o.TASK, *o.SEARCH)
def search(ctx: typer.Context, out: Path, resume: bool, quiet: bool) -> None:
    """Look for the best plan only; stops after plan.json.

    `amc finetune OUT`, `amc export OUT` and `amc report OUT` continue from there,
    and so does `amc compress --out OUT --resume` with the same options.

    Examples:

    \b
      amc search --model resnet20 --weights resnet20.safetensors \\
          --data data/cifar10 --budget macs=0.5 --evaluations 200 --out runs/r20
    \b
      Hill climbing instead, with a lower bound on the budget too:
        amc search --budget macs=0.45:0.5 --agent local --out runs/local
    """
    stages = ("train", "search")
    config = config_of(ctx)
    config.validate(stages)
    from amc_compress.stages.pipeline import open_task, run_stages, say, silent

    task = open_task(out, config, resume=resume, stages=stages, quiet=quiet)
    with task.folder:
        run_stages(task, stages, silent if quiet else say)
        print(task.folder / "plan.json")


Epochs = Annotated[
    int, typer.Option(help="Epochs of the training; 30 if not given, 20 for digit-scenes.")
]
LearningRate = Annotated[float, typer.Option(help="Its peak learning rate; 0.05 if not given.")]


@takes(
    *o.NEW_RUN,
    *o.OUTPUT,
    "model",
    "data",
    *o.SPLITS,
    *o.PIXELS,
    "augment",
    *o.TRAINING,
)
def train(
    ctx: typer.Context,
    out: Path,
    devices: int | None,
    resume: bool,
    quiet: bool,
    epochs: Epochs = RunConfig.train_epochs,
    learning_rate: LearningRate = RunConfig.train_learning_rate,
) -> None:
    """Train a network from scratch; writes OUT/model.safetensors and OUT/summary.json.

    Examples:

    \b
      amc train --model digitsnet --data digits --epochs 30 --out runs/full
    \b
      Then compress what came out:
        amc compress --model digitsnet --weights runs/full/model.safetensors \\
            --data digits --out runs/small
    \b
      In two processes:
        amc train --model resnet20 --data data/cifar10 --devices 2 --out runs/full
    """
    stages = ("train",)
    config = config_of(ctx, train_epochs="epochs", train_learning_rate="learning_rate")
    if not config.train_epochs:
        raise ValueError(
            "Expected --epochs >= 1, got 0; to compress a network with the weights that its "
            "factory gave it, run `amc compress --train-epochs 0`."
        )
    config.validate(stages)
    from amc_compress.commands.devices import on_devices
    from amc_compress.stages.pipeline import open_task, run_stages, say, silent
    from amc_compress.stages.train import write_training_results

    def work(folder: Path, silently: bool) -> None:
        hidden = quiet or silently
        task = open_task(folder, config, resume=resume, stages=stages, quiet=hidden)
        with task.folder:
            run_stages(task, stages, silent if hidden else say)
            print(write_training_results(task))

    on_devices(devices, config.device, out.expanduser(), work)


def print_summary(path: Path) -> None:
    """Prints the before/after table of a finished run, on stdout."""
    from amc_compress.report.summary import summary_table

    print(summary_table(path))

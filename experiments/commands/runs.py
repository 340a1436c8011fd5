"""``amc compress``, ``amc search`` and ``amc train``: the verbs that begin a run."""

from __future__ import annotations

import typer

from experiments.commands import options as o
from experiments.commands.options import DEFAULT, config_from


def compress(
    ctx: typer.Context,
    out: o.Out,
    model: o.Model = DEFAULT.model,
    data: o.Data = DEFAULT.data,
    weights: o.Weights = None,
    budget: o.Budget = DEFAULT.budget,
    agent: o.Agent = DEFAULT.agent,
    episodes: o.Episodes = DEFAULT.episodes,
    seed: o.Seed = DEFAULT.seed,
    resume: o.Resume = False,
    epochs: o.Epochs = DEFAULT.epochs,
    learning_rate: o.LearningRate = DEFAULT.learning_rate,
    weight_decay: o.WeightDecay = DEFAULT.weight_decay,
    teacher: o.Teacher = DEFAULT.teacher,
    distillation_temperature: o.DistillationTemperature = DEFAULT.distillation_temperature,
    distillation_weight: o.DistillationWeight = DEFAULT.distillation_weight,
    criterion: o.Criterion = DEFAULT.criterion,
    proxy: o.Proxy = DEFAULT.proxy,
    finetune_steps: o.FinetuneSteps = DEFAULT.finetune_steps,
    round_to: o.RoundTo = DEFAULT.round_to,
    min_ratio: o.MinRatio = DEFAULT.min_ratio,
    n_validation: o.NValidation = DEFAULT.n_validation,
    ignore: o.Ignore = None,
    reading: o.Reading = DEFAULT.reading,
    reward: o.Reward = DEFAULT.reward,
    allow_pickle: o.AllowPickle = False,
    validation_size: o.ValidationSize = None,
    validation_split: o.ValidationSplit = DEFAULT.validation_split,
    mean: o.Mean = None,
    std: o.Std = None,
    batch_size: o.BatchSize = DEFAULT.batch_size,
    train_epochs: o.TrainEpochs = DEFAULT.train_epochs,
    train_learning_rate: o.TrainLearningRate = DEFAULT.train_learning_rate,
    precision: o.Precision = DEFAULT.precision,
    threads: o.Threads = DEFAULT.threads,
    device: o.Device = DEFAULT.device,
    no_export: o.NoExport = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Make a trained network smaller and faster: search, fine-tune, export, report.

    An agent chooses how many channels each layer keeps, under a budget
    that is never broken. The best plan is cut out of the network, fine-tuned
    with the original as its teacher, exported to ONNX, compared with the
    original on the test images, and reported in OUT/report.html.

    Examples:

    \b
      Half the multiply-adds, on the embedded digits, in two minutes:
        amc compress --budget macs=0.5 --out runs/digits
    \b
      A ResNet-20 of yours on a folder of parquet files:
        amc compress --model resnet20 --weights resnet20.safetensors \\
            --data data/cifar10 --budget macs=0.5 --episodes 200 --out runs/r20
    \b
      A network of your own, with half the multiply-adds and 30 % of the bytes:
        amc compress --model mypackage.nets:make_net --weights net.pt \\
            --data data/flowers --budget macs=0.5,bytes=0.3 --out runs/mine
    \b
      It was interrupted; go on where it stopped:
        amc compress --budget macs=0.5 --out runs/digits --resume
    """
    from experiments.compress import open_task, run_stages, say, silent
    from experiments.configs import STAGES

    stages = [s for s in STAGES if not (no_export and s == "export")]
    config = config_from(ctx.params)
    task = open_task(out, config, resume=resume, stages=stages, quiet=quiet)
    with task.folder:
        run_stages(task, stages, silent if quiet else say)
        print_summary(task.folder.path)


def search(
    ctx: typer.Context,
    out: o.Out,
    model: o.Model = DEFAULT.model,
    data: o.Data = DEFAULT.data,
    weights: o.Weights = None,
    budget: o.Budget = DEFAULT.budget,
    agent: o.Agent = DEFAULT.agent,
    episodes: o.Episodes = DEFAULT.episodes,
    seed: o.Seed = DEFAULT.seed,
    resume: o.Resume = False,
    criterion: o.Criterion = DEFAULT.criterion,
    proxy: o.Proxy = DEFAULT.proxy,
    finetune_steps: o.FinetuneSteps = DEFAULT.finetune_steps,
    round_to: o.RoundTo = DEFAULT.round_to,
    min_ratio: o.MinRatio = DEFAULT.min_ratio,
    n_validation: o.NValidation = DEFAULT.n_validation,
    ignore: o.Ignore = None,
    reading: o.Reading = DEFAULT.reading,
    reward: o.Reward = DEFAULT.reward,
    allow_pickle: o.AllowPickle = False,
    validation_size: o.ValidationSize = None,
    validation_split: o.ValidationSplit = DEFAULT.validation_split,
    mean: o.Mean = None,
    std: o.Std = None,
    batch_size: o.BatchSize = DEFAULT.batch_size,
    train_epochs: o.TrainEpochs = DEFAULT.train_epochs,
    train_learning_rate: o.TrainLearningRate = DEFAULT.train_learning_rate,
    precision: o.Precision = DEFAULT.precision,
    threads: o.Threads = DEFAULT.threads,
    device: o.Device = DEFAULT.device,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Look for the best plan only; stops after plan.json.

    `amc finetune OUT`, `amc export OUT` and `amc report OUT` go on from there,
    and so does `amc compress --out OUT --resume` with the same options.

    Examples:

    \b
      amc search --model resnet20 --weights resnet20.safetensors \\
          --data data/cifar10 --budget macs=0.5 --episodes 200 --out runs/r20
    \b
      Hill climbing instead, with a lower bound on the budget too:
        amc search --budget macs=0.45:0.5 --agent local --out runs/local
    """
    from experiments.compress import open_task, run_stages, say, silent

    stages = ("train", "search")
    task = open_task(out, config_from(ctx.params), resume=resume, stages=stages, quiet=quiet)
    with task.folder:
        run_stages(task, stages, silent if quiet else say)
        print(task.folder / "plan.json")


def train(
    ctx: typer.Context,
    out: o.Out,
    model: o.Model = DEFAULT.model,
    data: o.Data = DEFAULT.data,
    epochs: o.Epochs = DEFAULT.train_epochs,
    learning_rate: o.LearningRate = DEFAULT.train_learning_rate,
    seed: o.Seed = DEFAULT.seed,
    resume: o.Resume = False,
    validation_size: o.ValidationSize = None,
    validation_split: o.ValidationSplit = DEFAULT.validation_split,
    mean: o.Mean = None,
    std: o.Std = None,
    batch_size: o.BatchSize = DEFAULT.batch_size,
    precision: o.Precision = DEFAULT.precision,
    threads: o.Threads = DEFAULT.threads,
    device: o.Device = DEFAULT.device,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Train a network from scratch; writes OUT/model.safetensors and OUT/summary.json.

    Examples:

    \b
      amc train --model digitsnet --data digits --epochs 30 --out runs/full
    \b
      Then compress what came out:
        amc compress --model digitsnet --weights runs/full/model.safetensors \\
            --data digits --out runs/small
    """
    from experiments.compress import open_task, run_stages, say, silent
    from experiments.train import write_training_results

    parameters = dict(ctx.params)
    parameters["train_epochs"] = parameters.pop("epochs")
    parameters["train_learning_rate"] = parameters.pop("learning_rate")
    stages = ("train",)
    task = open_task(out, config_from(parameters), resume=resume, stages=stages, quiet=quiet)
    with task.folder:
        run_stages(task, stages, silent if quiet else say)
        print(write_training_results(task))


def print_summary(path: object) -> None:
    """Prints the before/after table of a finished run, on stdout."""
    from pathlib import Path

    from experiments.summary import summary_table

    print(summary_table(Path(str(path))))

"""The options that the verbs share: written once, so that they mean the same everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.configs import RunConfig

_TASK = "Network and data"
_SEARCH = "Search"
_FINETUNE = "Fine-tuning"
_RUN = "Run"

Model = Annotated[
    str,
    typer.Option(
        help="lenet, plain20, resnet20, resnet32, resnet56, mobilenet_v1, mobilenet_v2, vgg16_bn, "
        "densenet40, digitsnet; or your own: package.module:factory.",
        rich_help_panel=_TASK,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="digits (embedded); a folder of parquet files with the Hugging Face schema; or a "
        "name on the Hugging Face hub (needs the hub extra).",
        rich_help_panel=_TASK,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Trained weights: safetensors, or a state_dict saved by torch.save. Without them the "
        "network is trained first.",
        rich_help_panel=_TASK,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Let the weights file run code. Only for files you trust.",
        rich_help_panel=_TASK,
    ),
]
ValidationSize = Annotated[
    int | None,
    typer.Option(
        help="Images cut from the training data to validate on; a tenth of them (digits: a "
        "fifth) if not given.",
        show_default=False,
        rich_help_panel=_TASK,
    ),
]
ValidationSplit = Annotated[
    str,
    typer.Option(
        help="Which ones: random (equally from all classes) or tail (the last rows).",
        rich_help_panel=_TASK,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Normalisation of each channel, e.g. 0.485,0.456,0.406 (the default for colour).",
        show_default=False,
        rich_help_panel=_TASK,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        help="As --mean, e.g. 0.229,0.224,0.225.", show_default=False, rich_help_panel=_TASK
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images per batch.", rich_help_panel=_TASK)]
TrainEpochs = Annotated[
    int,
    typer.Option(help="Epochs of the first training, without --weights.", rich_help_panel=_TASK),
]
TrainLearningRate = Annotated[
    float, typer.Option(help="Its peak learning rate.", rich_help_panel=_TASK)
]

Budget = Annotated[
    str,
    typer.Option(
        help="Hard limits as shares of the original: macs=0.5; several: macs=0.5,bytes=0.3; "
        "lower and upper: macs=0.45:0.5. Costs: macs, params, bytes.",
        rich_help_panel=_SEARCH,
    ),
]
Agent = Annotated[
    str,
    typer.Option(
        help="Who chooses: ddpg (learns), local (hill climbing), random, uniform.",
        rich_help_panel=_SEARCH,
    ),
]
Episodes = Annotated[int, typer.Option(help="How many plans are judged.", rich_help_panel=_SEARCH)]
Reading = Annotated[
    str,
    typer.Option(
        "--action",
        help="What an action means: centred, interval or absolute.",
        rich_help_panel=_SEARCH,
    ),
]
Reward = Annotated[
    str,
    typer.Option(
        help="accuracy, error_log_macs (AMC's for soft budgets) or accuracy_size.",
        rich_help_panel=_SEARCH,
    ),
]
Proxy = Annotated[
    str,
    typer.Option(
        help="How a candidate is repaired before it is judged: reconstruction, recalibration, "
        "reconstruction+recalibration or none.",
        rich_help_panel=_SEARCH,
    ),
]
FinetuneSteps = Annotated[
    int,
    typer.Option(
        help="Training steps of a candidate before it is judged (slower, closer to the end "
        "result).",
        rich_help_panel=_SEARCH,
    ),
]
Criterion = Annotated[
    str,
    typer.Option(
        help="Which channels go first: l1, l2, bn_scale, taylor, geometric_median, lasso, random.",
        rich_help_panel=_SEARCH,
    ),
]
RoundTo = Annotated[
    int,
    typer.Option(
        help="Kept channels come in multiples of this (hardware likes 8 and 16).",
        rich_help_panel=_SEARCH,
    ),
]
MinRatio = Annotated[
    float,
    typer.Option(help="Smallest share of channels a layer may keep.", rich_help_panel=_SEARCH),
]
NValidation = Annotated[
    int,
    typer.Option(
        help="Validation images that judge a candidate (at most); the best plans are judged "
        "again on all of them.",
        rich_help_panel=_SEARCH,
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        help="Layer (or prefix of names) that must stay whole; may be repeated.",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]

Epochs = Annotated[
    int, typer.Option(help="Epochs of the fine-tuning; 0 for none.", rich_help_panel=_FINETUNE)
]
LearningRate = Annotated[
    float, typer.Option(help="Its peak learning rate.", rich_help_panel=_FINETUNE)
]
WeightDecay = Annotated[float, typer.Option(help="Its weight decay.", rich_help_panel=_FINETUNE)]
Teacher = Annotated[
    str,
    typer.Option(
        help="original: the uncompressed network teaches the small one (distillation); or none.",
        rich_help_panel=_FINETUNE,
    ),
]
DistillationTemperature = Annotated[
    float, typer.Option(help="Softens the teacher's answers.", rich_help_panel=_FINETUNE)
]
DistillationWeight = Annotated[
    float,
    typer.Option(
        help="Share of the teacher in the loss; the labels have the rest.",
        rich_help_panel=_FINETUNE,
    ),
]

Out = Annotated[
    Path, typer.Option(help="The run folder; everything is written there.", rich_help_panel=_RUN)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --out where it was interrupted, with the same options.",
        rich_help_panel=_RUN,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="Draws everything random; the same seed gives the same plan on one machine.",
        rich_help_panel=_RUN,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...", rich_help_panel=_RUN)]
Threads = Annotated[
    int,
    typer.Option(
        help="Processor threads; 0 takes one for searching and for tiny images, else all.",
        rich_help_panel=_RUN,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto (bf16 where the processor or GPU is fast at it), fp32 or bf16. Test accuracies "
        "are always fp32.",
        rich_help_panel=_RUN,
    ),
]
NoExport = Annotated[
    bool,
    typer.Option("--no-export", help="Go without ONNX files and latencies.", rich_help_panel=_RUN),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress bars, no chatter.", rich_help_panel=_RUN)
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show where an error came from.", rich_help_panel=_RUN)
]
RunDirectory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A run folder, made with --out.", show_default=False)
]

# The defaults live in RunConfig; the verbs refer to them here.
DEFAULT = RunConfig()


def config_from(parameters: Mapping[str, Any], base: RunConfig = DEFAULT) -> RunConfig:
    """Builds the options of a run from what the command line was given.

    Args:
        parameters: Option name -> value; what is no option of a run is left out.
        base: Where everything else comes from.
    """
    known = {f.name for f in dataclasses.fields(RunConfig)}
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in known:
            continue
        if name in ("mean", "std"):
            value = _numbers(name, value)
        elif name == "ignore":
            value = tuple(value or ())
        elif isinstance(value, Path):
            value = str(value)
        values[name] = value
    return dataclasses.replace(base, **values)


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"Expected --{name} as numbers with commas, e.g. 0.5,0.5,0.5, got {text!r}."
        ) from error

"""Command-line options, each declared once for all commands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from amc_compress.commands.bit_options import BITS, BitOptions
from amc_compress.commands.finetune_options import FINETUNE as FINETUNE
from amc_compress.commands.finetune_options import FinetuneOptions
from amc_compress.commands.pruning_options import PRUNING, PruningOptions
from amc_compress.config.run_config import RunConfig

_TASK = "Network and data"
_SEARCH = "Search"
_RUN = "Run"

_DEFAULT = RunConfig()  # where the defaults live


class Options(PruningOptions, BitOptions, FinetuneOptions):
    """Every option by name, with its type, its help and its default; never instantiated.

    A verb lists the names it takes, in :func:`takes`.
    """

    model: Annotated[
        str,
        typer.Option(
            help="lenet, plain20, resnet20, resnet32, resnet56, mobilenet_v1, mobilenet_v2, "
            "mobilenet_v2_fast (stem of stride 2), vgg16_bn, densenet40, digitsnet; or your own: "
            "package.module:factory, torchvision.models:resnet18, timm:resnet18. The factory gets "
            "the number of classes, the channels and the size of the images if it takes them.",
            rich_help_panel=_TASK,
        ),
    ] = _DEFAULT.model
    model_args: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Further keyword of the model's factory, e.g. width=0.5; may be repeated.",
            show_default=False,
            rich_help_panel=_TASK,
        ),
    ] = None
    data: Annotated[
        str,
        typer.Option(
            help="digits (embedded); a folder of parquet or Arrow files with the Hugging Face "
            "schema, of save_to_disk, or with a folder of images per class; or a name on the "
            "Hugging Face hub (needs the hub extra). DATA:NAME takes one of several "
            "configurations. docs/data.md says more.",
            rich_help_panel=_TASK,
        ),
    ] = _DEFAULT.data
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Trained weights: safetensors, or anything saved by torch.save that holds the "
            "network's tensors: under keys, under prefixes, raw or averaged (FILE::KEY chooses). "
            "Without them the network is trained first.",
            rich_help_panel=_TASK,
        ),
    ] = None
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Let the weights file run code. Only for files you trust.",
            rich_help_panel=_TASK,
        ),
    ] = False
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Run the code that DIR names (a model, teacher or cost of somebody's own), and "
            "let its weights files run code if it was made with --allow-pickle. Only for folders "
            "you trust.",
            rich_help_panel=_RUN,
        ),
    ] = False
    validation_size: Annotated[
        int | None,
        typer.Option(
            help="Images cut from the training data to validate on; a tenth of them (digits: a "
            "fifth) if not given.",
            show_default=False,
            rich_help_panel=_TASK,
        ),
    ] = None
    validation_split: Annotated[
        str,
        typer.Option(
            help="Which ones: random (equally from all classes) or tail (the last rows).",
            rich_help_panel=_TASK,
        ),
    ] = _DEFAULT.validation_split
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images, for those of several sizes: the shorter side is scaled to "
            "256/224 of it, the middle is evaluated, random parts of it are trained on.",
            show_default=False,
            rich_help_panel=_TASK,
        ),
    ] = None
    image_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the images; img or image if not given.",
            show_default=False,
            rich_help_panel=_TASK,
        ),
    ] = None
    label_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the labels; label, labels or fine_label if not given. Strings are "
            "numbered in alphabetical order.",
            show_default=False,
            rich_help_panel=_TASK,
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            help="Normalisation of each channel, e.g. 0.485,0.456,0.406 (the default for colour).",
            show_default=False,
            rich_help_panel=_TASK,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            help="As --mean, e.g. 0.229,0.224,0.225.", show_default=False, rich_help_panel=_TASK
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(help="Images per batch.", rich_help_panel=_TASK)] = (
        _DEFAULT.batch_size
    )
    train_epochs: Annotated[
        int,
        typer.Option(
            help="Epochs of the first training, without --weights.", rich_help_panel=_TASK
        ),
    ] = _DEFAULT.train_epochs
    train_learning_rate: Annotated[
        float, typer.Option(help="Its peak learning rate.", rich_help_panel=_TASK)
    ] = _DEFAULT.train_learning_rate

    learner: Annotated[
        str,
        typer.Option(
            help="What is done to the network: channels (cuts them; so do group-lasso, remastered "
            "and discrimination, which choose the channels in other ways), sparse (sets single "
            "weights to zero), uniform (rounds weights and activations to integers), codebook "
            "(weights share a few learned values), deep (sparse, then codebooks: the smallest "
            "file), joint (cuts and quantizes, with --density zeros too).",
            rich_help_panel=_SEARCH,
        ),
    ] = _DEFAULT.learner
    budget: Annotated[
        str,
        typer.Option(
            help="Hard limits as shares of the original: macs=0.5 (or 0.5 alone); several: "
            "macs=0.5,bytes=0.3; lower and upper: macs=0.45:0.5; fractions: mean_bits=4/32. Costs: "
            "macs, params, bytes (of the packed file), density (weights that are not zero), bops "
            "(MACs x weight bits x activation bits), mean_bits (per weight, of 32), and those of "
            "--cost-table (latency, say) and --cost. Not given: macs=0.5; density=0.25 (of a "
            "pattern N:M no less than N/M); for bits mean_bits in the middle of --weight-bits "
            "(4/32 for 2-8), or bops where only --activation-bits are decided; for both "
            "macs=0.5,bytes=0.15 (more where weights have more than 4 bits).",
            show_default=False,
            rich_help_panel=_SEARCH,
        ),
    ] = ""
    agent: Annotated[
        str,
        typer.Option(
            help="Who chooses: ddpg, td3, sac, tqc, crossq (learn decision by decision); "
            "ddpg-one-shot, td3-one-shot (learn whole plans); tpe, gp, cmaes, nsga2 (Optuna); "
            "evolution, local (change what is good); sensitivity, sensitivity-threshold (measure "
            "each decision, then compute); gradient, layer-errors (compute, in seconds); "
            "ddpg-sensitivity (both); random, uniform, deep-heavy, shallow-heavy. With options: "
            "tpe:storage=journal:study.log. `amc compare --list` says more. Your own: "
            "package.module:Class.",
            rich_help_panel=_SEARCH,
        ),
    ] = _DEFAULT.agent
    episodes: Annotated[
        int, typer.Option(help="How many plans are evaluated.", rich_help_panel=_SEARCH)
    ] = _DEFAULT.episodes
    reading: Annotated[
        str,
        typer.Option(
            "--action",
            help="What an action means: centred, interval or absolute.",
            rich_help_panel=_SEARCH,
        ),
    ] = _DEFAULT.reading
    reward: Annotated[
        str,
        typer.Option(
            help="accuracy, error_log_macs (AMC's for soft budgets), accuracy_size, accuracy_bops, "
            "accuracy_latency (with --cost-table) or haq. Your own: package.module:function of an "
            "amc_env.Result.",
            rich_help_panel=_SEARCH,
        ),
    ] = _DEFAULT.reward
    proxy: Annotated[
        str,
        typer.Option(
            help="Repairs of a candidate before its evaluation: reconstruction, recalibration, "
            "reconstruction+recalibration or none. Only pruned layers are reconstructed.",
            rich_help_panel=_SEARCH,
        ),
    ] = _DEFAULT.proxy
    finetune_steps: Annotated[
        int,
        typer.Option(
            help="Training steps of a candidate before it is evaluated (slower, closer to the end "
            "result).",
            rich_help_panel=_SEARCH,
        ),
    ] = _DEFAULT.finetune_steps
    n_validation: Annotated[
        int,
        typer.Option(
            help="Validation images per evaluation (at most); the best plans are evaluated "
            "again on all of them.",
            rich_help_panel=_SEARCH,
        ),
    ] = _DEFAULT.n_validation
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Layer (or prefix of names) that must stay whole; may be repeated.",
            show_default=False,
            rich_help_panel=_SEARCH,
        ),
    ] = None

    cost_table: Annotated[
        list[str] | None,
        typer.Option(
            help="Table of measured costs (JSON, from `amc latency-table`), which the budget may "
            "then name; may be repeated, or several with commas.",
            show_default=False,
            rich_help_panel=_SEARCH,
        ),
    ] = None

    cost: Annotated[
        list[str] | None,
        typer.Option(
            help="Cost of your own, NAME=package.module:Class, a subclass of amc_env.CostModel; "
            "the budget may then name it. May be repeated, or several with commas.",
            show_default=False,
            rich_help_panel=_SEARCH,
        ),
    ] = None

    warm_start: Annotated[
        Path | None,
        typer.Option(
            help="Another run of the same network, data, learner and proxy: the search knows what "
            "that one has evaluated, at no cost. Its agent, budget, reward and action may differ.",
            show_default=False,
            rich_help_panel=_SEARCH,
        ),
    ] = None

    out: Annotated[
        Path,
        typer.Option(help="The run folder; everything is written there.", rich_help_panel=_RUN),
    ]
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out where it was interrupted, with the same options.",
            rich_help_panel=_RUN,
        ),
    ] = False
    seed: Annotated[
        int,
        typer.Option(
            help="Draws everything random; the same seed gives the same plan on one machine.",
            rich_help_panel=_RUN,
        ),
    ] = _DEFAULT.seed
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...", rich_help_panel=_RUN)] = (
        _DEFAULT.device
    )
    threads: Annotated[
        int,
        typer.Option(
            help="Processor threads; 0 takes one for searching and for tiny images, else all. "
            "Where other work runs give 1: threads that wait for each other are many times slower.",
            rich_help_panel=_RUN,
        ),
    ] = _DEFAULT.threads
    precision: Annotated[
        str,
        typer.Option(
            help="auto (bf16 where the processor or GPU is fast at it), fp32 or bf16. Test "
            "accuracies are always fp32.",
            rich_help_panel=_RUN,
        ),
    ] = _DEFAULT.precision
    no_export: Annotated[
        bool,
        typer.Option(
            "--no-export", help="Go without ONNX files and latencies.", rich_help_panel=_RUN
        ),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="No progress bars, no chatter.", rich_help_panel=_RUN),
    ] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from.", rich_help_panel=_RUN)
    ] = False
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A run folder, made with --out.", show_default=False),
    ]


PIXELS = ("image_size", "image_column", "label_column", "mean", "std", "batch_size")
SPLITS = ("validation_size", "validation_split")
TASK = (
    "model", "model_args", "data", "weights", "allow_pickle", *SPLITS, *PIXELS,
    "train_epochs", "train_learning_rate",
)  # fmt: skip
SEARCH = (
    "learner", "budget", "agent", "episodes", "proxy", "finetune_steps", "n_validation", "ignore",
    "reading", "reward", "cost_table", "cost", "warm_start", *PRUNING, *BITS,
)  # fmt: skip
NEW_RUN = ("out", "seed", "resume", "precision", "threads", "device")
OUTPUT = ("quiet", "debug")

_Verb = Callable[..., None]


def takes(*names: str, **defaults: Any) -> Callable[[_Verb], _Verb]:
    """Adds options to a command; its function gets those that it has parameters for.

    typer reads the options from a function's signature, so that is what is written here. What
    a verb has no parameter for is found in its ``ctx.params``. Parameters of the verb that are not
    named here stay as they are, ahead of the options.

    Args:
        names: Attributes of :class:`Options`, in the order of the help.
        defaults: Defaults that are others than everywhere else.
    """
    hints = get_type_hints(Options, include_extras=True)
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(name, getattr(Options, name, inspect.Parameter.empty)),
            annotation=hints[name],
        )
        for name in names
    ]

    def decorate(verb: _Verb) -> _Verb:
        own = inspect.signature(verb, eval_str=True).parameters
        kept = [p for p in own.values() if p.name not in names]

        @functools.wraps(verb)
        def wrapper(**values: Any) -> None:
            verb(**{name: value for name, value in values.items() if name in own})

        parameters = [*kept, *options]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        wrapper.__dict__["__signature__"] = inspect.Signature(parameters)
        return wrapper

    return decorate

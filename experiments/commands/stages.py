"""``amc finetune``, ``evaluate``, ``export`` and ``report``: the verbs that continue a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amc_compress.commands import options as o
from amc_compress.commands.options import takes
from amc_compress.commands.values import config_from, free_options, given
from amc_compress.config.data_defaults import USUAL_MODEL
from amc_compress.config.values import (
    BIT_FORMATS,
    COMPRESSED_TENSORS,
    FORMATS,
    ONNX,
    TRANSFORMERS,
)
from amc_env.validation.checks import check_known

if TYPE_CHECKING:
    from amc_compress.runs.storage.trust import Trust


@takes(*o.FINETUNE, "devices", "allow_pickle", *o.FREE, "trust", "resume", *o.OUTPUT)
def finetune(
    ctx: typer.Context,
    directory: o.Directory,
    devices: int | None,
    allow_pickle: bool,
    trust: bool,
    resume: bool,
    quiet: bool,
) -> None:
    """Fine-tune the plan of a run; writes DIR/model.safetensors.

    Options that are not given stay as they were when the run was started.

    A run that was fine-tuned before is fine-tuned anew, from the pruned
    network; `amc export DIR` then makes its other files again. An interrupted
    fine-tuning resumes with --resume.

    Examples:

    \b
      amc finetune runs/resnet20 --epochs 60 --learning-rate 0.02
    \b
      Without the original as a teacher:
        amc finetune runs/resnet20 --teacher none
    \b
      In two processes; the second line does the same:
        amc finetune runs/resnet20 --devices 2
        torchrun --nproc-per-node 2 -m amc_compress finetune runs/resnet20
    """
    from amc_compress.commands.devices import on_devices
    from amc_compress.runs.folder import RunFolder
    from amc_compress.runs.storage.trust import Trust

    device = RunFolder.open(directory, uses=()).config.device
    allowed = Trust(trust, pickle=allow_pickle)
    options = given(ctx)
    options.pop("allow_pickle", None)  # it holds for this command, not for the run

    def work(folder: Path, silently: bool) -> None:
        _finetune(folder, options, free_options(ctx), allowed, resume, quiet or silently)

    on_devices(devices, device, directory.expanduser(), work)


def _finetune(
    directory: Path,
    options: dict[str, Any],
    free: Mapping[str, Any],
    allowed: Trust,
    resume: bool,
    quiet: bool,
) -> None:
    from amc_compress.runs.storage.trust import PURPOSE
    from amc_compress.runs.teachers import load_teacher
    from amc_compress.stages.pipeline import reopen_task, run_stages, say, silent

    # Another teacher takes the place of the folder's.
    uses = ("model", *PURPOSE) if "teacher" in options else ("model", "teacher", *PURPOSE)
    task = reopen_task(directory, trust=allowed, uses=uses, quiet=quiet, options=free)
    with task.folder as folder:
        folder.results("search")
        # Built first, because a mistake in an option must not lose what is finished.
        if "teacher" in options:  # the weights of another teacher are none of this one's
            options.setdefault("teacher_weights", None)
        config = config_from(options, folder.config)
        of_folder = config == folder.config
        with folder.naming_options() if of_folder else contextlib.nullcontext():
            config.validate(("finetune",))
        load_teacher(config, folder.facts, allow_pickle=folder.allow_pickle)
        if not resume:
            folder.forget("finetune")
        folder.reconfigure(config)
        run_stages(task, ("finetune",), silent if quiet else say)
        print(folder / "model.safetensors")


Opset = Annotated[
    int | None, typer.Option(help="Version of the ONNX operators.", show_default=False)
]
Batch = Annotated[
    int | None,
    typer.Option(help="Samples per call; any number if not given.", show_default=False),
]
Half = Annotated[
    bool, typer.Option("--half", help="Compute in float16; inputs and outputs stay float32.")
]
InputName = Annotated[
    str | None,
    typer.Option(
        help="Name of the input; images, or that of the network's argument, if not given.",
        show_default=False,
    ),
]
Preprocessing = Annotated[
    bool,
    typer.Option(
        "--include-preprocessing",
        help="Put the normalisation into the file: its input is uint8 pixels.",
    ),
]


Format = Annotated[
    str,
    typer.Option(
        help="What is written: " + ", ".join(FORMATS) + ".",
        autocompletion=lambda incomplete: [n for n in FORMATS if n.startswith(incomplete)],
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="With --format transformers, or --weights: a folder whose tokenizer's files are "
        "copied.",
        show_default=False,
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        help="With bits for other libraries: inputs that share a scale, of layers without groups "
        "whose number of inputs it divides; a scale per channel if not given.",
        min=2,
        show_default=False,
    ),
]


Weights = Annotated[
    bool,
    typer.Option(
        "--weights",
        help="With --format compressed-tensors: write the rounded weights too, as a folder that "
        "from_pretrained of transformers loads where that library is installed.",
    ),
]


IntegerKind = Annotated[
    str | None,
    typer.Option(
        help="Weights as integers without calibration: int4 in blocks, or int8-dynamic; by the "
        "bits of each layer where the network is quantized. What is no linear layer stays float.",
        show_default=False,
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        help="With --integers: inputs that share a scale, 16, 32, 64, 128 or 256; 32 if not given.",
        show_default=False,
    ),
]


@takes("memory", "data_workers", "trust", *o.OUTPUT)
def export(
    ctx: typer.Context,
    directory: o.Directory,
    trust: bool,
    quiet: bool,
    opset: Opset = None,
    batch: Batch = None,
    half: Half = False,
    input_name: InputName = None,
    include_preprocessing: Preprocessing = False,
    integers: IntegerKind = None,
    block_size: BlockSize = None,
    format: Format = ONNX,
    tokenizer: Tokenizer = None,
    group_size: GroupSize = None,
    weights: Weights = False,
) -> None:
    """Write DIR/model.onnx, check it against torch, time it, and measure the test accuracy.

    The ONNX file takes any number of samples at once, and of images names
    the classes, mean and std in its metadata. It is kept only if ONNX
    Runtime and torch agree on real samples. Original and compressed network
    are timed in turns, on one thread. A quantized network is written for
    8-bit integers, if a runtime executes its bits; DIR/model.packed holds it
    in any case.

    Other formats are named by --format: transformers writes a network of that
    library as the folder DIR/transformers, for its from_pretrained where one
    of its configurations describes it, for amc_compress.load in any case.
    The others write the bits of each layer in the words of the library of
    that name, to DIR/NAME.json or, for llama.cpp, to DIR/llama.cpp.txt.
    With --weights, compressed-tensors gets the folder DIR/compressed-tensors
    with the integers themselves.

    Examples:

    \b
      amc export runs/resnet20
      amc export runs/resnet20 --batch 1 --half --input-name pixels
      amc export runs/resnet20 --include-preprocessing
      amc export runs/bert --integers int4 --block-size 64
      amc export runs/bert --format transformers --tokenizer bert-base
      amc export runs/llama --format compressed-tensors --weights
      amc export runs/llama --format torchao --group-size 128
    \b
      In Python, afterwards:
        session = onnxruntime.InferenceSession("runs/resnet20/model.onnx")
        logits = session.run(None, {"images": images})[0]
    """
    from amc_compress.commands.runs import print_summary
    from amc_compress.learners.export.onnx_options import Integers, OnnxOptions
    from amc_compress.runs.storage.trust import PURPOSE, Trust
    from amc_compress.stages.formats import write_format
    from amc_compress.stages.pipeline import reopen_task, run_stages, say, silent

    options = OnnxOptions(opset, batch, half, input_name)
    _check_format(format, tokenizer, group_size, weights)
    rounded = Integers(integers, block_size or Integers.block_size) if integers else None
    if block_size is not None and rounded is None:
        raise ValueError("Expected --block-size with --integers, got it alone; leave it out.")
    if format != ONNX and (options != OnnxOptions() or include_preprocessing or rounded):
        raise ValueError(
            f"Expected options of an ONNX file with --format {ONNX} alone, got them with "
            f"{format}; leave them out."
        )
    task = reopen_task(
        directory,
        trust=Trust(trust),
        uses=("model", "cost", *PURPOSE),
        quiet=quiet,
        options=free_options(ctx),
    )
    task.onnx, task.onnx_preprocessing, task.onnx_integers = options, include_preprocessing, rounded
    with task.folder as folder:
        folder.results("finetune")
        if format != ONNX:
            print(write_format(task, format, tokenizer, group_size, weights=weights))
            return
        if half and (folder.config.spec.quantizes or rounded):  # before files are given up
            quantized = f"one of --learner {folder.config.learner}, whose bits are decided"
            raise ValueError(
                f"Expected a float network for --half, got "
                f"{'--integers' if rounded else quantized}; leave --half out."
            )
        folder.forget("export")
        run_stages(task, ("export", "evaluate"), silent if quiet else say)
        print_summary(folder.path)


def _check_format(name: str, tokenizer: Path | None, group_size: int | None, weights: bool) -> None:
    check_known("--format", name, FORMATS)
    folders = (TRANSFORMERS, *([COMPRESSED_TENSORS] if weights else ()))
    for option, given_it, formats in (
        ("--weights", weights, (COMPRESSED_TENSORS,)),
        ("--tokenizer", tokenizer is not None, folders),
        ("--group-size", group_size is not None, BIT_FORMATS),
    ):
        if given_it and name not in formats:
            raise ValueError(f"Expected {option} with --format {', '.join(formats)}, got {name}.")
    if weights and group_size is not None:
        raise ValueError(
            "Expected --group-size without --weights, whose groups are those that the network was "
            "rounded in, got both; leave it out."
        )


@takes("debug")
def report(directory: o.Directory) -> None:
    """Write DIR/report.html again, from the files of the run.

    Examples:

    \b
      amc report runs/resnet20
    """
    from amc_compress.report.page import run_report
    from amc_compress.runs.folder import RunFolder

    with RunFolder.open(directory, uses=()) as folder:
        run_report(folder)
        print(folder / "report.html")


MaybeDirectory = Annotated[
    Path | None,
    typer.Argument(metavar="[DIR]", help="A run folder, made with --out.", show_default=False),
]
Original = Annotated[
    bool, typer.Option("--original", help="With DIR: measure the uncompressed network instead.")
]


@takes(
    "model", "model_args", "data", "weights", "allow_pickle", "trust", *o.PIXELS, "memory",
    "data_workers", "debug",
)  # fmt: skip
def evaluate(
    ctx: typer.Context,
    model: str | None,
    model_args: list[str] | None,
    weights: Path | None,
    trust: bool,
    directory: MaybeDirectory = None,
    original: Original = False,
) -> None:
    """Print test accuracy, MACs, parameters and bytes of a network, as one line of JSON.

    Examples:

    \b
      The compressed network of a run, and the original it came from:
        amc evaluate runs/resnet20
        amc evaluate runs/resnet20 --original
    \b
      Any weights file:
        amc evaluate --model resnet20 --weights resnet20.safetensors \\
            --data data/cifar10
    """
    from amc_compress.runs.storage.trust import Trust, call_text
    from amc_compress.stages.measure import measure_file, measure_run

    if directory is not None:
        allowed = Trust(trust, named=frozenset({call_text(model or USUAL_MODEL, model_args or ())}))
        free = free_options(ctx)
        print(json.dumps(measure_run(directory, original=original, trust=allowed, options=free)))
    elif weights is not None:
        print(json.dumps(measure_file(config_from(given(ctx)), weights)))
    else:
        raise ValueError(
            "Nothing to evaluate: give a run folder (amc evaluate DIR), or --model and --weights."
        )

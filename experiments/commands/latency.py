"""``amc latency-table``: measures a network's layers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amc_compress.commands import options as o
from amc_compress.commands.options import takes
from amc_compress.config.data_defaults import USUAL_MODEL
from amc_env.support.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from amc_compress.learners.latency.table import TableOptions

_RUNTIMES = ("onnxruntime",)

Out = Annotated[Path, typer.Option(help="The table, a JSON file; continued if it exists.")]
Runtime = Annotated[str, typer.Option(help="Runtime: onnxruntime (one thread).")]
Batch = Annotated[int, typer.Option(help="Images per call.")]
Shape = Annotated[str, typer.Option("--input", help="One image: channels x height x width.")]
Classes = Annotated[int, typer.Option(help="Outputs of the network.")]
RoundTo = Annotated[int, typer.Option(help="Channels come in multiples of this, as in the search.")]
Points = Annotated[int, typer.Option(help="Widths per axis, at most: 3, 5 or 7.")]
Precision = Annotated[
    list[str] | None,
    typer.Option(
        help="fp32 or int8; may be repeated. Both if not given. With --template any: w4a8.",
        show_default=False,
    ),
]
Template = Annotated[
    bool,
    typer.Option("--template", help="Measure nothing: write the table with null for each value."),
]


@takes("model", "model_args", *o.OUTPUT)
def latency_table(
    model: str | None,
    model_args: list[str] | None,
    out: Out,
    quiet: bool,
    runtime: Runtime = "onnxruntime",
    batch: Batch = 1,
    shape: Shape = "3x32x32",
    classes: Classes = 10,
    round_to: RoundTo = 8,
    points: Points = 7,
    precision: Precision = None,
    template: Template = False,
) -> None:
    """Measure how long every layer takes at the widths and bits a search may choose.

    The table belongs to this machine and this version of the runtime. It is
    written after every network, so an interrupted measurement resumes when
    the command is repeated. Nothing else should run meanwhile. Weights do
    not matter.

    Examples:

    \b
      amc latency-table --model resnet20 --runtime onnxruntime --batch 1 \\
          --out tables/resnet20.json
    \b
      Then search under it:
        amc search --model resnet20 --cost-table tables/resnet20.json \\
            --budget latency=0.5 ...
    \b
      A form to fill in for a phone, a board or an accelerator:
        amc latency-table --model resnet20 --template --precision w4a4 \\
            --precision w8a8 --out tables/board.json
    """
    from amc_compress.learners.latency.networks import PRECISIONS
    from amc_compress.learners.latency.table import TableOptions
    from amc_compress.models import make_model
    from amc_compress.models.arguments import parse_arguments

    image = _image_shape(shape)
    precisions = tuple(dict.fromkeys(precision or PRECISIONS))
    model = model or USUAL_MODEL
    options = TableOptions(model, image, batch, round_to, points, precisions, measured=not template)
    if classes < 1:
        raise ValueError(f"Expected --classes of at least 1, got {classes}.")
    if runtime not in _RUNTIMES and not template:
        raise ValueError(
            f"Expected the runtime {' or '.join(_RUNTIMES)}, got {runtime!r}; for another one "
            f"write a form with --template and fill it in (docs/latency_tables.md)."
        )
    if out.is_dir():
        raise ValueError(f"{out} is a folder; --out is the table's file, e.g. {out}/table.json.")
    network = make_model(
        model,
        n_classes=classes,
        in_channels=image[0],
        image_size=image[1],
        arguments=parse_arguments(model_args or ()),
    )
    if template:
        _write_form(network, options, runtime, out)
    else:
        _measure(network, options, out, quiet=quiet)
    print(out)


def _write_form(network: nn.Module, options: TableOptions, runtime: str, out: Path) -> None:
    from amc_compress.learners.latency.table import empty_table
    from amc_env.files import write_atomic

    if out.exists():
        raise ValueError(f"{out} exists; choose another --out for the form.")
    form = empty_table(network, options, runtime)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, form.to_json())


def _measure(network: nn.Module, options: TableOptions, out: Path, *, quiet: bool) -> None:
    from amc_compress.learners.latency.table import measure_table

    bar: Progress | None = None

    def show(done: int, of: int) -> None:
        nonlocal bar
        if bar is None and done:  # only now, because an error before needs no bar above it
            bar = Progress(of, "network", initial=done, shown=not quiet)
        elif bar is not None:
            bar.step()

    try:
        table = measure_table(network, options, out, progress=show)
    finally:
        if bar is not None:
            bar.close()
    if not quiet:
        milliseconds = ", ".join(f"{p} {table.total(p):.3f}" for p in options.precisions)
        print(f"The whole network, {table.unit} per call of {table.batch}: {milliseconds}")


def _image_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"Expected --input like 3x32x32, got {text!r}.")
    return shape

"""``amc latency-table``: measures a network's layers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amc_compress.commands import options as o
from amc_compress.commands.options import takes
from amc_compress.commands.values import config_from, given, where_from
from amc_env.support.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from amc_compress.config.run_config import RunConfig
    from amc_compress.learners.latency.table import Asked, Sample, TableOptions
    from amc_compress.learners.tasks.inputs import Inputs
    from amc_compress.runs.data_facts import DataFacts

_RUNTIMES = ("onnxruntime",)
_OF_DATA = ("data", "task", "image_size", "image_column", "label_column")
_OF_RUN = ("model", "model_args", *_OF_DATA, "part")

Out = Annotated[Path, typer.Option(help="The table, a JSON file; continued if it exists.")]
Runtime = Annotated[str, typer.Option(help="Runtime: onnxruntime (one thread).")]
Batch = Annotated[int, typer.Option(help="Samples per call.")]
Shape = Annotated[
    str, typer.Option("--input", help="One image: channels x height x width; without --data.")
]
Classes = Annotated[int, typer.Option(help="Outputs of the network; without --data.")]
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


@takes(*_OF_RUN, "workers", "ray", *o.OUTPUT)
def latency_table(
    ctx: typer.Context,
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
      A network of anything else, on samples of its data; a part is measured
      alone:
        amc latency-table --data digit-scenes --out tables/scenes.json
        amc latency-table --model mine:tagger --data mine:loaders \\
            --part encoder --out tables/tagger.json
    \b
      A form to fill in for a phone, a board or an accelerator:
        amc latency-table --model resnet20 --template --precision w4a4 \\
            --precision w8a8 --out tables/board.json
    """
    from amc_compress.learners.export.part import submodule
    from amc_compress.learners.latency.networks import PRECISIONS
    from amc_compress.learners.latency.table import TableOptions
    from amc_compress.runs.networks import build_original

    config = config_from({name: value for name, value in given(ctx).items() if name in _OF_RUN})
    precisions = tuple(dict.fromkeys(precision or PRECISIONS))
    facts, example = _of_data(ctx, config) or (_of_images(_image_shape(shape), classes), None)
    options = TableOptions(
        config.model, facts.image_shape or (), batch, round_to, points, precisions,
        measured=not template, example=example, part=config.part,
    )  # fmt: skip
    if runtime not in _RUNTIMES and not template:
        raise ValueError(
            f"Expected the runtime {' or '.join(_RUNTIMES)}, got {runtime!r}; for another one "
            f"write a form with --template and fill it in (docs/latency_tables.md)."
        )
    where = where_from(ctx)
    if where.workers > 1:
        raise ValueError(
            "Expected --workers 1: what is timed while other work goes on is worth nothing. "
            "Measure on several equal machines, one network at a time on each, by --ray."
        )
    if out.is_dir():
        raise ValueError(f"{out} is a folder; --out is the table's file, e.g. {out}/table.json.")
    network = build_original(config.model, facts, config.model_args)
    if config.part is not None:
        submodule(network, config.part)  # rejects a name of none before anything is traced
    if template:
        _write_form(network, options, runtime, out)
    else:
        _measure(network, options, out, where.ray, quiet=quiet)
    print(out)


def _of_data(ctx: typer.Context, config: RunConfig) -> tuple[DataFacts, Inputs | None] | None:
    """Returns facts about the data that the command line names, and a sample if no image."""
    from amc_compress.runs.task import facts_of, load_splits

    named = given(ctx)
    if not any(name in named for name in _OF_DATA):
        return None
    if twice := [f"--{'input' if n == 'shape' else n}" for n in ("shape", "classes") if n in named]:
        raise ValueError(f"Expected images by {twice[0]} or samples of --data, got both.")
    data = load_splits(config)
    return facts_of(data), data.example if data.image_shape is None else None


def _of_images(shape: tuple[int, int, int], classes: int) -> DataFacts:
    from amc_compress.runs.data_facts import DataFacts

    if classes < 1:
        raise ValueError(f"Expected --classes of at least 1, got {classes}.")
    return DataFacts("--input", classes, shape)


def _write_form(network: nn.Module, options: TableOptions, runtime: str, out: Path) -> None:
    from amc_compress.learners.latency.table import empty_table
    from amc_env.files import write_atomic

    if out.exists():
        raise ValueError(f"{out} exists; choose another --out for the form.")
    form = empty_table(network, options, runtime)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, form.to_json())


def _measure(
    network: nn.Module, options: TableOptions, out: Path, ray: str | None, *, quiet: bool
) -> None:
    from amc_compress.learners.latency.table import measure_table

    bar: Progress | None = None

    def show(done: int, of: int) -> None:
        nonlocal bar
        if bar is None and done:  # only now, because an error before needs no bar above it
            bar = Progress(of, "network", initial=done, shown=not quiet)
        elif bar is not None:
            bar.step()

    try:
        elsewhere = None if ray is None else _on_nodes(network, options, ray, quiet=quiet)
        table = measure_table(network, options, out, elsewhere=elsewhere, progress=show)
    finally:
        if bar is not None:
            bar.close()
    if not quiet:
        milliseconds = ", ".join(f"{p} {table.total(p):.3f}" for p in options.precisions)
        print(f"The whole network, {table.unit} per call of {table.batch}: {milliseconds}")


def _on_nodes(
    network: nn.Module, options: TableOptions, address: str, *, quiet: bool
) -> Callable[[Sequence[Asked]], Iterator[Sample]]:
    """Returns what measures on the nodes of a cluster, one network at a time on each."""
    from amc_compress.evaluations.dispatcher import Dispatcher
    from amc_compress.evaluations.payload import Payload
    from amc_compress.evaluations.ray_workers import RayWorkers
    from amc_compress.learners.latency.networks import LatencyError
    from amc_compress.learners.latency.table import Sampler, machine_name

    def samples(asked: Sequence[Asked]) -> Iterator[Sample]:
        payload = Payload.of(Sampler(network, options, machine_name()))
        backend = RayWorkers(payload, address=address, whole_nodes=True, quiet=quiet)
        with Dispatcher(backend) as dispatcher:
            dispatcher.submit(asked)
            for kept, precision in asked:
                answer = dispatcher.result()
                if answer.failure:
                    raise LatencyError(
                        f"A network in {precision} could not be measured ({kept or 'uncut'}). "
                        f"{answer.failure} What was measured is in the table: repeat the command."
                    )
                yield answer.value

    return samples


def _image_shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        channels = height = width = 0
    if min(channels, height, width) < 1:
        raise ValueError(f"Expected --input like 3x32x32, got {text!r}.")
    return channels, height, width

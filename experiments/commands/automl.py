"""``amc automl``: the AutoML frameworks of Balaji & Allen 2018 under their protocol."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amc_env import MissingDependencyError

if TYPE_CHECKING:
    from amc_compress.automl.datasets import DataSet
    from amc_compress.automl.frameworks import Framework
    from amc_compress.automl.records import Training

HELP = """Compare TPOT, H2O, auto-sklearn and auto_ml on equal terms.

Each lives in an environment of its own, with the Python it still works on.
Start with: amc automl setup all
"""

_ROOT = Path("~/.cache/amc-compress/automl")

Root = Annotated[Path, typer.Option(help="Folder of the frameworks' environments.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Name = Annotated[
    str, typer.Argument(help="tpot, h2o, auto-sklearn, auto_ml, or all.", show_default=False)
]
Python = Annotated[
    Path | None,
    typer.Option(help="Interpreter to build on; found on PATH or among pyenv's if not given."),
]
Frameworks = Annotated[
    list[str] | None,
    typer.Option(
        "--framework",
        help="tpot, h2o, auto-sklearn or auto_ml; may be repeated. All if not given.",
        show_default=False,
    ),
]
DataSets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        help="digits, breast_cancer, wine, iris (classes); diabetes, wine_alcohol (numbers); may "
        "be repeated. All if not given.",
        show_default=False,
    ),
]
Seeds = Annotated[int, typer.Option(help="Splits: seeds 0 to N - 1.", metavar="N")]
Seconds = Annotated[
    float, typer.Option(help="Wall time each framework may take, per training (soft limit).")
]
ResultsOut = Annotated[
    Path, typer.Option(help="The results, a JSONL file; continued if it exists.")
]
Source = Annotated[
    Path,
    typer.Argument(metavar="RESULTS", help="Results file of `amc automl run`.", show_default=False),
]
TableOut = Annotated[
    Path | None, typer.Option(help="Markdown file to write; printed if not given.")
]


def setup(
    name: Name,
    root: Root = _ROOT,
    python: Python = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Install a framework, or all, into environments of their own.

    TPOT needs Python 3.10 to 3.13, auto-sklearn 3.9 or 3.8, auto_ml 3.7, H2O
    3.7 to 3.12 and Java; they are looked for on PATH and in pyenv's folder.
    What cannot be installed is noted with its reason, and `run` reports it.
    Repeating the command tries again what has failed and leaves alone what
    works.

    Examples:

    \b
      amc automl setup all
    \b
      With an interpreter from elsewhere, in a folder of your own:
        amc automl setup auto_ml --python /opt/python3.7/bin/python \\
            --root automl
    """
    _check_is_checkout()
    from amc_compress.automl.environments import folder_of, setup
    from amc_compress.automl.frameworks import FRAMEWORKS
    from amc_env.validation.checks import check_known

    names = (
        list(FRAMEWORKS)
        if name == "all"
        else [check_known("framework", name, (*FRAMEWORKS, "all"))]
    )
    if python is not None and len(names) > 1:
        raise ValueError("--python is for one framework; set them up one by one with it.")
    failed = False
    for each in names:
        framework = FRAMEWORKS[each]
        if not quiet:
            print(f"{each}: installing into {folder_of(framework, root)}", flush=True)
        try:
            installed = setup(framework, root=root, python=python)
        except MissingDependencyError as error:
            if len(names) == 1:
                raise
            failed = True
            print(f"{each}: {error}", flush=True)
            continue
        print(f"{each}: ready, Python {installed.python}, {len(installed.packages)} packages")
    if failed:
        raise typer.Exit(1)


def run(
    out: ResultsOut,
    framework: Frameworks = None,
    dataset: DataSets = None,
    seeds: Seeds = 3,
    seconds: Seconds = 60.0,
    root: Root = _ROOT,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train every framework on every split for the same wall time.

    A training is killed at the hard limit, the soft one and a sixth of it (at
    least a minute). Failures become rows with their reason. Each row is
    written at once: an interrupted run resumes when the command is repeated,
    and nothing is trained twice. Nothing else should run meanwhile.

    Examples:

    \b
      Everything, three splits, a minute each (an hour and a half):
        amc automl run --out automl.jsonl
    \b
      Two frameworks on one data set, five minutes each:
        amc automl run --framework tpot --framework h2o --dataset digits \\
            --seconds 300 --out digits.jsonl
    \b
      Then:
        amc automl table automl.jsonl
    """
    _check_is_checkout()
    from amc_compress.automl.protocol import check_ready, make_protocol, run_all
    from amc_compress.automl.records import TrainingsFile, read_trainings
    from amc_env.files import only_one

    protocol = make_protocol(seconds)
    frameworks, data_sets = _chosen(framework, dataset)
    if seeds < 1:
        raise ValueError(f"Expected --seeds of at least 1, got {seeds}.")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; --out is a file, e.g. {out / 'automl.jsonl'}.")
    root = root.expanduser()
    check_ready(frameworks, root)

    def show(row: Training) -> None:
        if not quiet:
            print(_told(row), flush=True)

    if out.exists():
        read_trainings(out)  # next to a file that is something else no lock is left
    with only_one(out):
        results = TrainingsFile(out, protocol)
        run_all(frameworks, data_sets, range(seeds), results, protocol, root, show)
    print(out)


def table(source: Source, out: TableOut = None, debug: Debug = False) -> None:
    """Write the results as Markdown tables, with the paper's statistic.

    Examples:

    \b
      amc automl table automl.jsonl
      amc automl table automl.jsonl --out automl.md
    """
    _check_is_checkout()
    from amc_compress.automl.records import read_trainings
    from amc_compress.automl.table import make_table
    from amc_env.files import write_atomic

    text = make_table(read_trainings(source))
    if out is None:
        print(text, end="")
        return
    if os.path.realpath(out) == os.path.realpath(source):
        raise ValueError(f"{out} holds the results; choose another --out for the table.")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text)
    print(out)


def _check_is_checkout() -> None:
    if find_spec("amc_compress.automl") is None:
        raise MissingDependencyError(
            "The comparison of AutoML frameworks is not part of the installed package: clone the "
            "repository and run `pip install -e .` in it."
        )


def _chosen(
    framework: list[str] | None, dataset: list[str] | None
) -> tuple[list[Framework], list[DataSet]]:
    from amc_compress.automl.datasets import DATA_SETS, find_data_set
    from amc_compress.automl.frameworks import FRAMEWORKS
    from amc_env.validation.checks import check_known

    known = tuple(FRAMEWORKS)
    frameworks = [FRAMEWORKS[check_known("framework", n, known)] for n in framework or known]
    data_sets = [find_data_set(name) for name in dataset or DATA_SETS]
    return list(dict.fromkeys(frameworks)), list(dict.fromkeys(data_sets))


def _told(row: Training) -> str:
    where = f"{row.data}, seed {row.seed}: {row.framework}"
    if row.score is None:
        return f"{where} failed ({row.failure}): {row.reason}"
    return f"{where} {row.score:.4g} in {row.wall_seconds:g} s"

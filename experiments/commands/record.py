"""``amc record``: turns a task into a small file that scores plans without network or data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amc_compress.commands.compare import Data, Weights, places_of
from amc_compress.commands.options import takes
from amc_compress.commands.values import where_from

if TYPE_CHECKING:
    from amc_env.recorded_tasks.recorded_file import RecordedTask

TaskName = Annotated[str, typer.Option(help="Name of the task; `amc compare --list` shows them.")]
Out = Annotated[Path, typer.Option(help="The file, TASK.npz.")]
Folder = Annotated[
    Path,
    typer.Option(
        help="Folder of a comparison: its evaluations are used, its trials are recorded too, and "
        "evaluations made now are kept there.",
    ),
]
Plans = Annotated[int, typer.Option(help="Plans of the Latin hypercube.")]
Rounds = Annotated[
    int, typer.Option(help="Rounds of searches on the surrogate, evaluated for real.")
]
Seed = Annotated[int, typer.Option(help="Random seed of the plans.")]


@takes("workers", "ray", "evaluation_timeout", "quiet", "debug")
def record(
    ctx: typer.Context,
    quiet: bool,
    task: TaskName,
    out: Out,
    folder: Folder = Path("runs/compare"),
    plans: Plans = 2000,
    rounds: Rounds = 4,
    seed: Seed = 0,
    data: Data = None,
    weights: Weights = None,
) -> None:
    """Record a task: evaluate thousands of plans once, and fit what answers for all others.

    The file plays as an environment in which an evaluation takes a third of a
    millisecond. Every evaluation is kept in FOLDER/judgements as it is made, so
    the same command resumes after an interruption.

    Examples:

    \b
      amc record --task digits-channels --out digits-channels.npz
    \b
      With the trials of a comparison, which the surrogate is measured on first:
        amc record --task resnet20-channels --folder runs/r20 \\
            --data data/cifar10 --weights resnet20=resnet20.safetensors \\
            --out resnet20-channels.npz
    \b
      In Python, afterwards:
        gymnasium.make("amc_env:amc/digits-channels-recorded-v0", task="TASK.npz")
    """
    from amc_compress.comparison.recording.recording import RecordingOptions
    from amc_compress.comparison.recording.recording import record as record_task
    from amc_compress.comparison.recording.refinement import Refinement
    from amc_compress.comparison.records import RESULTS, read_results
    from amc_compress.comparison.searches.plan_evaluation import trials_of
    from amc_compress.comparison.searches.searching import open_store
    from amc_compress.comparison.tasks import build_env, check_task, find_task
    from amc_compress.runs.storage.occupied import check_no_run
    from amc_env.files import write_atomic
    from amc_env.recorded_tasks.recorded_file import write_recorded

    chosen = find_task(task)
    if chosen.is_recorded:
        raise ValueError(f"{task} is recorded already; name the task it stems from.")
    check_no_run(folder, "--folder")
    places, where = places_of(data, weights), where_from(ctx)
    check_task(chosen, places)
    _check_out(out)
    results = read_results(folder / RESULTS)
    env = build_env(chosen, places)
    options = RecordingOptions(n_plans=plans, seed=seed, refinement=Refinement(rounds=rounds))
    trials = trials_of(results, task, env) if task in results.tasks else None
    recorded = record_task(
        env,
        open_store(chosen, places, folder, env),
        name=task,
        trials=trials,
        options=options,
        where=where,
        progress=not quiet,
    )
    write_atomic(out, write_recorded(recorded))
    print(f"{out}: {_in_short(recorded)}")


def _check_out(out: Path) -> None:
    """Rejects, before anything is evaluated, a file that could not be written or opened.

    The folder of the file is made.

    Raises:
        ValueError: If the name does not end in ``.npz``, or is that of a folder.
    """
    if out.suffix != ".npz":
        raise ValueError(
            f"Expected --out to end in .npz, got {out}: only such a file can be opened as a "
            f"recorded task. Write {out.name}.npz, say."
        )
    if out.is_dir():
        raise ValueError(f"{out} is a folder; --out is a file, e.g. {out / 'task.npz'}.")
    out.parent.mkdir(parents=True, exist_ok=True)


def _in_short(recorded: RecordedTask) -> str:
    """Summary: number of plans, and rank correlation on held-out ones."""
    held_out = recorded.quality["cross_validation"]["surrogate"]
    ranks = ", ".join(
        f"{held_out[part]['spearman']:.3f} {where}"
        for part, where in (("all", "over all"), ("top", "in the best quarter"))
    )
    return f"{sum(recorded.counts().values())} plans; rank correlation, held out: {ranks}"

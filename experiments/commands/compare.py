"""``amc compare``: agents on the same tasks with equal evaluations, and the statistics."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amc_compress.commands.options import takes
from amc_compress.commands.values import where_from

if TYPE_CHECKING:
    from amc_compress.comparison.records import Results, SearchRecord
    from amc_compress.comparison.searches.finetuning import Finetuning
    from amc_compress.comparison.searches.running import ComparisonSettings
    from amc_compress.comparison.tasks import Places

_OPTION = re.compile(r"[\w.]+\s*=")

MOST_SEEDS = 100_000
"""More searches than any statistics need; the list of far more fills the memory."""

DEFAULT_TASKS = ("digits-channels",)
DEFAULT_AGENTS = ("uniform", "random", "sensitivity", "local", "evolution", "tpe", "ddpg-one-shot")

Out = Annotated[Path, typer.Option(help="Where results, evaluations and the report are kept.")]
Task = Annotated[
    list[str] | None,
    typer.Option(
        help="Task; may be repeated, or several with commas. --list shows them. Your own: "
        "package.module:name of a function that returns a CompressionEnv, or of a ComparisonTask.",
        show_default=", ".join(DEFAULT_TASKS),
    ),
]
AgentName = Annotated[
    list[str] | None,
    typer.Option(
        help="Agent, as for `amc search`, with options if wanted: ddpg:elite_share=0. May be "
        "repeated; several without options may be given with commas. Your own: "
        "package.module:Class.",
        show_default=", ".join(DEFAULT_AGENTS),
    ),
]
Seeds = Annotated[int, typer.Option(help="Searches per agent and task.")]
FirstSeed = Annotated[int, typer.Option(help="First seed; the others follow.")]
Evaluations = Annotated[int, typer.Option(help="Search budget: plans that every search evaluates.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder with CIFAR-10 as parquet files.", show_default=False),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        help="Trained weights, MODEL=FILE (resnet20=..., mobilenet_v2_fast=...), or the folder of "
        "a trained network; repeat for more.",
        show_default=False,
    ),
]
Epochs = Annotated[
    int,
    typer.Option(
        help="Epochs of fine-tuning of the winners, then one test evaluation; 0: none.",
    ),
]
Finetuned = Annotated[
    list[str] | None,
    typer.Option(
        help="Only winners of these agents are fine-tuned; given like --agent.",
        show_default=False,
    ),
]
FinetuneSeeds = Annotated[
    int, typer.Option(help="Fine-tune the winners of this many seeds; 0: all.")
]
Reference = Annotated[
    str,
    typer.Option(help="Agent that the report compares all others with.", show_default=False),
]
Listing = Annotated[bool, typer.Option("--list", help="Show tasks and agents, and stop.")]
OnlyReport = Annotated[
    bool,
    typer.Option(
        "--report",
        help="Search nothing; write the report again, of --task and --agent if they are given.",
    ),
]


@takes("workers", "ray", "quiet", "debug")
def compare(
    ctx: typer.Context,
    quiet: bool,
    out: Out = Path("runs/compare"),
    task: Task = None,
    agent: AgentName = None,
    seeds: Seeds = 5,
    first_seed: FirstSeed = 0,
    evaluations: Evaluations = 100,
    data: Data = None,
    weights: Weights = None,
    finetune_epochs: Epochs = 0,
    finetune_agent: Finetuned = None,
    finetune_seeds: FinetuneSeeds = 0,
    reference: Reference = "",
    listing: Listing = False,
    only_report: OnlyReport = False,
) -> None:
    """Compare agents on the same tasks, with equal evaluations, over several seeds.

    Every search is written to OUT/results.jsonl when it ends; the same command
    resumes after an interruption, and more agents, tasks or seeds are added
    by asking for them. Equal plans are evaluated once. A search that fails stops
    no other; the exit code is 1 then.
    OUT/report.html says who won and which differences are real;
    `tensorboard --logdir OUT/tensorboard` overlays all curves.

    Examples:

    \b
      What there is:
        amc compare --list
    \b
      On the embedded digits, with two processes:
        amc compare --agent ddpg-one-shot,local,random --seeds 3 --workers 2
    \b
      A new policy over 20 seeds, in minutes, without data:
        amc compare --task digits-channels-recorded --seeds 20 --evaluations 200 \\
            --agent ddpg-one-shot,local,tpe --out runs/recorded
    \b
      For real, and fine-tuned at the end:
        amc compare --task resnet20-channels --data data/cifar10 \\
            --weights resnet20=resnet20.safetensors --finetune-epochs 1 \\
            --out runs/r20
    \b
      Scores over all tasks need agents that searched all of them; choose these:
        amc compare --report --agent ddpg-one-shot,local,tpe --out runs/r20
    """
    if listing:
        _show_list()
        return
    from amc_compress.comparison.records import RESULTS, read_results
    from amc_compress.comparison.report.report import write_report
    from amc_compress.comparison.searches.running import ComparisonSettings
    from amc_compress.comparison.statistics.statistics import require_rliable
    from amc_compress.runs.storage.occupied import check_no_run

    check_no_run(out, "--out")
    require_rliable()
    if first_seed < 0:
        raise ValueError(f"Expected --first-seed >= 0, got {first_seed}.")
    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"Expected --seeds from 1 to {MOST_SEEDS}, got {seeds}.")
    places = places_of(data, weights)
    winners_of = _agents(finetune_agent)
    _check_finetuning(finetune_epochs, winners_of, finetune_seeds)
    failures = 0
    if only_report:
        results = read_results(out / RESULTS).only(_split(task), _agents(agent))
    else:
        comparison = ComparisonSettings(
            tasks=tuple(_split(task) or DEFAULT_TASKS),
            agents=tuple(_agents(agent) or DEFAULT_AGENTS),
            seeds=tuple(range(first_seed, first_seed + seeds)),
            evaluations=evaluations,
            places=places,
            folder=out,
            where=where_from(ctx),
        )
        training = None
        if finetune_epochs:
            training = _training(comparison, finetune_epochs, winners_of, finetune_seeds)
        results, failures = _search(comparison, training, reference, quiet)
    print(write_report(out, results, reference=reference or None))
    if failures:
        raise typer.Exit(1)


def _search(
    comparison: ComparisonSettings, training: Finetuning | None, reference: str, quiet: bool
) -> tuple[Results, int]:
    """Makes the searches that are missing, and trains their winners.

    Returns:
        The results, and how many searches and trainings failed.
    """
    from amc_compress.comparison.records import RESULTS, read_results
    from amc_compress.comparison.searches.finetuning import finetune_winners
    from amc_compress.comparison.searches.running import (
        jobs_left,
        jobs_of,
        make_searches,
        only_results,
    )

    missing = comparison.check()
    known = read_results(comparison.folder / RESULTS)
    _check_reference(reference, comparison, known)
    if training is not None:
        training.check(known, [job.key for job in jobs_of(comparison)])
    teller = _Teller(quiet)
    with only_results(comparison.folder) as file:
        teller.total = len(jobs_left(comparison, file.results))
        make_searches(comparison, missing, file, teller)
        if training is not None:
            finetune_winners(
                file, comparison.places, training, teller.finetuned, teller.not_finetuned
            )
        return file.results, teller.failures


def _split(values: Sequence[str] | None) -> list[str]:
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def _agents(values: Sequence[str] | None) -> list[str]:
    """Labels; a comma separates agents, or the options of one: those are ``option=value``."""
    labels: list[str] = []
    for value in values or ():
        begun = len(labels)
        for part in _split([value]):
            if len(labels) > begun and ":" in labels[-1] and _OPTION.match(part):
                labels[-1] += f",{part}"
            else:
                labels.append(part)
    return labels


def places_of(data: Path | None, weights: Sequence[str] | None) -> Places:
    """Reads ``--data`` and ``--weights``.

    Raises:
        ValueError: If a weights option has another form.
    """
    from amc_compress.comparison.tasks import Places

    files = {}
    for text in weights or ():
        model, equals, path = text.partition("=")
        if not equals or not model or not path:
            raise ValueError(f"Expected --weights MODEL=FILE, got {text!r}.")
        files[model] = os.path.realpath(path)
    return Places(None if data is None else os.path.realpath(data), files)


def _check_reference(reference: str, comparison: ComparisonSettings, known: Results) -> None:
    """Rejects, before anything is searched, a reference that is not among the agents."""
    agents = dict.fromkeys([*comparison.agents, *(s.agent for s in known.searches)])
    if reference and reference not in agents:
        raise ValueError(
            f"Expected --reference to be one of the agents that are compared, got {reference!r}; "
            f"choose one of: {', '.join(agents)}."
        )


def _check_finetuning(epochs: int, agents: Sequence[str], seeds: int) -> None:
    """Rejects options that have no effect or no meaning."""
    if epochs < 0:
        raise ValueError(f"Expected --finetune-epochs >= 0, got {epochs}.")
    if seeds < 0:
        raise ValueError(f"Expected --finetune-seeds >= 0, got {seeds}; 0 means all.")
    if not epochs and (agents or seeds):
        raise ValueError(
            "Expected --finetune-epochs with --finetune-agent and --finetune-seeds, got none: "
            "nothing would be fine-tuned. Say for how many epochs, or leave them out."
        )


def _training(
    comparison: ComparisonSettings, epochs: int, agents: Sequence[str], seeds: int
) -> Finetuning:
    """Returns how the winners of this comparison, and of no other in the file, are trained."""
    from amc_compress.comparison.searches.finetuning import Finetuning
    from amc_compress.comparison.tasks import find_task

    if not any(find_task(name).is_trained for name in comparison.tasks):
        raise ValueError(
            "Nothing to fine-tune: recorded tasks have no network, and of an environment of yours "
            "none is known. Leave --finetune-epochs out, or name the task without -recorded."
        )
    unknown = [agent for agent in agents if agent not in comparison.agents]
    if unknown:
        raise ValueError(
            f"Expected --finetune-agent to be one of the agents that are compared, got "
            f"{', '.join(unknown)}; choose from: {', '.join(comparison.agents)}."
        )
    return Finetuning(
        epochs,
        tuple(agents) or comparison.agents,
        comparison.seeds[: seeds or None],
        comparison.tasks,
        comparison.evaluations,
    )


class _Teller:
    """Reports the result of every search and training on stderr.

    Args:
        quiet: Whether only failures are told.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._done = 0
        self.total = 0
        self.failures = 0

    def __call__(self, record: SearchRecord) -> None:
        """Reports a search."""
        self._done += 1
        head = f"{self._done} of {self.total}: {_name(record)}"
        if record.error is not None:
            self.failures += 1
            self._say(f"{head}: failed: {record.error}")
        elif not self._quiet:
            best = max((t.reward for t in record.trials), default=float("nan"))
            seconds = sum(t.agent_seconds for t in record.trials)
            self._say(f"{head}: {best:.4f} (agent {seconds:.1f} s)")

    def finetuned(self, record: SearchRecord) -> None:
        """Reports a winner that was trained."""
        assert record.final is not None  # noqa: S101
        if not self._quiet:
            self._say(
                f"{_name(record)}: fine-tuned to {record.final.finetuned_validation:.4f}, test "
                f"{record.final.test:.4f}"
            )

    def not_finetuned(self, record: SearchRecord, error: Exception) -> None:
        """Reports a winner whose training failed."""
        from amc_compress.comparison.searches.searching import in_one_line

        self.failures += 1
        text = in_one_line(error)
        self._say(f"{_name(record)}: not fine-tuned: {text} (repeat the command to try it again)")

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _name(record: SearchRecord) -> str:
    return f"{record.task}, {record.agent}, seed {record.seed}"


def _show_list() -> None:
    from amc_compress.agents import AGENTS, make_agent
    from amc_compress.comparison.tasks import TASKS, is_shipped
    from amc_env.errors import MissingDependencyError

    print("Tasks:")
    for task in TASKS.values():
        note = "" if is_shipped(task) else " (its record is not in this release)"
        print(f"  {task.name:32} {task.title}{note}")
    print("Agents:")
    for name in AGENTS:
        try:
            text = (type(make_agent(name)).__doc__ or "").strip().splitlines()[0]
        except MissingDependencyError as error:
            text = str(error)
        print(f"  {name:32} {text}")

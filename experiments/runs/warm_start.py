"""Warm start: the evaluations of another run, known from the start (``--warm-start RUN``).

The other run must have evaluated by the same rules: the same network, data, learner and proxy.
Agent, budget, reward and the action mapping may differ, as rewards and costs are computed anew. Its
trials are copied into the run folder, so that an interrupted search resumes without it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from amc_compress.agents.trials import Trial
from amc_compress.config.run_config import RunConfig
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.storage.trials import CostOf, RecordedTrial, read_trials, write_trials
from amc_env import CompressionPlan, RunFolderError
from amc_env.validation.sentences import joined

FILE = "warm_start.jsonl"
"""The trials of the other run, in the folder of this one."""

_NOT_EVALUATED_BY = {"network", "teacher", "test data"}
"""Objects that say nothing of how plans are evaluated; the network is compared by its tensors."""

FREE = (
    "warm_start", "agent", "evaluations", "budget", "reward", "action", "threads",
    "allow_pickle", "preset", "time_limit", "parallel", "max_drop", "max_drop_after", "minimize",
)  # fmt: skip
"""Options on which no evaluation of a plan depends."""


def check_warm_start(config: RunConfig, out: Path) -> None:
    """Rejects a warm start from a run with other rules or no trials, before any work is done.

    Args:
        config: The options of the run that begins.
        out: Its folder; where the trials have been copied already, nothing is asked.

    Raises:
        ValueError: If no agent searches, or in several stages.
        RunFolderError: If there is no such run, it has no trials, or its options differ.
    """
    if config.warm_start is None or (out.expanduser() / FILE).exists():
        return
    if not config.spec.decides or config.is_progressive:
        raise ValueError(
            "--warm-start is for one search by an agent; leave it out where the plan is fixed, or "
            "reached in stages."
        )
    place = Path(config.warm_start)
    other = RunFolder.open(place, uses=()).config
    stages = {"task", "search"} | ({"train"} if config.weights is None else set())
    if differences := other.differences(config, stages, but=FREE):
        raise RunFolderError(
            f"The run in {place} evaluated its plans by other rules: {'; '.join(differences)}. "
            f"Begin with one that differs in agent, evaluations, budget, reward or action only."
        )
    if not _known_to(place):
        raise RunFolderError(f"The run in {place} has evaluated no plan yet; name another one.")


def warm_start_of(folder: RunFolder, cost_of: CostOf | None = None) -> list[Trial]:
    """Returns the trials that the search of a run begins with, none without ``--warm-start``.

    Args:
        folder: Of the run.
        cost_of: Plan -> absolute costs, which the trials must agree with.

    Raises:
        RunFolderError: If the other run is gone or damaged, or compressed another network.
    """
    if folder.config.warm_start is None:
        return []
    copy = folder / FILE
    if not copy.exists():
        place = Path(folder.config.warm_start)
        _check_network(folder.path, place)
        _check_content(folder.facts, place)
        write_trials(copy, _known_to(place))
    return [
        Trial(
            episode=t.episode,
            plan=CompressionPlan(t.plan),
            score=t.score,
            reward=t.reward,
            cost_ratio=t.cost_ratio,
            seconds=t.seconds,
            source=t.source,
            within_budget=t.within_budget,
        )
        for t in read_trials(copy, cost_of)
    ]


def _known_to(place: Path) -> list[RecordedTrial]:
    """Trials of a run, after those of its own warm start."""
    return [*read_trials(place / FILE), *read_trials(place / "trials.jsonl")]


def _check_network(here: Path, there: Path) -> None:
    """Equal options train equal networks on one machine; these may come from two."""
    mine, other = _tensors(here), _tensors(there)
    if mine.keys() != other.keys() or any(not mine[k].equal(other[k]) for k in mine):
        raise RunFolderError(
            f"The run in {there} compressed a network with other weights; give the same --weights "
            f"to both."
        )


def _check_content(mine: DataFacts, there: Path) -> None:
    """Plans must have been evaluated by the same data and task; those of named data are options."""
    other = RunFolder.open(there, uses=()).facts
    names = (mine.content.keys() | other.content.keys()) - _NOT_EVALUATED_BY
    if differ := sorted(n for n in names if mine.content.get(n) != other.content.get(n)):
        raise RunFolderError(
            f"The run in {there} evaluated its plans with another {joined(differ)}; begin with one "
            f"of the same content."
        )


def _tensors(place: Path) -> dict[str, Tensor]:
    try:
        return load_file(place / "original.safetensors")
    except Exception as error:
        raise RunFolderError(
            f"Cannot read {place / 'original.safetensors'} ({error}), the network that was "
            f"compressed there; begin with another run."
        ) from error

"""``trials.jsonl``: one line per episode, appended as it happens, verified when replayed.

Searches are deterministic, so a search is resumed by running it again from episode 0 with the
recorded scores given to the environment beforehand: what was already evaluated costs nothing
but the agent's own updates. The recorder checks that the replay says what the record says.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc_env import CompressionPlan, RunFolderError
from amc_env.files import JsonLines
from amc_env.scores.metric import ACCURACY, Metric, checked_score
from amc_env.scores.stages import Measured
from amc_env.validation.checks import checked
from amc_env.validation.shapes import renamed_keys

if TYPE_CHECKING:
    from amc_compress.agents.trials import Trial

EVALUATED_BEFORE = "judged_before.jsonl"
"""The trials of a search whose agent failed, next to the record."""

_TOLERANCE = 1e-6  # costs and scores of equal plans, on any processor
_OLD_NAMES = {"accuracy": "score"}
_STAGED = ("share", "samples", "stage", "groups")

CostOf = Callable[[CompressionPlan], Mapping[str, float]]


@checked
@dataclass(frozen=True)
class RecordedTrial:
    """One line of ``trials.jsonl``.

    Args:
        episode: Counts from 0.
        plan: Decision key -> value.
        cost: Cost name -> absolute cost.
        cost_ratio: Cost name -> cost / original cost.
        score: What is searched for, higher is better: the proxy accuracy, for a classifier.
        reward: What the agent was given.
        seconds: Wall time since the previous trial, the agent's updates included.
        cpu_seconds: The same in processor time.
        source: Where the plan came from, e.g. ``"warm-up"``.
        within_budget: Whether the plan may win; what an agent evaluated to learn about single
            decisions need not meet the budget.
        failure: Why the plan could not be evaluated; empty if it was.
        processor: What evaluated it, where that was not the search's own process.
        share: In a search with ``--staged``, of the samples that it was evaluated on.
        samples: How many these are; 0 in any other search.
        stage: At which stage its evaluation ended, from 1 on.
        groups: Scores on the groups of the samples, where it was evaluated on all.

    Raises:
        ValueError: If a number is not finite, or out of its range.
    """

    episode: int
    plan: dict[str, float]
    cost: dict[str, float]
    cost_ratio: dict[str, float]
    score: float
    reward: float
    seconds: float
    cpu_seconds: float
    source: str
    within_budget: bool = True
    failure: str = ""
    processor: str = ""
    share: float = 1.0
    samples: int = 0
    stage: int = 0
    groups: tuple[float | None, ...] = ()

    @property
    def measured(self) -> Measured | None:
        """What a staged evaluation found; None where it was none."""
        if not self.samples:
            return None
        return Measured(self.score, self.share, self.samples, self.stage, self.groups)

    def row(self) -> dict[str, Any]:
        """Returns the line of the file; without what only a staged search has in any other."""
        found = vars(self)
        return found if self.samples else {k: found[k] for k in found if k not in _STAGED}

    def __post_init__(self) -> None:
        checked_score(self.score, "a recorded trial")
        for what in ("cost", "cost_ratio"):
            if any(number < 0.0 for number in getattr(self, what).values()):
                raise ValueError(f"Expected every {what} to be at least 0.")
        if min(self.seconds, self.cpu_seconds) < 0.0:
            raise ValueError("Expected seconds of at least 0.")
        if not 0.0 < self.share <= 1.0 or min(self.samples, self.stage) < 0:
            raise ValueError("Expected a share in (0, 1], samples and a stage of at least 0.")


def read_trials(
    path: Path, cost_of: CostOf | None = None, metric: Metric | None = None
) -> list[RecordedTrial]:
    """Reads the trials; a half-written last line (a crash while writing it) is left out.

    Args:
        path: The file; a missing one has no trials.
        cost_of: Plan -> absolute costs of the network at hand, which the record must agree with.
        metric: What the scores are made from; None where it is not known.

    Raises:
        RunFolderError: If any other line is damaged, or says what cannot be: an accuracy outside
            [0, 1], a plan off the grid, other costs than the plan has, or two scores of a plan.
    """
    known: dict[CompressionPlan, float] = {}

    def trial_from(row: dict[str, Any]) -> RecordedTrial:
        is_older = "accuracy" in row
        row = {**renamed_keys(row, _OLD_NAMES), "groups": tuple(row.get("groups", ()))}
        trial = RecordedTrial(**row)
        measure = metric or (ACCURACY if is_older else None)
        if measure is not None:
            measure.checked(trial.score, "a recorded trial")
        _check_against(trial, known, cost_of)
        return trial

    return _lines(path).rows(trial_from)


def _lines(path: Path) -> JsonLines:
    return JsonLines(path, remedy="restore the file, or start the search again in a new folder")


def write_trials(path: Path, trials: Iterable[RecordedTrial]) -> None:
    """Writes the file anew."""
    _lines(path).write(trial.row() for trial in trials)


def _check_against(
    trial: RecordedTrial, known: dict[CompressionPlan, float], cost_of: CostOf | None
) -> None:
    """Compares a trial with those before it and with the network."""
    plan = CompressionPlan(trial.plan)
    if not _is_close(known.setdefault(plan, trial.score), trial.score):
        raise ValueError(
            f"Expected the score {known[plan]} that an earlier line has for the same plan, got "
            f"{trial.score}"
        )
    if cost_of is None:
        return
    for name, cost in cost_of(plan).items():
        if name in trial.cost and not _is_close(cost, trial.cost[name]):
            raise ValueError(
                f"Expected {name} of {cost:.10g}, as the plan has, got {trial.cost[name]:.10g}"
            )


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-9)


def _staged(found: Measured) -> dict[str, Any]:
    return {name: getattr(found, name) for name in _STAGED}


def staged_facts(trials: Sequence[RecordedTrial]) -> dict[str, Any]:
    """Returns what a search in stages has spent, for its results.

    Returns:
        ``evaluations``, in evaluations on all samples; ``samples``; and how many trials ended at
        each stage, by its number.
    """
    ended = Counter(trial.stage for trial in trials if trial.stage)
    return {
        "staged": {
            "evaluations": round(sum(trial.share for trial in trials), 3),
            "samples": sum(trial.samples for trial in trials),
            "ended_at": {str(stage): ended[stage] for stage in sorted(ended)},
        }
    }


class TrialRecorder:
    """Appends each trial to ``trials.jsonl``; on resume verifies instead of appending.

    Args:
        path: The file; what it holds already is expected again in the same order.
        cost_of: Plan -> absolute costs, for the record.
        metric: What the scores are made from; None where it is not known.

    Raises:
        RunFolderError: If the file is damaged, or of another search.
    """

    def __init__(self, path: Path, cost_of: CostOf, metric: Metric | None = None) -> None:
        self.path = path
        self.recorded = read_trials(path, cost_of, metric)
        _lines(path).mend()
        self._cost_of = cost_of
        self._metric = metric
        self._seen = 0
        self.restart_clock()

    @property
    def known(self) -> list[RecordedTrial]:
        """All evaluated plans: those on record, and those of an agent that failed."""
        before = read_trials(self.path.with_name(EVALUATED_BEFORE), self._cost_of, self._metric)
        return [*before, *self.recorded]

    def set_aside(self) -> None:
        """Restarts the record after the agent's code failed and was changed.

        What was evaluated stays known, so that nothing is evaluated twice.
        """
        before = {CompressionPlan(t.plan): t for t in self.known}
        write_trials(self.path.with_name(EVALUATED_BEFORE), before.values())
        self.path.unlink(missing_ok=True)

    @property
    def trials(self) -> list[RecordedTrial]:
        """Everything on record."""
        return self.recorded

    @property
    def seconds(self) -> float:
        """Wall time of the trials that this process has seen, evaluated by it or before."""
        return sum(trial.seconds for trial in self.recorded[: self._seen])

    def restart_clock(self) -> None:
        """Starts the time of the next trial now."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def since_last(self) -> tuple[float, float]:
        """Returns wall and processor seconds since the last trial (or the start)."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu

    def __call__(self, trial: Trial) -> None:
        """Records or verifies one trial.

        Raises:
            RunFolderError: If a replayed trial is not the recorded one.
        """
        if self._seen < len(self.recorded):
            self._verify(trial, self.recorded[self._seen])
        else:
            self._append(trial)
        self._seen += 1
        self.restart_clock()

    def _verify(self, trial: Trial, old: RecordedTrial) -> None:
        same_plan = CompressionPlan(old.plan) == CompressionPlan(dict(trial.plan))
        same_reward = math.isclose(old.reward, trial.reward, rel_tol=1e-9, abs_tol=1e-12)
        if not (same_plan and same_reward and old.source == trial.source):
            raise RunFolderError(
                f"Episode {old.episode} went differently than {self.path} says, so the run cannot "
                f"be continued to the same result; resume it on the machine and with the package "
                f"versions it was started with, or start again in a new folder."
            )

    def _append(self, trial: Trial) -> None:
        seconds, cpu_seconds = self.since_last()
        row = RecordedTrial(
            episode=trial.episode,
            plan=dict(trial.plan),
            cost=dict(self._cost_of(trial.plan)),
            cost_ratio=dict(trial.cost_ratio),
            score=trial.score,
            reward=trial.reward,
            seconds=round(seconds, 4),
            cpu_seconds=round(cpu_seconds + trial.elsewhere, 4),
            source=trial.source,
            within_budget=trial.within_budget,
            failure=trial.failure,
            processor=trial.processor,
            **({} if trial.measured is None else _staged(trial.measured)),
        )
        _lines(self.path).append(row.row())
        self.recorded.append(row)

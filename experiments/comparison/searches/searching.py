"""One search of a comparison: a task, an agent and a seed become a record."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from amc_compress.agents import Trial
from amc_compress.comparison.labels import EnvOptions, parse_label
from amc_compress.comparison.naming import file_names
from amc_compress.comparison.records import EvaluatedPlan, FinalEvaluation, SearchRecord, TaskFacts
from amc_compress.comparison.searches.evaluation_store import EvaluationStore, TaskFingerprint
from amc_compress.comparison.searches.stored_learner import StoredEvaluations
from amc_compress.comparison.tasks import ComparisonTask, Places, build_env, origin_of
from amc_compress.user_code import exit_call, explanation
from amc_env import CompressionEnv, CompressionPlan
from amc_env.env import DEFAULT_ACTION_MAPPING
from amc_env.scores.compressible import Compressible
from amc_env.scores.evaluations import InProcess
from amc_env.scores.stages import ROUNDING, Stages


@dataclass(frozen=True)
class OpenTask:
    """A task that is ready to be searched.

    Args:
        task: Its name and options.
        learner: Evaluates.
        env: An environment of it; searches get fresh ones.
        facts: For the results file.
        prepare_seconds: Processor seconds that this took.
    """

    task: ComparisonTask
    learner: Compressible
    env: CompressionEnv
    facts: TaskFacts
    prepare_seconds: float

    def fresh_env(self, requests: EnvOptions) -> CompressionEnv:
        """Returns an environment in which nothing was evaluated yet.

        Raises:
            ValueError: If more is asked for than the task allows.
        """
        budget = requests.within(self.env.budget)
        return CompressionEnv(
            self.learner,
            budget,
            action=requests.action or DEFAULT_ACTION_MAPPING,
            evaluations=InProcess(self.learner, Stages() if requests.staged else None),
        )


def in_one_line(error: BaseException | str) -> str:
    """Returns what an error says, on one line; its type where it says nothing."""
    if isinstance(error, BaseException) and (said := explanation(error)) is not None:
        return said
    if isinstance(error, SystemExit):
        return f"It called {exit_call(error)}."
    return " ".join(str(error).split()) or type(error).__name__


def prepare_task(task: ComparisonTask, places: Places, folder: Path) -> OpenTask:
    """Prepares a task; evaluations are kept below ``folder``.

    Raises:
        InputDataError: If data or weights are missing or damaged.
        RunFolderError: If the evaluations in the folder are those of another task.
    """
    started = time.process_time()
    env = build_env(task, places)
    learner: Compressible = env.learner
    if not task.is_recorded:
        store = open_store(task, places, folder, env)
        full = None
        if hasattr(learner, "evaluate_full"):
            full = open_store(task, places, folder, env, whole_split=True)
        learner = StoredEvaluations(learner, store, full)
        env = CompressionEnv(learner, env.budget)
    facts = TaskFacts(
        name=task.name,
        decisions=tuple(d.key for d in env.decisions),
        choices=tuple(d.choices for d in env.decisions),
        budget=str(env.budget),
        original_score=env.original_score,
        uniform_reward=env.evaluate(env.uniform_plan()).reward,
        recorded=task.is_recorded,
        metric=env.metric,
    )
    return OpenTask(task, learner, env, facts, time.process_time() - started)


def open_store(
    task: ComparisonTask,
    places: Places,
    folder: Path,
    env: CompressionEnv,
    *,
    whole_split: bool = False,
) -> EvaluationStore:
    """Opens the evaluations of a task in the folder of a comparison.

    Args:
        task: The task.
        places: Where its weights are.
        folder: Of the comparison.
        env: Its environment.
        whole_split: Whether those on the whole validation split are meant.

    Raises:
        RunFolderError: If the evaluations in the folder are those of another task.
    """
    origin = origin_of(task, places)
    name = task.name
    if whole_split:
        origin, name = f"{origin}, whole validation split", f"{name}-whole-split"
    path = folder / "judgements" / f"{file_names([name])[name]}.jsonl"
    return EvaluationStore(path, TaskFingerprint.of(env, origin))


class TrialClock:
    """Turns trials into rows, with the agent's seconds and the evaluation's apart."""

    def __init__(self, env: CompressionEnv) -> None:
        self._env = env
        self._evaluator: StoredEvaluations | None = (
            env.learner if isinstance(env.learner, StoredEvaluations) else None
        )
        self._cpu = time.process_time()
        self._spent, self._counted = self._evaluation_seconds()
        self._evaluations = 0.0
        self.rows: list[EvaluatedPlan] = []

    def _evaluation_seconds(self) -> tuple[float, float]:
        return (
            (0.0, 0.0)
            if self._evaluator is None
            else (self._evaluator.spent, self._evaluator.counted)
        )

    def __call__(self, trial: Trial) -> None:
        """Notes a trial; seconds of plans outside the budget are those of the next one within."""
        self._evaluations += trial.share
        if not trial.within_budget:
            return
        cpu, (spent, counted) = time.process_time(), self._evaluation_seconds()
        agent = (cpu - self._cpu) - (spent - self._spent)
        ratio = {name: trial.cost_ratio[name] for name in self._env.budget.bounds}
        row = EvaluatedPlan(
            evaluation=math.ceil(self._evaluations - ROUNDING),
            plan=tuple(trial.plan.choices_for(self._env.decisions)),
            score=trial.score,
            reward=trial.reward,
            cost_ratio=ratio,
            agent_seconds=round(max(0.0, agent), 5),
            judge_seconds=round(counted - self._counted, 5),
            source=trial.source,
        )
        self.rows.append(row)
        self._cpu, self._spent, self._counted = cpu, spent, counted


def search_once(opened: OpenTask, label: str, seed: int, evaluations: int) -> SearchRecord:
    """Runs one search; whatever an agent does wrong becomes the record's error.

    Args:
        opened: The task.
        label: As :func:`amc_compress.comparison.labels.parse_label` reads it.
        seed: Of the search.
        evaluations: How many evaluations it may spend.
    """
    record = SearchRecord(
        opened.task.name, label, seed, evaluations, prepare_seconds=opened.prepare_seconds
    )
    clock: TrialClock | None = None
    try:
        agent, requests = parse_label(label)
        env = opened.fresh_env(requests)
        clock = TrialClock(env)
        result = agent.search(env, evaluations, seed, on_trial=clock)
        final = _evaluate_winner(env, result.plan)
        record = replace(record, deterministic=agent.deterministic)
    except (Exception, SystemExit) as error:  # an agent of the user's may call sys.exit
        rows = tuple(clock.rows) if clock is not None else ()
        return SearchRecord(**{**vars(record), "trials": rows, "error": in_one_line(error)})
    return SearchRecord(**{**vars(record), "trials": tuple(clock.rows), "final": final})


def _evaluate_winner(env: CompressionEnv, plan: CompressionPlan) -> FinalEvaluation:
    """Evaluates a winner on the whole validation split; a record has none, and says so."""
    full = getattr(env.learner, "evaluate_full", None)
    validation = None if full is None else float(full(plan))
    return FinalEvaluation(tuple(plan.choices_for(env.decisions)), validation)

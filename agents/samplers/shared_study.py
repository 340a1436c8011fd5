"""An Optuna study, alone in memory or shared by several processes through a storage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc_compress.agents.rollout import Search
from amc_compress.agents.trials import AgentError, Trial
from amc_env import CompressionEnv, CompressionPlan
from amc_env.errors import MissingDependencyError
from amc_env.validation.shapes import renamed_keys

if TYPE_CHECKING:
    import optuna

PlanOf = Callable[[Mapping[str, float]], CompressionPlan]
GoalsOf = Callable[[Trial], Sequence[float]]

_TASK = "task"
_OLD_NAMES = {"accuracy": "score", "original_accuracy": "original_score"}
_JOURNAL = "journal:"
_SQLITE = "sqlite:///"
_LOST = {"gone": "is gone", "replaced": "does not hold the study any more"}


def require_optuna(sampler: str) -> None:
    """Checks that this machine has what a sampler needs.

    Raises:
        MissingDependencyError: With the line that installs it.
    """
    try:
        import optuna

        if sampler == "cmaes":
            import cmaes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'The sampler {sampler!r} needs Optuna: pip install "amc-compress[optuna]"'
        ) from error
    assert optuna is not None


class SharedStudy:
    """An Optuna study, and this worker's part in it.

    Args:
        sampler: Chooses parameters.
        env: The decision problem; a study holds evaluations of one problem only.
        n_objectives: The reward, and further costs.
        storage: ``"journal:FILE"``, the URL of a database, or empty.
        name: Name of the study in the storage.
        worker: Name of this process in the study.

    Raises:
        AgentError: If the storage cannot be used, or its study is one of another problem.
    """

    def __init__(
        self,
        sampler: optuna.samplers.BaseSampler,
        env: CompressionEnv,
        *,
        n_objectives: int,
        storage: str,
        name: str,
        worker: str,
    ) -> None:
        import optuna

        self._storage = storage
        self._name = name
        self._worker = worker
        self._is_open = False
        maximize = optuna.study.StudyDirection.MAXIMIZE
        minimize = optuna.study.StudyDirection.MINIMIZE
        with self._reachable():
            self._study = optuna.create_study(
                storage=_open_storage(storage),
                sampler=sampler,
                study_name=name if storage else None,
                directions=[maximize, *[minimize] * (n_objectives - 1)],
                load_if_exists=True,
            )
            self._is_open = True
            if storage:
                self._check_task(env, name, n_objectives)

    def _check_task(self, env: CompressionEnv, name: str, n_objectives: int) -> None:
        task = json.dumps(_fingerprint(env))
        known = self._study.user_attrs.get(_TASK)
        if known is None:
            self._study.set_user_attr(_TASK, known := task)
        same = renamed_keys(json.loads(known), _OLD_NAMES) == json.loads(task)
        if not same or len(self._study.directions) != n_objectives:
            raise AgentError(
                f"The study {name!r} in {self._storage} is one of another network, budget, reward, "
                f"validation split, other costs or other objectives; choose another study name."
            )

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Turns any failure of a storage into one sentence."""
        try:
            yield
        except (AgentError, KeyboardInterrupt, MissingDependencyError):
            raise
        except Exception as error:
            if not self._storage:
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            state = _state_of(self._storage, self._name) if self._is_open else "unknown"
            if state in _LOST:
                reason = f"the file {_file_of(self._storage)} {_LOST[state]} ({reason})"
            more = " any more" if self._is_open else ""
            raise AgentError(
                f"The storage {self._storage!r} of the study cannot be used{more}: {reason}. "
                f"{self._what_remains(state)}"
            ) from error

    def _what_remains(self, state: str) -> str:
        """Returns advice: evaluations are kept only if the study can be read."""
        if not self._is_open:
            return "Name another one, e.g. journal:study.log."
        if state == "held":
            return "Its evaluations are kept; start this worker again."
        return (
            "Start this worker again when the storage is back; if it is lost, the worker's own "
            "evaluations remain in the trials of its run folder, if it has one, and those of "
            "others in theirs."
        )

    @property
    def is_shared(self) -> bool:
        """Whether others may take part in the study."""
        return bool(self._storage)

    def ask(self, names: Sequence[str]) -> optuna.Trial:
        """Returns a new trial with its parameters."""
        import optuna

        space: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names
        }
        with self._reachable():
            trial = self._study.ask(space)
            if self._storage:
                trial.set_user_attr("worker", self._worker)
        return trial

    def tell(self, asked: optuna.Trial, trial: Trial, goals: Sequence[float]) -> None:
        """Reports the result of a trial."""
        with self._reachable():
            if self._storage:  # before the trial is complete, so that no reader misses them
                for key, value in self._facts(trial).items():
                    asked.set_user_attr(key, value)
            self._study.tell(asked, list(goals))

    def add(
        self, parameters: Mapping[str, float], trial: Trial, goals: Sequence[float], *, own: bool
    ) -> None:
        """Adds a plan that the sampler did not ask for.

        Args:
            parameters: What means it.
            trial: Its evaluation.
            goals: Reward and costs.
            own: Whether this process spent an evaluation on it.
        """
        import optuna

        space: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in parameters
        }
        facts = self._facts(trial) if own else {**self._facts(trial), "worker": ""}
        with self._reachable():
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=dict(parameters),
                    distributions=space,
                    values=list(goals),
                    user_attrs=facts if self._storage else {},
                )
            )

    def enqueue(self, parameters: Mapping[str, float]) -> None:
        """Enqueues parameters for the next ask."""
        with self._reachable():
            self._study.enqueue_trial(dict(parameters))

    def _facts(self, trial: Trial) -> dict[str, Any]:
        return {
            "worker": self._worker,
            "plan": dict(trial.plan),
            "score": trial.score,
            "source": trial.source,
        }

    def replay(self, search: Search, plan_of: PlanOf, goals_of: GoalsOf, source: str) -> int:
        """Evaluates again, from the record, what this worker evaluated before; returns how many.

        Plans that it was busy with when it was killed are evaluated now.

        Args:
            search: The running search.
            plan_of: Parameters -> the plan they mean.
            goals_of: A trial -> reward and costs.
            source: Who proposes what has no proposer on record.
        """
        if not self._storage:
            return 0
        with self._reachable():
            # Numbers were once kept as such.
            mine = [t for t in self._trials() if str(t.user_attrs.get("worker")) == self._worker]
        usable = [t for t in mine if t.values or t.params]
        done = [t for t in usable if "plan" in t.user_attrs]
        for trial in done:
            search.env.remember(_plan_of(trial), _score_of(trial))
        lost = [plan_of(t.params) for t in usable if "plan" not in t.user_attrs]
        search.env.submit(lost[: max(0, min(search.parallel, search.remaining - len(done)))])
        count = 0
        for trial in usable:
            if not search.remaining:
                break
            plan = _plan_of(trial) if "plan" in trial.user_attrs else plan_of(trial.params)
            known = search.find(plan)
            evaluated = known or search.evaluate(plan, trial.user_attrs.get("source", source))
            count += known is None
            if not trial.state.is_finished():
                with self._reachable():
                    self._study.tell(trial.number, list(goals_of(evaluated)))
        return count

    def best_of_others(self, search: Search) -> CompressionPlan | None:
        """Returns the best plan of all other workers if it beats this one's; None otherwise."""
        if not self._storage:
            return None
        with self._reachable():
            complete = [t for t in self._trials() if "plan" in t.user_attrs and t.values]
        best = max(complete, key=lambda t: t.values[0], default=None)
        if best is None or (search.best is not None and best.values[0] <= search.best.reward):
            return None
        plan = _plan_of(best)
        search.env.remember(plan, _score_of(best))
        return plan

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _plan_of(trial: optuna.trial.FrozenTrial) -> CompressionPlan:
    return CompressionPlan(trial.user_attrs["plan"])


def _score_of(trial: optuna.trial.FrozenTrial) -> float:
    score: float = renamed_keys(trial.user_attrs, _OLD_NAMES)["score"]
    return score


def _fingerprint(env: CompressionEnv) -> dict[str, Any]:
    """What workers must have in common; not the action mapping, which samplers do not use.

    Rewards and costs are functions, so they are asked what two plans are worth: the original and
    the uniform one, at two scores. Nine digits, as machines differ in the last ones. How the
    learner compresses cannot be seen from here.
    """
    plans = (CompressionPlan.full(env.decisions), env.uniform_plan())
    original = env.original_score
    scores = (0.25, 0.75) if env.metric.is_accuracy else (original - abs(original), original)
    asked = [env.outcome(plan, score) for plan in plans for score in scores]
    return {
        **({} if env.metric.is_accuracy else {"metric": env.metric.name}),
        "decisions": {d.key: d.choices for d in env.decisions},
        "budget": str(env.budget),
        "original_score": original,
        "rewards": [f"{outcome.reward:.9g}" for outcome in asked],
        "costs": [{k: f"{v:.9g}" for k, v in sorted(o.cost.items())} for o in asked[::2]],
    }


def _file_of(storage: str) -> Path | None:
    """The file of a storage that is one; None if a server keeps it."""
    if storage.startswith(_JOURNAL):
        return Path(storage.removeprefix(_JOURNAL))
    if storage.startswith(_SQLITE):
        return Path(storage.removeprefix(_SQLITE).partition("?")[0])
    return None


def _state_of(storage: str, name: str) -> str:
    """State of a study: ``"held"`` by a file, ``"gone"``, ``"replaced"``, ``"unknown"``.

    It is not known of servers, nor of files that cannot be read now. A file may be another one by
    now: Optuna makes a new journal in place of one that was deleted.
    """
    import optuna

    file = _file_of(storage)
    if file is None:
        return "unknown"
    if not file.is_file():  # to open a file that is not there would make it
        return "unknown" if file.exists() else "gone"
    try:
        optuna.load_study(study_name=name, storage=_open_storage(storage))
    except KeyError:
        return "replaced"
    except Exception:  # locked, or anything else: it cannot be read
        return "unknown"
    return "held"


def _open_storage(text: str) -> Any:
    if not text:
        return None
    if not text.startswith(_JOURNAL):
        return text
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(text.removeprefix(_JOURNAL)))

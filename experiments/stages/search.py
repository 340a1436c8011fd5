"""Stage ``search``: an agent searches for the plan; every episode is stored at once."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from amc_compress.agents.trials import OnTrial, SearchStopped, Trial
from amc_compress.config.run_config import RunConfig
from amc_compress.evaluations.where import Where
from amc_compress.learners.base import Learner
from amc_compress.learners.candidates.kept_curves import keep_in
from amc_compress.learners.candidates.second_order.levels import LEVELS, keep_levels
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.networks import save_network
from amc_compress.runs.problem import make_env
from amc_compress.runs.storage.curves import CURVES, StoredCurves, key_of
from amc_compress.runs.storage.trials import RecordedTrial, TrialRecorder, staged_facts
from amc_compress.runs.task import Task, use_threads
from amc_compress.runs.warm_start import FREE, warm_start_of
from amc_compress.user_code import place_of
from amc_env import (
    Budget,
    CompressionEnv,
    CompressionPlan,
    Evaluation,
    Evaluations,
    InfeasibleBudgetError,
    Outcome,
)
from amc_env.files import write_atomic
from amc_env.scores.stages import Stages

if TYPE_CHECKING:
    from amc_compress.agents.logging import EpisodeLogger


def run_search(task: Task) -> None:
    """Writes ``plan.json``, ``trials.jsonl`` and ``pruned.safetensors``.

    A search that was interrupted is replayed with its recorded evaluations, to the same result.
    ``--progressive`` searches stage after stage, each in a folder of its own below ``stages``.
    Without an agent, the only plan is evaluated: that of fixed bits, or of a rule.
    """
    folder, config = task.folder, task.config
    if folder.is_done("search"):
        return
    folder.start("search")
    use_threads(config, folder.facts, training=False)
    wall, cpu = time.perf_counter(), time.process_time()
    learner = task.learner
    _keep_known(task, learner)
    if config.is_progressive:
        found = _search_in_stages(task, learner, wall, cpu)
    else:
        stages = Stages() if config.staged else None
        with workers_of(config).evaluations(learner, stages) as service:
            found = _search(task, learner, service, wall, cpu)
    network, kept = found.cut or (learner.compress(found.plan), learner.kept_units(found.plan))
    save_network(network, folder / "pruned.safetensors", plan=found.plan, kept=kept)
    folder.write_plan(found.plan)
    folder.finish(
        "search",
        seconds=round(found.seconds, 3),
        prepare_seconds=round(found.prepare_seconds, 3),
        cpu_seconds_per_episode=round(found.cpu_seconds / max(1, found.n_trials), 5),
        n_trials=found.n_trials,
        original_score=learner.original_score,
        best=_facts(found.best),
        uniform=_facts(found.uniform),
        reward=found.reward,
        n_images=_images_per_trial(task),
        bounds={name: list(ends) for name, ends in found.budget.bounds.items()},
        **_found_out(learner),
        **found.more,
    )


def workers_of(config: RunConfig) -> Where:
    """Returns where the plans of a run are evaluated; its threads are those of this process."""
    return Where(config.workers, config.evaluation_timeout, torch.get_num_threads(), config.ray)


def _keep_known(task: Task, learner: Learner) -> None:
    """Lets a search keep what the learner knows of single choices in the folder, for a resume."""
    given = task.folder.given
    if given is not None and given.learner is not None:
        return  # the options of the run do not say how it was prepared
    key = key_of(task.config, task.folder.facts, task.original, FREE)
    keep_in(learner, StoredCurves(task.folder / CURVES, key, learner.decisions))
    keep_levels(learner, task.folder / LEVELS, key)


def _found_out(learner: Learner) -> dict[str, Any]:
    """Returns what the preparation has found out about network and data, for later stages."""
    told = [note for note in learner.notes if note not in learner.cautions]
    notes = {"notes": told} if told else {}
    if not learner.cautions:
        return notes
    return {
        **notes,
        "keeps_statistics": learner.keeps_statistics,
        "cautions": list(learner.cautions),
    }


def _images_per_trial(task: Task) -> int | None:
    """Validation images that a candidate is evaluated on, None where they are not counted."""
    count = getattr(task.data.validation, "n_images", None)
    return None if count is None else min(int(count), task.config.n_validation)


@dataclass(frozen=True)
class _Found:
    """What a search ends with; seconds are those of all processes that it took.

    ``budget`` has the bounds as shares; ``cut`` are the network of the plan and the units that
    stay, where the learner does not make it from the original network; ``more`` are further
    results of the stage.
    """

    plan: CompressionPlan
    reward: float
    best: Outcome
    uniform: Outcome
    budget: Budget
    n_trials: int
    prepare_seconds: float
    seconds: float
    cpu_seconds: float
    cut: tuple[nn.Module, Mapping[str, Tensor]] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def _search(task: Task, learner: Learner, service: Evaluations, wall: float, cpu: float) -> _Found:
    folder, config = task.folder, task.config
    further = task.problem.further if config.has_further_costs else None
    env = make_env(config, learner, costs=further, evaluations=service)
    folder.measure_by(env.metric)
    searched = config.spec.decides and env.decisions
    fixed = None if searched else _only_plan(config, learner, env)
    recorder = TrialRecorder(folder / "trials.jsonl", env.cost, env.metric)
    for trial in recorder.known:
        _remember(env, trial)
    prepare_wall, prepare_cpu = time.perf_counter() - wall, time.process_time() - cpu
    more: dict[str, Any] = {}
    if config.max_drop is not None:
        plan, reward, more = _plan_within_drop(task, learner, env, recorder)
    elif fixed is None:
        plan, reward = _plan_of_agent(task, env, recorder)
    else:
        plan, reward = fixed, _record(fixed, env, recorder)
    # Seconds of a resumed search are those of its trials, whichever process evaluated them.
    finish_wall, finish_cpu = recorder.since_last()
    trials = recorder.trials
    return _Found(
        plan=plan,
        reward=reward,
        best=env.evaluate(plan),
        uniform=_uniform(env, plan) if fixed is None else env.evaluate(fixed),
        budget=env.budget,
        n_trials=len(trials),
        prepare_seconds=prepare_wall,
        seconds=prepare_wall + sum(t.seconds for t in trials) + finish_wall,
        cpu_seconds=prepare_cpu + sum(t.cpu_seconds for t in trials) + finish_cpu,
        more=more | (staged_facts(trials) if config.staged else {}),
    )


def _remember(env: CompressionEnv, trial: RecordedTrial) -> None:
    plan = CompressionPlan(trial.plan)
    if trial.measured is None:
        env.remember(plan, trial.score, trial.failure)
    else:
        env.scores.add(Evaluation(env.canonical(plan), trial.score, measured=trial.measured))


def _plan_of_agent(
    task: Task, env: CompressionEnv, recorder: TrialRecorder
) -> tuple[CompressionPlan, float]:
    """Returns what the agent found, and its reward."""
    folder, config = task.folder, task.config
    with _logged(recorder, folder) as logger:
        result = task.agent.search(
            env,
            config.evaluations,
            config.seed,
            warm_start=warm_start_of(folder, env.cost),
            on_trial=until(recorder, config.time_limit),
            logger=logger,
            progress=task.progress,
            parallel=config.parallel or 1,
        )
    return result.plan, result.reward


def _plan_within_drop(
    task: Task, learner: Learner, env: CompressionEnv, recorder: TrialRecorder
) -> tuple[CompressionPlan, float, dict[str, Any]]:
    """Returns the cheapest plan within ``--max-drop``, its reward, and facts on the search."""
    from amc_compress.stages.floor import search_for_floor

    with _logged(recorder, task.folder) as logger:
        found = search_for_floor(
            task,
            learner,
            env,
            until(recorder, task.config.time_limit),
            logger,
            warm_start_of(task.folder, env.cost),
        )
    return found.plan, env.evaluate(found.plan).reward, {"goal": found.facts}


def _uniform(env: CompressionEnv, plan: CompressionPlan) -> Outcome:
    """Evaluates the uniform plan; where costs are free, one that costs as much as the plan."""
    bounds = env.budget.bounds
    if any(upper < 1.0 for _, upper in bounds.values()):
        return env.evaluate(env.uniform_plan())
    ratio = env.cost_ratio(plan)
    env.set_budget(Budget(**{name: (0.0, min(1.0, ratio[name])) for name in bounds}))
    uniform = env.evaluate(env.uniform_plan())
    env.set_budget(Budget(**bounds))
    return uniform


def until(recorder: TrialRecorder, limit: float | None) -> OnTrial:
    """Returns what records trials, and ends the search once they have taken too long.

    What counts are the seconds on record, so that a search that was interrupted ends where it would
    have ended. One that has no plan within the budget yet goes on until it has.

    Args:
        recorder: Of the trials.
        limit: Seconds; None for none.
    """

    def on_trial(trial: Trial) -> None:
        recorder(trial)
        is_late = limit is not None and recorder.seconds >= limit
        if is_late and any(known.within_budget for known in recorder.recorded):
            raise SearchStopped

    return on_trial


def _only_plan(config: RunConfig, learner: Learner, env: CompressionEnv) -> CompressionPlan:
    """Returns the plan where no agent decides.

    Raises:
        InfeasibleBudgetError: If it breaks the budget.
    """
    plan = config.spec.only_plan(learner, env.budget)
    ratio = env.cost_ratio(plan)
    if not env.budget.is_met(ratio):
        found = ", ".join(f"{name} {ratio[name]:.4f}" for name in env.budget.bounds)
        raise InfeasibleBudgetError(
            f"The rule comes to {found}, and that breaks {env.budget!r}; let an agent meet the "
            f"budget: --protocol searched."
        )
    return plan


def _record(plan: CompressionPlan, env: CompressionEnv, recorder: TrialRecorder) -> float:
    """Evaluates a plan that no agent chose; returns its reward."""
    recorder.restart_clock()
    done = env.evaluate(plan)
    seconds, _ = recorder.since_last()
    recorder(Trial(0, plan, done.score, done.reward, done.cost_ratio, seconds, "fixed"))
    return done.reward


@contextlib.contextmanager
def _logged(recorder: TrialRecorder, folder: RunFolder) -> Iterator[EpisodeLogger]:
    """Writes a search to TensorBoard.

    One whose agent (or reward, or cost) failed can be resumed with other code.
    """
    from amc_compress.agents.logging import EpisodeLogger

    events = folder / "tensorboard" / "search"
    shutil.rmtree(events, ignore_errors=True)  # a replay writes all events again
    recorder.restart_clock()
    try:
        with EpisodeLogger(events) as logger:
            yield logger
    except (Exception, SystemExit) as error:
        if place_of(error) is not None:
            recorder.set_aside()
            folder.fail_search()
        raise


def _search_in_stages(task: Task, learner: Learner, wall: float, cpu: float) -> _Found:
    from amc_compress.stages.progressive import TRIALS, progressive_compression

    folder, config = task.folder, task.config
    prepare_wall, prepare_cpu = time.perf_counter() - wall, time.process_time() - cpu
    stages = folder / "stages"
    result = progressive_compression(
        task.channel_learner,
        task.original,
        task.data.train,
        config.budget,
        stages=config.stages or config.progressive,
        agent=task.agent,
        episodes=config.evaluations,
        seed=config.seed,
        action=config.action,
        reward=config.reward,
        epochs_between=config.stage_epochs,
        config=config.spec.training_config(),
        teacher=task.teacher,
        folder=stages,
        progress=task.progress,
        parallel=config.parallel or 1,
        where=workers_of(config),
    )
    last = stages / str(len(result.stages))
    write_atomic(folder / "trials.jsonl", (last / TRIALS).read_bytes())
    for place in stages.iterdir():
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
    facts = result.stages
    return _Found(
        plan=result.plan,
        reward=result.best.reward,
        best=result.best,
        uniform=result.uniform,
        budget=CompressionEnv(learner, config.budget).budget,
        n_trials=facts[-1].n_trials,
        prepare_seconds=prepare_wall,
        seconds=prepare_wall + sum(stage.seconds for stage in facts),
        # Per episode of all stages, although the trials on record are those of the last one.
        cpu_seconds=(prepare_cpu + sum(stage.cpu_seconds for stage in facts))
        * (facts[-1].n_trials / sum(stage.n_trials for stage in facts)),
        cut=(result.network, result.kept),
        more={"stages": [asdict(stage) for stage in facts]},
    )


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {
        "score": outcome.score,
        "reward": outcome.reward,
        "cost_ratio": outcome.cost_ratio,
    }

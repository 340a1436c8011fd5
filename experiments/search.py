"""Stage ``search``: an agent looks for the plan; every episode is on disk when the next begins."""

from __future__ import annotations

import shutil
import time
from typing import Any

from amc_env import CompressionEnv, CompressionPlan
from experiments.context import Task, use_threads
from experiments.networks import save_network
from experiments.trials import TrialRecorder


def run_search(task: Task) -> None:
    """Writes ``plan.json``, ``trials.jsonl`` and ``pruned.safetensors``.

    A search that was interrupted is replayed with its recorded judgements, to the same result.
    """
    from agents import make_agent
    from agents.logging import EpisodeLogger

    folder, config = task.folder, task.config
    if folder.is_done("search"):
        return
    folder.start("search")
    use_threads(config, folder.facts, training=False)
    wall, cpu = time.perf_counter(), time.process_time()
    learner = task.learner
    env = CompressionEnv(learner, config.budget, action=config.reading, reward=config.reward)
    recorder = TrialRecorder(folder / "trials.jsonl", lambda plan: cost_of(env, plan))
    for trial in recorder.recorded:
        env.remember(CompressionPlan(trial.plan), trial.accuracy)
    prepare_wall, prepare_cpu = time.perf_counter() - wall, time.process_time() - cpu

    events = folder / "tensorboard" / "search"
    shutil.rmtree(events, ignore_errors=True)  # a replay writes all events again
    recorder.restart_clock()
    with EpisodeLogger(events) as logger:
        result = make_agent(config.agent).search(
            env,
            config.episodes,
            config.seed,
            on_trial=recorder,
            logger=logger,
            progress=task.progress,
        )
    # Seconds of a resumed search are those of its trials, whichever process judged them.
    finish_wall, finish_cpu = recorder.since_last()
    trials = recorder.trials
    wall = prepare_wall + sum(t.seconds for t in trials) + finish_wall
    cpu = prepare_cpu + sum(t.cpu_seconds for t in trials) + finish_cpu

    save_network(
        learner.compress(result.plan),
        folder / "pruned.safetensors",
        plan=result.plan,
        kept=learner.kept_units(result.plan),
    )
    folder.write_plan(result.plan)
    folder.finish(
        "search",
        seconds=round(wall, 3),
        prepare_seconds=round(prepare_wall, 3),
        cpu_seconds_per_episode=round(cpu / len(trials), 5),
        n_trials=len(trials),
        original_accuracy=learner.original_accuracy,
        best=_outcome(env, result.plan),
        uniform=_outcome(env, env.uniform_plan()),
        reward=result.reward,
    )


def cost_of(env: CompressionEnv, plan: CompressionPlan) -> dict[str, float]:
    """Returns the absolute costs of a complete plan."""
    values = plan.values_for(env.decisions)
    return {name: cost(values) for name, cost in env.costs.items()}


def _outcome(env: CompressionEnv, plan: CompressionPlan) -> dict[str, Any]:
    outcome = env.evaluate(plan)
    return {
        "accuracy": outcome.accuracy,
        "reward": outcome.reward,
        "cost_ratio": outcome.cost_ratio,
    }

"""Agents and DDPG's ingredients side by side on small compression problems.

A score of 0 is the uniform plan, 1 the best plan that any run here or a long local search found;
negative is worse than uniform. Examples::

    python experiments/benchmarks/agents_synthetic.py --table agents
    python experiments/benchmarks/agents_synthetic.py --table ablation --instances 3 4 5
    python experiments/benchmarks/agents_synthetic.py --table readings --episodes 60
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import amc_env
from agents import make_agent

ABLATION: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "broadcast reward (AMC) instead of Monte-Carlo": {"credit": "broadcast"},
    "warm-up U(0, 1) instead of around uniform": {"warmup": "random"},
    "one learning rate, 1e-3": {"actor_learning_rate": 1e-3},
}


@dataclass(frozen=True)
class Job:
    """One search."""

    row: str
    agent: str
    options: tuple[tuple[str, Any], ...]
    env: str
    env_options: tuple[tuple[str, Any], ...]
    episodes: int
    seed: int


@dataclass(frozen=True)
class Run:
    """What came of it: rewards in order of the trials, and processor seconds."""

    job: Job
    uniform: float
    rewards: tuple[float, ...]
    cpu_seconds: float

    @property
    def problem(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """The problem without the reading, which changes the way but not the goal."""
        return self.job.env, tuple(x for x in self.job.env_options if x[0] != "action")

    def best(self, count: int) -> float:
        """Best reward of the first ``count`` trials."""
        return max(self.rewards[:count])


def execute(job: Job) -> Run:
    """Runs one search on one thread."""
    torch.set_num_threads(1)
    env = gym.make(f"amc_env:{job.env}", disable_env_checker=True, **dict(job.env_options))
    bare = env.unwrapped
    assert isinstance(bare, amc_env.CompressionEnv)  # noqa: S101
    uniform = bare.evaluate(bare.uniform_plan()).reward
    agent = make_agent(job.agent, rejudge=0, **dict(job.options))
    result = agent.search(env, job.episodes, job.seed)
    rewards = tuple(trial.reward for trial in result.trials)
    return Run(job, uniform, rewards, result.cpu_seconds)


def rows_of(table: str) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Returns ``(label, agent, agent options, environment options)`` of a table."""
    if table == "agents":
        return [(name, name, {}, {}) for name in ("uniform", "random", "local", "ddpg")]
    if table == "ablation":
        return [(label, "ddpg", options, {}) for label, options in ABLATION.items()]
    return [
        (f"{agent}, {reading}", agent, {}, {"action": reading})
        for agent in ("random", "ddpg")
        for reading in ("absolute", "interval", "centred")
    ]


def problems(arguments: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Returns environment ids with their options."""
    budget = {"budget": arguments.budget} if arguments.budget else {}
    if arguments.env == "amc/synthetic-v0":
        return [(arguments.env, {"seed": i} | budget) for i in arguments.instances]
    return [(arguments.env, budget)]


def run_all(jobs: list[Job], workers: int) -> list[Run]:
    """Runs the jobs, in this process or in several."""
    if workers == 1:
        return [execute(job) for job in jobs]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(execute, jobs))


def print_table(runs: list[Run], marks: list[int]) -> None:
    """Prints one Markdown row per label: mean and standard deviation of the scores."""
    best_known: dict[Any, float] = {}
    for run in runs:
        best_known[run.problem] = max(best_known.get(run.problem, -np.inf), max(run.rewards))

    def score(run: Run, reward: float) -> float:
        room = best_known[run.problem] - run.uniform
        return (reward - run.uniform) / room if room > 0 else 0.0

    print("| | " + " | ".join(f"best@{m}" for m in marks) + " | last 10 | CPU s/episode | n |")
    print("|---|" + "---|" * (len(marks) + 3))
    for label in dict.fromkeys(run.job.row for run in runs):
        mine = [run for run in runs if run.job.row == label and run.job.row != "_reference"]
        if not mine:
            continue
        cells = []
        for mark in marks:
            scores = [score(run, run.best(mark)) for run in mine]
            cells.append(f"{np.mean(scores):.2f} ± {np.std(scores):.2f}")
        tail = np.mean([score(run, float(np.mean(run.rewards[-10:]))) for run in mine])
        cost = np.mean([run.cpu_seconds / len(run.rewards) for run in mine])
        print(f"| {label} | {' | '.join(cells)} | {tail:.2f} | {cost:.3f} | {len(mine)} |")


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", choices=["agents", "ablation", "readings"], default="agents")
    parser.add_argument("--env", default="amc/synthetic-v0")
    parser.add_argument("--instances", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--budget", default="")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    start = time.perf_counter()
    jobs = []
    for env, options in problems(arguments):
        reference = tuple(options.items())
        jobs.append(Job("_reference", "local", (), env, reference, 5 * arguments.episodes, 99))
        for label, agent, agent_options, extra in rows_of(arguments.table):
            for seed in range(arguments.seeds):
                settings = tuple((options | extra).items())
                jobs.append(
                    Job(label, agent, tuple(agent_options.items()), env, settings,
                        arguments.episodes, seed)
                )  # fmt: skip
    marks = [m for m in (25, 50, 100, 200) if m <= arguments.episodes]
    print_table(run_all(jobs, arguments.workers), marks or [arguments.episodes])
    print(f"\n{len(jobs)} searches, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

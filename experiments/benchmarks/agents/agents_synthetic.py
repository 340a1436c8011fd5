r"""Agents and action mappings side by side on small compression problems.

A score of 0 is the uniform plan, 1 the best plan that any run here or a long local search found;
negative is worse than uniform. What each part of DDPG's recipe is worth is measured by
``experiments/recipes/ddpg_ablation.sh``. Examples::

    python -m amc_compress.benchmarks.agents.agents_synthetic --table agents
    python -m amc_compress.benchmarks.agents.agents_synthetic --table mappings --episodes 60
    python -m amc_compress.benchmarks.agents.agents_synthetic --table parallel --parallel 1 4 16 \
        --env amc/digits-channels-recorded-v0 --agents local tpe --seeds 20

The last one shows what parallel evaluations cost: the score of equally many evaluations, fewer of
which were known when each was proposed, and the difference to one at a time, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from stable_baselines3 import DDPG as SB3DDPG
from stable_baselines3.common.noise import NormalActionNoise

import amc_env
from amc_compress.agents import AGENTS, Agent, Search, make_agent
from amc_compress.benchmarks.bench import append_rows, read_rows, spread
from amc_env import CompressionPlan

_REFERENCE = "long local search"
_IN_PARALLEL = (
    "ddpg", "ddpg-one-shot", "tpe", "gp", "cmaes", "nsga2", "evolution", "local", "random"
)  # fmt: skip


class PlainSB3(Agent):
    """SB3's DDPG with every default, or with the noise its documentation shows."""

    name = "plain-sb3"

    def __init__(self, *, noise: float = 0.0, **_: Any) -> None:
        super().__init__(finalists=0)
        self.noise = noise

    def run(self, search: Search) -> None:
        """Plays the episodes through SB3 and records them."""
        noise = NormalActionNoise(np.zeros(1), np.full(1, self.noise)) if self.noise else None
        model = SB3DDPG("MlpPolicy", _Recording(search), action_noise=noise, seed=search.seed)
        model.learn(search.episodes * search.env.n_decisions)


class _Recording(gym.Wrapper[Any, Any, Any, Any]):
    """Notes every finished episode."""

    def __init__(self, search: Search) -> None:
        super().__init__(search.env)
        self._search = search

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Passes the action on unchanged."""
        step = super().step(action)
        if step[2]:
            plan = CompressionPlan(step[4]["plan"])
            self._search.record(self._search.env.evaluate(plan), "sb3")
        return step


AGENTS["plain-sb3"] = PlainSB3


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
    parallel: int = 1


@dataclass(frozen=True)
class Run:
    """What came of it: rewards in order of the trials, and processor seconds."""

    job: Job
    uniform: float
    rewards: tuple[float, ...]
    cpu_seconds: float

    @property
    def problem(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """The problem without the action mapping, which changes the way but not the goal."""
        return self.job.env, tuple(x for x in self.job.env_options if x[0] != "action")

    def best(self, count: int) -> float:
        """Best reward of the first ``count`` trials."""
        return max(self.rewards[:count])


@cache
def environment(env: str, options: tuple[tuple[str, Any], ...]) -> amc_env.CompressionEnv:
    """Makes an environment once per process, so that its runs share what is evaluated."""
    bare = gym.make(f"amc_env:{env}", disable_env_checker=True, **dict(options)).unwrapped
    assert isinstance(bare, amc_env.CompressionEnv)  # noqa: S101
    return bare


def execute(job: Job) -> Run:
    """Runs one search on one thread."""
    torch.set_num_threads(1)
    bare = environment(job.env, job.env_options)
    uniform = bare.evaluate(bare.uniform_plan()).reward
    agent = make_agent(job.agent, finalists=0, **dict(job.options))
    result = agent.search(bare, job.episodes, job.seed, parallel=job.parallel)
    rewards = tuple(trial.reward for trial in result.trials)
    return Run(job, uniform, rewards, result.cpu_seconds)


def rows_of(table: str, agents: list[str]) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Returns ``(label, agent, agent options, environment options)`` of a table."""
    if table == "parallel":
        return [(name, name, {}, {}) for name in agents]
    if table == "agents":
        names = ("uniform", "random", "local", "ddpg", "ddpg-one-shot")
        return [
            *((name, name, {}, {}) for name in names),
            ("SB3's DDPG as it comes", "plain-sb3", {}, {}),
            ("SB3's DDPG with NormalActionNoise(0.1)", "plain-sb3", {"noise": 0.1}, {}),
        ]
    return [  # what "random" means depends on the action mapping, what "ddpg" starts from too
        (f"{agent}, {action_mapping}", agent, {}, {"action": action_mapping})
        for agent in ("random", "ddpg")
        for action_mapping in ("absolute", "interval", "centred")
    ]


def problems(arguments: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Returns environment ids with their options."""
    budget = {"budget": arguments.budget} if arguments.budget else {}
    if arguments.env == "amc/synthetic-v0":
        size = {"n_layers": arguments.layers}
        return [(arguments.env, {"seed": i} | size | budget) for i in arguments.instances]
    return [(arguments.env, budget)]


def run_all(jobs: list[Job], workers: int, out: Path | None) -> list[Run]:
    """Runs the jobs, in this process or in several; those already in the file are read from it."""
    done = _read(out)
    missing = [job for job in jobs if _key(job) not in done]
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    for run in pool.map(execute, missing) if pool else map(execute, missing):
        done[_key(run.job)] = run
        append_rows(out, [asdict(run)])
    if pool:
        pool.shutdown()
    return [replace(done[_key(job)], job=job) for job in jobs]


def _key(job: Job) -> str:
    """A job as text, the same before and after the file."""
    return json.dumps(asdict(job) | {"row": ""})


def _read(out: Path | None) -> dict[str, Run]:
    runs = {}
    for row in read_rows(out):
        facts = row.pop("job")
        for name in ("options", "env_options"):
            facts[name] = tuple((key, value) for key, value in facts[name])
        run = Run(job=Job(**facts), **{**row, "rewards": tuple(row["rewards"])})
        runs[_key(run.job)] = run
    return runs


def scores_of(runs: list[Run]) -> Callable[[Run, float], float]:
    """Returns what makes a score of a reward: 0 is the uniform plan, 1 the best plan known."""
    best_known: dict[Any, float] = {}
    for run in runs:
        best_known[run.problem] = max(best_known.get(run.problem, -np.inf), max(run.rewards))

    def score(run: Run, reward: float) -> float:
        room = best_known[run.problem] - run.uniform
        return (reward - run.uniform) / room if room > 0 else 0.0

    return score


def print_parallel(runs: list[Run], marks: list[int]) -> None:
    """Prints a row per agent and number of plans at a time, with the difference to one at a time.

    Differences are paired: of the same seed and problem; with the 95% interval of their mean.
    """
    score = scores_of(runs)
    heads = [*(f"best@{m}" for m in marks), *(f"cost@{m}" for m in marks), "CPU s/evaluation", "n"]
    print("| agent | at a time | " + " | ".join(heads) + " |")
    print("|---|" + "--:|" * (len(heads) + 1))
    rows: dict[tuple[str, int], list[Run]] = {(run.job.row, run.job.parallel): [] for run in runs}
    for run in runs:
        rows[run.job.row, run.job.parallel].append(run)
    for (row, parallel), mine in rows.items():
        if row == _REFERENCE:
            continue
        serial = {(run.problem, run.job.seed): run for run in rows.get((row, 1), [])}
        means, costs = [], []
        for mark in marks:
            found = [score(run, run.best(mark)) for run in mine]
            means.append(f"{np.mean(found):.3f}")
            pairs = [(run, serial.get((run.problem, run.job.seed))) for run in mine]
            lost = [score(one, one.best(mark)) - score(run, run.best(mark))
                    for run, one in pairs if one is not None]  # fmt: skip
            costs.append("" if parallel == 1 else _interval(lost))
        cpu = np.mean([run.cpu_seconds / len(run.rewards) for run in mine])
        cells = [row, str(parallel), *means, *costs, f"{cpu:.3f}", str(len(mine))]
        print("| " + " | ".join(cells) + " |")


def _interval(values: list[float]) -> str:
    """The mean and half of its 95% interval, by Student's t."""
    mean, n = np.mean(values), len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return f"{mean:+.3f} ± {half:.3f}"


def print_table(runs: list[Run], marks: list[int]) -> None:
    """Prints one Markdown row per label: mean and sample standard deviation of the scores."""
    score = scores_of(runs)
    print(
        "| | "
        + " | ".join(f"best@{m}" for m in marks)
        + " | best reward | last 10 | CPU s/episode | n |"
    )
    print("|---|" + "---|" * (len(marks) + 4))
    for label in dict.fromkeys(run.job.row for run in runs):
        if label == _REFERENCE:
            continue
        mine = [run for run in runs if run.job.row == label]
        cells = []
        for mark in marks:
            cells.append(spread([score(run, run.best(mark)) for run in mine], 2))
        cells.append(spread([run.best(marks[-1]) for run in mine], 4))
        tail = np.mean([score(run, float(np.mean(run.rewards[-10:]))) for run in mine])
        cost = np.mean([run.cpu_seconds / len(run.rewards) for run in mine])
        print(f"| {label} | {' | '.join(cells)} | {tail:.2f} | {cost:.3f} | {len(mine)} |")


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", choices=["agents", "mappings", "parallel"], default="agents")
    parser.add_argument("--env", default="amc/synthetic-v0")
    parser.add_argument("--instances", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--budget", default="")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--agents", nargs="+", default=list(_IN_PARALLEL), help="of --table parallel"
    )
    parser.add_argument(
        "--parallel", type=int, nargs="+", default=[1], help="plans that are under way at a time"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="rows are kept here and read back")
    arguments = parser.parse_args()
    start = time.perf_counter()
    jobs = [
        Job(_REFERENCE, "local", (), env, tuple(options.items()), 4 * arguments.episodes, 99)
        for env, options in problems(arguments)
    ]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for seed in seeds:  # seed by seed, so that a broken-off table is balanced
        for env, options in problems(arguments):
            jobs += [
                Job(label, agent, tuple(agent_options.items()), env,
                    tuple((options | extra).items()), arguments.episodes, seed, parallel)
                for label, agent, agent_options, extra in rows_of(arguments.table, arguments.agents)
                for parallel in arguments.parallel
            ]  # fmt: skip
    marks = [m for m in (25, 50, 100, 200) if m <= arguments.episodes]
    runs = run_all(jobs, arguments.workers, arguments.out)
    show = print_parallel if arguments.table == "parallel" else print_table
    show(runs, marks or [arguments.episodes])
    print(f"\n{len(jobs)} searches, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

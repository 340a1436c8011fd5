"""Records the digits, and tries to exploit the record: are its winners worth what it says?

Judgements are kept in a file, so an interrupted run continues where it stopped; equal judgements
give an equal record, byte for byte. The first run takes some ten processor minutes.

    python -m experiments.benchmarks.recorded_digits --store runs/digits.jsonl \
        --out amc_env/recorded_tasks/digits-channels.npz
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from agents import make_agent
from amc_env import CompressionEnv, CompressionPlan
from amc_env.recorded import make_recorded
from amc_env.recorded_file import RecordedTask, read_recorded, write_recorded
from experiments.comparison.judgements import JudgementStore, TaskFingerprint
from experiments.comparison.judging import Choices, judge_plans, origin_of
from experiments.comparison.recording import record
from experiments.comparison.refinement import search_surrogate
from experiments.files import write_atomic
from experiments.tasks import DIGITS_WEIGHTS, make_digits_channels

NAME = "digits-channels"
BUDGET = "macs=0.3"

REAL_SEEDS, REAL_EPISODES = range(5), 200
"""Local searches on the network itself; the surrogate is measured on their trials."""

ATTACKS: tuple[tuple[str, int, range], ...] = (
    ("local", 3000, range(20_000, 20_005)),
    ("random", 3000, range(20_000, 20_003)),
    ("ddpg", 150, range(20_000, 20_003)),
)
"""Agent, episodes, seeds of searches on the record whose best plans are judged for real."""

ATTACK_PLANS = 5
POLICY_SEEDS, POLICY_EPISODES = range(20), 300


def local_trials(env: CompressionEnv, store: JudgementStore) -> dict[Choices, float]:
    """Searches on the network, and returns every plan that was tried."""
    for choices, judgement in store:
        env.remember(CompressionPlan.from_choices(env.decisions, choices), judgement.accuracy)
    tried: dict[Choices, float] = {}
    for seed in REAL_SEEDS:
        before = time.process_time()
        agent = make_agent("local", rejudge=0)
        for trial in agent.search(env, REAL_EPISODES, seed).trials:
            tried[trial.plan.choices_for(env.decisions)] = trial.accuracy
        new = [plan for plan in tried if store.get(plan) is None]
        seconds = (time.process_time() - before) / max(1, len(new))
        for plan in new:
            store.add(plan, tried[plan], seconds)
    return tried


def attack(task: RecordedTask, env: CompressionEnv, store: JudgementStore) -> None:
    """Prints what the best new plans of long searches are predicted to be, and what they are."""
    recorded = {tuple(int(i) for i in plan) for plan in task.plans}
    print("| search | new plans | predicted | judged | largest excess | RMSE |")
    print("|---|---|---|---|---|---|")
    for agent, episodes, seeds in ATTACKS:
        predicted: dict[Choices, float] = {}
        for seed in seeds:
            found = search_surrogate(task, BUDGET, agent, episodes, seed)
            pairs = zip(found.plans, found.predicted, strict=True)
            new = [(plan, value) for plan, value in pairs if plan not in recorded]
            predicted |= dict(new[:ATTACK_PLANS])
        judged = np.array(list(judge_plans(env, predicted, store).values()))
        error = np.array(list(predicted.values())) - judged
        print(
            f"| {agent}, {episodes} episodes, {len(seeds)} seeds | {len(judged)} "
            f"| {np.mean(list(predicted.values())):.4f} | {judged.mean():.4f} | {error.max():+.4f} "
            f"| {np.sqrt(np.mean(error**2)):.4f} |"
        )


def policies(path: Path) -> None:
    """Prints what agents reach on the record."""
    for agent in ("random", "local"):
        start = time.process_time()
        rewards = [
            make_agent(agent).search(make_recorded(str(path)), POLICY_EPISODES, seed).reward
            for seed in POLICY_SEEDS
        ]
        seconds = (time.process_time() - start) / len(rewards)
        print(
            f"{agent}: {np.mean(rewards):.4f} +- {np.std(rewards, ddof=1):.4f} over "
            f"{len(rewards)} seeds, {seconds:.1f} processor seconds per search"
        )


def show(quality: Mapping[str, Any]) -> None:
    """Prints the figures of a record as tables."""
    print("| held out | plans | Spearman | RMSE | bias | top quarter: Spearman | RMSE | bias |")
    print("|---|---|---|---|---|---|---|---|")
    rows = {**quality["cross_validation"], **quality["searches"]}
    for name, row in rows.items():
        if name != "folds":
            every, top = (
                f"{row[part]['spearman']:.3f} | {row[part]['rmse']:.4f} | {row[part]['bias']:+.4f}"
                for part in ("all", "top")
            )
            print(f"| {name} | {row['all']['n']} | {every} | {top} |")
    print("| searches on the surrogate | winners | predicted | judged | best | RMSE |")
    print("|---|---|---|---|---|---|")
    rows = {f"round {i}": row for i, row in enumerate(quality["refinement"], start=1)}
    rows |= {"fresh ones": quality["winners"], "not recorded": quality["winners"]["unseen"]}
    for name, row in rows.items():
        if row:
            print(
                f"| {name} | {row['searches']} | {row['predicted']:.4f} | {row['judged']:.4f} "
                f"| {row['best_judged']:.4f} | {row['rmse']:.4f} |"
            )


def main(
    store: Annotated[Path, typer.Option(help="Judgements; made, or continued.")],
    out: Annotated[Path, typer.Option(help="The record.")],
) -> None:
    """Records the digits and prints how good the surrogate is."""
    torch.set_num_threads(1)
    env = make_digits_channels(budget=BUDGET)
    with as_file(files("experiments") / DIGITS_WEIGHTS) as weights:
        origin = origin_of(
            weights, model="digitsnet", data="digits", round_to=2, precision="fp32",
            proxy="reconstruction+recalibration", seed=0,
        )  # fmt: skip
    judgements = JudgementStore(store, TaskFingerprint.of(env, origin))
    trials = {"local": local_trials(env, judgements)}
    task = record(env, judgements, name=NAME, trials=trials, progress=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, write_recorded(task))
    print(f"{task.counts()}, {out.stat().st_size} bytes")
    show(task.quality)
    attack(read_recorded(out), env, judgements)
    policies(out)


if __name__ == "__main__":
    typer.run(main)

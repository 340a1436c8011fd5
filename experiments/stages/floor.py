"""The search of ``--max-drop``: the cheapest plan whose score drops no further than allowed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc_compress.agents.floors.cheapest import FloorResult, FloorSearch, Level
from amc_compress.agents.trials import OnTrial, Trial
from amc_compress.config.goals import floor_of
from amc_compress.learners.base import Learner
from amc_compress.learners.quantization.codebook.learner import set_mode
from amc_compress.runs.given import made_agent
from amc_compress.runs.task import Task
from amc_compress.stages.finetuning.stage import train_smaller, validation_score
from amc_env import CompressionEnv, CompressionPlan
from amc_env.files import JsonLines
from amc_env.validation.shapes import check_shape

if TYPE_CHECKING:
    from amc_compress.agents.logging import EpisodeLogger

LEVELS = "levels.jsonl"
"""Fine-tuned candidates of a run: plan, and validation score before and after."""

_FINETUNINGS, _TOLERANCE = 6, 0.05


@dataclass(frozen=True)
class FoundFloor:
    """What the search of ``--max-drop`` comes to.

    Args:
        plan: The cheapest within the drop.
        facts: For the state of the run: the least score, and the budgets that were tried.
    """

    plan: CompressionPlan
    facts: dict[str, Any]


def search_for_floor(
    task: Task,
    learner: Learner,
    env: CompressionEnv,
    on_trial: OnTrial,
    logger: EpisodeLogger,
    warm_start: Sequence[Trial],
) -> FoundFloor:
    """Searches for the cheapest plan within ``--max-drop``.

    Raises:
        InfeasibleBudgetError: If no plan within the budget drops so little.
    """
    config = task.config
    original, more = env.learner.original_score, dict[str, Any]()
    if config.max_drop_after == "finetune":
        original = validation_score(task, task.original)
        after = _finetuned(task, learner)
        more = {"levels": _FINETUNINGS, "tolerance": _TOLERANCE, "after": after}
    else:
        more["full_floor"] = floor_of(config.max_drop or "0", learner.original_full_score())
    given = task.folder.given
    agent = (given and given.agent) or config.agent
    floor = floor_of(config.max_drop or "0", original)
    found = FloorSearch(
        env,
        lambda: made_agent(agent),
        config.evaluations,
        config.seed,
        floor=floor,
        cost=config.minimize,
        warm_start=warm_start,
        on_trial=on_trial,
        logger=logger,
        progress=task.progress,
        parallel=config.parallel or 1,
        **more,
    ).run()
    shutil.rmtree(task.folder / "checkpoints" / "levels", ignore_errors=True)
    return FoundFloor(found.plan, _facts(found, floor, original))


def _facts(found: FloorResult, floor: float, original: float) -> dict[str, Any]:
    return {"floor": floor, "original": original, "levels": [_row(x) for x in found.levels]}


def _row(level: Level) -> dict[str, Any]:
    return {
        "budget": level.budget,
        "plan": dict(level.plan),
        "score": level.score,
        "final_score": level.final_score,
        "cost_ratio": dict(level.cost_ratio),
        "n_trials": level.n_trials,
        "kept": level.kept,
    }


def _finetuned(task: Task, learner: Learner) -> Callable[[CompressionPlan], float]:
    """Returns what fine-tunes a candidate and evaluates it; each plan once, resumed if killed."""
    folder, config = task.folder, task.config
    lines = JsonLines(
        folder / LEVELS, remedy="restore the file, or start the search again in a new folder"
    )
    known = {plan: score for plan, score in lines.rows(_level)}
    lines.mend()

    def after(plan: CompressionPlan) -> float:
        if plan in known:
            return known[plan]
        name = hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]
        network = learner.compress(plan)
        if config.spec.quantization == "codebook":
            set_mode(network, config.codebook_mode)
        before, score, seconds = train_smaller(
            task,
            network,
            config.spec.training_config(),
            folder / "checkpoints" / "levels" / name,
            f"levels/{name}",
        )
        row = {"plan": dict(plan), "before": before, "after": score, "seconds": round(seconds, 3)}
        lines.append(row)
        known[plan] = score
        return score

    return after


def _level(row: dict[str, Any]) -> tuple[CompressionPlan, float]:
    check_shape(
        row,
        {"plan": dict[str, float], "before": float | None, "after": float, "seconds": float},
    )
    return CompressionPlan(row["plan"]), float(row["after"])

"""The best plans of a search in a row, and the front of score against cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amc_compress.config.goals import drop_text
from amc_compress.config.run_config import RunConfig
from amc_compress.report.charts import Axis, Chart, Figure
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.storage.trials import RecordedTrial
from amc_env import CompressionPlan
from amc_env.scores.metric import Metric

MOST = 10
"""Plans that are listed."""


@dataclass(frozen=True)
class Entry:
    """One plan of the leaderboard.

    Args:
        episode: In which it was evaluated; None for one that a warm start knew.
        source: Who proposed it.
        score: As the search saw it.
        finetuned: Validation score after the fine-tuning; None where it is not known.
        costs: Shares of the original's, by the names of the table's columns.
        is_chosen: Whether it is the plan of the run.
    """

    episode: int | None
    source: str
    score: float
    finetuned: float | None
    costs: tuple[float, ...]
    is_chosen: bool


@dataclass(frozen=True)
class Leaderboard:
    """The table of the best plans.

    Args:
        note: How they are ordered.
        metric: What the scores are made from.
        costs: Names of the costs that have a column.
        entries: The best one first.
    """

    note: str
    metric: Metric
    costs: tuple[str, ...]
    entries: tuple[Entry, ...]


def leaderboard(folder: RunFolder, trials: Sequence[RecordedTrial]) -> Leaderboard:
    """Returns the best distinct plans within the budget; the chosen one is always among them.

    Args:
        folder: With a finished search.
        trials: Those within the budget, in their order.
    """
    config, search = folder.config, folder.results("search")
    chosen, names = folder.read_plan(), config.shown_costs
    tuned = _finetuned(folder, chosen)
    first: dict[CompressionPlan, RecordedTrial] = {}
    for trial in trials:
        first.setdefault(CompressionPlan(trial.plan), trial)
    ordered = sorted(first, key=lambda plan: _rank(config, search, first[plan]))
    listed = ordered[:MOST]
    if chosen in first and chosen not in listed:
        listed[-1] = chosen
    entries = [
        Entry(
            first[plan].episode,
            first[plan].source,
            first[plan].score,
            tuned.get(plan),
            tuple(first[plan].cost_ratio[name] for name in names),
            plan == chosen,
        )
        for plan in listed
    ]
    if chosen not in first:  # the warm start knew it
        best = search["best"]
        costs = tuple(best["cost_ratio"][name] for name in names)
        known = Entry(None, "warm start", best["score"], tuned.get(chosen), costs, True)
        entries = [known, *entries][:MOST]
    note = f"{_note(config, len(first))} {_of_original(folder)}".strip()
    return Leaderboard(note, folder.metric, names, tuple(entries))


def _of_original(folder: RunFolder) -> str:
    """What the original has on the samples that the scores of the table are of."""
    metric, search = folder.metric, folder.results("search")
    if "original_score" not in search:
        return ""
    text = f"The original has {metric.text(search['original_score'])} on the samples of the search"
    if folder.is_done("finetune") and folder.results("finetune")["epochs"]:
        full = folder.results("finetune").get("validation_score_original")
        if full is not None:
            text += f" and {metric.text(full)} on all, which fine-tuned networks are evaluated on"
    return f"{text}."


def _rank(config: RunConfig, search: dict[str, object], trial: RecordedTrial) -> tuple[float, ...]:
    """The smaller, the better; of a search for a floor those below it come last."""
    if config.max_drop is None:
        return (-trial.reward, trial.episode)
    goal = search.get("goal")
    floor = goal["floor"] if isinstance(goal, dict) else 0.0
    if config.max_drop_after == "finetune" or trial.score >= floor:
        return (0.0, trial.cost_ratio[config.minimize], -trial.score)
    return (1.0, -trial.score)


def _note(config: RunConfig, count: int) -> str:
    order = "by reward" if config.reward not in ("accuracy", "score") else "by score"
    if config.max_drop is not None:
        order = f"those within the drop first, by {config.minimize}"
    return (
        f"The best {min(MOST, count)} of {count} different plans within the budget, {order}. The "
        f"score is that of the search, before fine-tuning, and after it where a plan was "
        f"fine-tuned; the search decides between the best few on all validation images. Costs are "
        f"shares of the original's."
    )


def _finetuned(folder: RunFolder, chosen: CompressionPlan) -> dict[CompressionPlan, float]:
    """Validation scores after fine-tuning, of the plans that were fine-tuned."""
    goal = folder.results("search").get("goal", {})
    tuned = {}
    if folder.config.max_drop_after == "finetune":
        tuned = {CompressionPlan(row["plan"]): row["final_score"] for row in goal.get("levels", ())}
    if folder.is_done("finetune") and folder.results("finetune")["epochs"]:
        tuned[chosen] = folder.results("finetune")["validation_score"]
    return tuned


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points that no other one beats: cost made small, score made large.

    Args:
        points: Cost and score.

    Returns:
        By rising cost, which is by rising score too.
    """
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def floor_curve(folder: RunFolder, trials: Sequence[RecordedTrial]) -> Figure:
    """Draws the cost of every plan that a search for a floor evaluated, and the cheapest so far.

    Args:
        folder: With a finished search of ``--max-drop``.
        trials: Those within the budget.
    """
    config, goal = folder.config, folder.results("search")["goal"]
    cost, floor = config.minimize, goal["floor"]
    places = [(float(t.episode), t.cost_ratio[cost]) for t in trials]
    kept = [config.max_drop_after == "search" and t.score >= floor for t in trials]
    chart = Chart(
        Axis(-0.5, max(places[-1][0] + 0.5, 1.0), "episode"),
        Axis.around([y for _, y in places], f"{cost}, share of the original", percent=True),
        f"{cost} of each of {len(trials)} plans, and the cheapest within the drop so far",
    )
    hints = [
        f"episode {t.episode} ({t.source}): {t.cost_ratio[cost]:.1%}, {folder.metric.said(t.score)}"
        for t in trials
    ]
    for css, wanted in (("dot first", False), ("dot", True)):
        chosen = [i for i, is_kept in enumerate(kept) if is_kept is wanted]
        chart.dots([places[i] for i in chosen], css, [hints[i] for i in chosen])
    steps: list[tuple[float, float]] = []
    for (episode, share), is_kept in zip(places, kept, strict=True):
        if is_kept:
            steps.append((episode, min(share, steps[-1][1] if steps else share)))
    if steps:
        chart.steps([*steps, (places[-1][0] + 0.5, steps[-1][1])], "best")
    least = folder.metric.text(floor)
    when = "fine-tuning" if config.max_drop_after == "finetune" else "the search"
    note = (
        f"The {cost} of every evaluated plan. Asked for was the cheapest whose "
        f"{folder.metric.title} after {when} is no worse than {least}, a drop of at most "
        f"{drop_text(config.max_drop or '0')}."
    )
    legend = [("#c3ccd7", "one plan", "round")]
    if steps:
        legend = [
            ("#1668b8", "cheapest within the drop", ""),
            ("#9cc4ea", "within the drop", "round"),
            ("#c3ccd7", "below it", "round"),
        ]
    return Figure(note, chart, legend)

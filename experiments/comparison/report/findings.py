"""Findings of a comparison, as sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from amc_compress.comparison.report.tables import interval, reward
from amc_compress.comparison.statistics.analysis import Analysis, Overall, TaskAnalysis
from amc_compress.comparison.statistics.differences import Difference
from amc_env.validation.sentences import counted, joined

_SAME = 1e-12


def overall_findings(analysis: Analysis) -> list[str]:
    """Returns sentences on all tasks together; empty if they have nothing in common."""
    overall = analysis.overall
    if overall is None:
        return []
    first, *others = overall.agents
    n_tasks = len(overall.matrices.tasks)
    best = overall.aggregates[first]["iqm"]
    sentence = (
        f"Over {n_tasks} task{'s' * (n_tasks != 1)} {first} scores highest: interquartile mean "
        f"{interval(best)}, where the uniform plan has 0 and the best plan found 1."
    )
    if not others:
        return [sentence]
    return [sentence + _meetings(overall, first, others)]


def task_findings(name: str, task: TaskAnalysis, reference: str | None = None) -> list[str]:
    """Returns sentences on one task: who won, and which differences are real.

    Args:
        name: Of the task.
        task: What is known about it.
        reference: The agent that others were compared with, if not every pair was.
    """
    best = _best(task)
    mean = task.final[best[0]].mean
    gain, metric = mean - task.facts.uniform_reward, task.facts.metric
    verb = "is" if len(best) == 1 else "are"
    sentence = f"On {name} {joined(best)} {verb} best: mean reward {reward(mean, metric)}"
    if abs(gain) <= _SAME * (1.0 if metric.is_accuracy else abs(task.facts.uniform_reward)):
        sentences = [f"{sentence}, that of the uniform plan."]
    else:
        where = "above" if gain > 0 else "below"
        sentences = [f"{sentence}, {reward(abs(gain), metric)} {where} the uniform plan."]
    if reference is not None:
        return [*sentences, *_against(task, reference, f"comparisons with {reference}")]
    return [*sentences, *_against(task, best[0], "pairs"), *_pairs(task)]


def failures(analysis: Analysis) -> list[str]:
    """Returns a sentence for every search that failed, and one that counts them."""
    failed = analysis.failures
    total = sum(len(group) for group in analysis.comparison.searches.values())
    if not failed:
        return [] if analysis.comparison.unopened else ["No search failed."]
    return [
        f"Failed, and counted as the uniform plan: {len(failed)} of "
        f"{counted(total, 'search', 'searches')}.",
        *(f"{s.agent} on {s.task}, seed {s.seed}: {s.error}" for s in failed),
    ]


def without_plan(analysis: Analysis) -> list[str]:
    """Returns a sentence for every agent whose searches ended without a plan in the budget."""
    found = []
    for (task, agent), searches in analysis.comparison.searches.items():
        count = sum(s.error is None and not s.trials for s in searches)
        if count:
            found.append(
                f"{agent} on {task}: {count} of {len(searches)} searches ended without having "
                f"evaluated a plan within the budget, and count as the uniform plan."
            )
    return found


def _meetings(overall: Overall, first: str, others: Sequence[str]) -> str:
    """Sentences on searches of the leader against those of another agent."""
    values = {agent: overall.improvements[first, agent] for agent in others}
    if all(v.low > 0.5 for v in values.values()):
        return " It is more likely than not to win against every other agent."
    unclear = [agent for agent, v in values.items() if v.low <= 0.5 <= v.high]
    lost = [agent for agent, v in values.items() if v.high < 0.5]
    unknown = [agent for agent, v in values.items() if math.isnan(v.low)]
    text = f" It is not shown to differ from {joined(unclear)}." if unclear else ""
    if lost:
        text += f" On a task drawn at random it mostly loses to {joined(lost)}."
    if unknown and len(unknown) < len(values):
        text += f" Whether it beats {joined(unknown)} is not known: too few seeds."
    return text


def _best(task: TaskAnalysis) -> list[str]:
    top = min(task.ranks.values())
    return [agent for agent in task.agents if task.ranks[agent] == top]


def _against(task: TaskAnalysis, agent: str, counted_pairs: str) -> list[str]:
    """Sentences on the differences between one agent and all others.

    Args:
        task: What is known about the task.
        agent: The one.
        counted_pairs: What Holm's correction counts: all differences of the task.
    """
    pairs = [d for d in task.differences if agent in (d.better, d.worse)]
    pairs.sort(key=lambda d: (task.ranks[d.better], task.ranks[d.worse]))
    known, unknown = ([d for d in pairs if d.is_known is wanted] for wanted in (True, False))
    if not known:
        return []
    number = sum(d.is_known for d in task.differences)
    together = f"all {number} {counted_pairs}" if number > 1 else ""
    sentences = []
    for word, side in (("better", "better"), ("worse", "worse")):
        real = [d for d in known if d.is_real and getattr(d, side) == agent]
        if real:
            held = _held(real, agent, together)
            sentences.append(f"{agent} is really {word} than {joined(_others(real, agent))}{held}.")
    unclear = [d for d in known if not d.is_real]
    if unclear:
        sentences.append(f"{agent} is not shown to differ from {joined(_others(unclear, agent))}.")
    if unknown:
        names = joined(_others(unknown, agent))
        sentences.append(f"Whether {agent} differs from {names} is not known: one seed only.")
    return sentences


def _held(real: Sequence[Difference], agent: str, together: str) -> str:
    if not together:  # one pair: nothing to correct
        return ""
    lost = [d for d in real if not d.holds_among_all]
    if not lost:
        return f", also when {together} are counted together (Holm)"
    if len(lost) == len(real):
        return f"; when {together} are counted together (Holm), none of this holds"
    return f"; when {together} are counted together (Holm), not than {joined(_others(lost, agent))}"


def _pairs(task: TaskAnalysis) -> list[str]:
    known = [d for d in task.differences if d.is_known]
    if not known:
        return []
    real = sum(d.is_real for d in known)
    held = sum(d.holds_among_all for d in known)
    return [
        f"Of {counted(len(known), 'pair')} of agents {real} really differ, {held} with Holm's "
        f"correction."
    ]


def _others(pairs: Sequence[Difference], agent: str) -> list[str]:
    return [d.worse if d.better == agent else d.better for d in pairs]

"""What a comparison found, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.comparison.analysis import Analysis, Overall, TaskAnalysis
from experiments.comparison.differences import Difference
from experiments.comparison.naming import counted
from experiments.comparison.tables import interval, reward

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
    unclear = [a for a in others if _is_unclear(overall, first, a)]
    if unclear:
        sentence += f" It is not told apart from {_and(unclear)}."
    elif best.low == best.low:  # not NaN: there are intervals
        sentence += " Whichever other agent it meets, it is more likely than not to win."
    return [sentence]


def task_findings(name: str, task: TaskAnalysis, reference: str | None = None) -> list[str]:
    """Returns sentences on one task: who won, and which differences are real.

    Args:
        name: Of the task.
        task: What is known about it.
        reference: The agent that others were compared with, if not every pair was.
    """
    best = _best(task)
    mean = task.final[best[0]].mean
    gain = mean - task.facts.uniform_reward
    verb = "is" if len(best) == 1 else "are"
    sentence = f"On {name} {_and(best)} {verb} best: mean reward {reward(mean)}"
    if abs(gain) < _SAME:
        sentences = [f"{sentence}, that of the uniform plan."]
    else:
        where = "above" if gain > 0 else "below"
        sentences = [f"{sentence}, {reward(abs(gain))} {where} the uniform plan."]
    if reference is not None:
        return [*sentences, *_against(task, reference)]
    return [*sentences, *_against(task, best[0]), *_pairs(task)]


def failures(analysis: Analysis) -> list[str]:
    """Returns a sentence for every search that failed, and one that counts them."""
    failed = analysis.failures
    total = sum(len(group) for group in analysis.comparison.searches.values())
    if not failed:
        return ["No search failed."]
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
                f"judged a plan within the budget, and count as the uniform plan."
            )
    return found


def _is_unclear(overall: Overall, first: str, second: str) -> bool:
    value = overall.improvements[first, second]
    return value.low <= 0.5 <= value.high


def _best(task: TaskAnalysis) -> list[str]:
    top = min(task.ranks.values())
    return [agent for agent in task.agents if task.ranks[agent] == top]


def _against(task: TaskAnalysis, agent: str) -> list[str]:
    """Sentences on the differences between one agent and all others."""
    pairs = [d for d in task.differences if agent in (d.better, d.worse)]
    pairs.sort(key=lambda d: (task.ranks[d.better], task.ranks[d.worse]))
    if not pairs or all(d.low != d.low for d in pairs):  # NaN: one seed each
        return []
    sentences = []
    for word, side in (("better", "better"), ("worse", "worse")):
        real = [d for d in pairs if d.is_real and getattr(d, side) == agent]
        if real:
            sentences.append(
                f"{agent} is really {word} than {_and(_others(real, agent))}{_held(real, agent)}."
            )
    unclear = [d for d in pairs if not d.is_real]
    if unclear:
        sentences.append(f"{agent} is not told apart from {_and(_others(unclear, agent))}.")
    return sentences


def _held(real: Sequence[Difference], agent: str) -> str:
    lost = [d for d in real if not d.holds_among_all]
    if not lost:
        return ", also when all pairs are counted together"
    if len(lost) == len(real):
        return "; when all pairs are counted together (Holm), none of this holds"
    return f"; when all pairs are counted together (Holm), not than {_and(_others(lost, agent))}"


def _pairs(task: TaskAnalysis) -> list[str]:
    known = [d for d in task.differences if d.low == d.low]
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


def _and(parts: Sequence[str]) -> str:
    """Joins as in ``"a, b and c"``."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)

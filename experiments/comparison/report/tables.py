"""Tables of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from amc_compress.comparison.records import FinalEvaluation, SearchRecord
from amc_compress.comparison.statistics.analysis import Analysis, Overall, TaskAnalysis
from amc_compress.comparison.statistics.differences import Difference
from amc_compress.comparison.statistics.scores import Sample
from amc_compress.comparison.statistics.statistics import Interval
from amc_env.scores.metric import Metric
from amc_env.validation.sentences import counted

NOTHING = "–"

TASK_COLUMNS = (
    "Best reward after so many evaluations: mean ± standard deviation over seeds. [k]: k searches "
    "count as the uniform plan, because they failed or had evaluated no plan within the budget by "
    "then. Own s / evaluation: processor seconds of the agent, without the evaluation. The last "
    "columns are of the winners, mean ± standard deviation over seeds: on the whole validation "
    "split, there after fine-tuning, and on the test set."
)
DIFFERENCE_COLUMNS = (
    "Differences of mean best rewards at the end. Real: the 95% interval excludes 0. Holds: it is "
    "real, and p stays under 0.05 when corrected for all pairs of agents of the task that are "
    "compared (Holm; with a reference, these are the pairs with it)."
)


@dataclass(frozen=True)
class Table:
    """A title, what its columns mean, and rows of text.

    Args:
        title: One line.
        note: One paragraph; may be empty.
        header: Names of the columns.
        rows: As many cells each.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Returns a heading, the table and its note."""
        lines = [
            f"### {self.title}",
            "",
            _markdown_row(self.header),
            "|" + "---|" * len(self.header),
            *(_markdown_row(row) for row in self.rows),
        ]
        return "\n".join([*lines, *(["", self.note] if self.note else [])]) + "\n"


def task_table(analysis: Analysis, name: str) -> Table:
    """Returns best rewards at marks, seconds and final evaluations of every agent on a task."""
    task = analysis.tasks[name]
    searches = {agent: analysis.comparison.searches[name, agent] for agent in task.agents}
    finals = [s.final for group in searches.values() for s in group if s.final is not None]
    columns: dict[str, Callable[[FinalEvaluation], float | None]] = {
        "validation": attrgetter("validation"),
        "fine-tuned": attrgetter("finetuned_validation"),
        "test": attrgetter("test"),
    }
    known = {
        title: value
        for title, value in columns.items()
        if any(value(final) is not None for final in finals)
    }
    rows = []
    for agent in task.agents:
        evaluated = [s.final for s in searches[agent] if s.final is not None and s.error is None]
        rows.append(
            (
                agent,
                str(len(searches[agent])),
                *(_sample(samples[agent], task) for samples in task.samples.values()),
                seconds_per_evaluation(searches[agent]),
                *(
                    _scores(task.facts.metric, [value(final) for final in evaluated])
                    for value in known.values()
                ),
            )
        )
    if not task.facts.metric.is_accuracy:
        known = {f"{title} {task.facts.metric.title}": value for title, value in known.items()}
    marks = [str(mark) for mark in task.samples]
    header = ("agent", "seeds", *marks, "own s / evaluation", *known)
    return Table(name, _task_note(task), header, tuple(rows))


def scores_table(overall: Overall) -> Table:
    """Returns the scores over all tasks."""
    marks = list(overall.at_marks)
    rows = []
    for agent in overall.agents:
        values = overall.aggregates[agent]
        cells = overall.matrices.imputed[agent]
        rows.append(
            (
                agent,
                interval(values["iqm"]),
                *(f"{overall.at_marks[mark][agent]:.2f}" for mark in marks),
                interval(values["median"]),
                interval(values["mean"]),
                interval(values["optimality_gap"]),
                str(cells) if cells else NOTHING,
            )
        )
    return Table(
        "Scores over all tasks",
        f"Tasks: {', '.join(overall.matrices.tasks)}. 0: the uniform plan, 1: the best plan that "
        f"any search found. IQM: mean of the middle half of all searches; median and mean: of the "
        f"tasks' means; gap: mean distance below 1. In brackets 95% intervals (bootstrap over "
        f"seeds within tasks). As uniform: searches that count as the uniform plan, because they "
        f"failed or never evaluated a plan within the budget.",
        (
            "agent", "IQM", *(f"IQM at {mark}" for mark in marks), "median", "mean", "gap",
            "as uniform",
        ),
        tuple(rows),
    )  # fmt: skip


def ranks_table(analysis: Analysis, overall: Overall) -> Table:
    """Returns ranks, wins and the statistic of Balaji & Allen."""
    rows = []
    for agent in sorted(overall.mean_ranks, key=lambda agent: overall.mean_ranks[agent]):
        wins = [w for (first, _), w in overall.wins.items() if first == agent]
        pairs = sum(w.pairs for w in wins)
        won = sum(w.won + w.tied / 2 for w in wins)
        scaled = overall.balaji_allen.get(agent, math.nan)
        rows.append(
            (
                agent,
                f"{overall.mean_ranks[agent]:.2f}",
                f"{overall.expected_ranks[agent]:.2f}",
                f"{won / pairs:.1%}" if pairs else NOTHING,
                _number(scaled, ".3f"),
                *(f"{analysis.tasks[task].ranks[agent]:g}" for task in overall.matrices.tasks),
            )
        )
    return Table(
        "Ranks",
        "Rank: of the mean reward on a task, 1 is best, averaged over tasks. Expected rank: if one "
        "search of every agent is drawn at random. Wins: share of the searches that beat another "
        "agent's with the same seed, over all others, ties half. Balaji & Allen: mean reward "
        "scaled to [0, 1] between the worst and the best search of a task.",
        ("agent", "rank", "expected rank", "wins", "Balaji & Allen", *overall.matrices.tasks),
        tuple(rows),
    )


def improvements_table(overall: Overall) -> Table:
    """Returns the probability that the row's agent beats the column's."""
    rows = tuple(
        (
            first,
            *(
                NOTHING if first == second else percent(overall.improvements[first, second])
                for second in overall.agents
            ),
        )
        for first in overall.agents
    )
    return Table(
        "Probability that the row beats the column",
        "Per cent, on a task drawn at random, ties half. With a star: the 95% interval leaves no "
        "doubt who is ahead.",
        ("", *overall.agents),
        rows,
    )


def opponents_table(analysis: Analysis, overall: Overall) -> Table:
    """Returns how every agent does against the reference, or against the best one."""
    opponent = analysis.reference or overall.agents[0]
    rows = []
    for agent in overall.agents:
        if agent == opponent:
            continue
        value = overall.improvements[agent, opponent]
        wins = overall.wins.get((agent, opponent))
        counts = f"{wins.won} / {wins.tied} / {wins.pairs - wins.won - wins.tied}" if wins else ""
        rows.append((agent, interval(value), counts or NOTHING))
    return Table(
        f"Against {opponent}",
        f"Probability that a search of the agent beats one of {opponent} on a task drawn at "
        f"random, with its 95% interval; won, tied and lost against the same seed.",
        ("agent", f"beats {opponent}", "won / tied / lost"),
        tuple(rows),
    )


def differences_table(task: TaskAnalysis, pairs: Sequence[Difference], title: str) -> Table:
    """Returns differences of mean rewards on a task, and which of them are real."""
    form = f"+{task.facts.metric.reward_form}"
    rows = tuple(
        (
            d.better,
            d.worse,
            reward(d.estimate, task.facts.metric),
            f"[{_number(d.low, form)}, {_number(d.high, form)}]",
            "yes" if d.is_real else "no",
            _p_value(d.p_value),
            _p_value(d.adjusted_p_value),
            "yes" if d.holds_among_all else "no",
        )
        for d in sorted(pairs, key=lambda d: (task.ranks[d.better], task.ranks[d.worse]))
    )
    return Table(
        title,
        f"Corrected for {counted(sum(d.is_known for d in task.differences), 'pair')}.",
        ("better", "worse", "difference", "95% interval", "real", "p", "p (Holm)", "holds"),
        rows,
    )


def reward(value: float, metric: Metric) -> str:
    """Returns a reward that is made from scores of a metric as text."""
    return _number(value, metric.reward_form)


def interval(value: Interval) -> str:
    """Returns an estimate with its interval as text."""
    if math.isnan(value.low):
        return f"{value.estimate:.3f}"
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"


def percent(value: Interval) -> str:
    """Returns a probability in per cent, with a star if its interval excludes one half."""
    is_sure = value.low > 0.5 or value.high < 0.5
    return f"{100 * value.estimate:.0f}{' *' if is_sure else ''}"


def seconds_per_evaluation(searches: Sequence[SearchRecord]) -> str:
    """Returns the agent's own processor seconds per evaluation, mean over its searches."""
    means = [
        sum(trial.agent_seconds for trial in s.trials) / s.trials[-1].evaluation
        for s in searches
        if s.trials
    ]
    return f"{np.mean(means):.2g}" if means else NOTHING


def _task_note(task: TaskAnalysis) -> str:
    evaluator = "a fitted surrogate" if task.facts.recorded else "the compressed network"
    return (
        f"Evaluated by {evaluator}; budget {task.facts.budget}; uniform plan "
        f"{reward(task.facts.uniform_reward, task.facts.metric)}; "
        f"{counted(task.evaluations, 'evaluation')} per search."
    )


def _sample(sample: Sample, task: TaskAnalysis) -> str:
    metric = task.facts.metric
    text = reward(sample.mean, metric)
    if not math.isnan(sample.deviation):
        text += f" ± {reward(sample.deviation, metric)}"
    return text + (f" [{sample.imputed}]" if sample.imputed else "")


def _scores(metric: Metric, values: Sequence[float | None]) -> str:
    known = [metric.value(value) for value in values if value is not None]
    if not known:
        return NOTHING
    form, unit = (".4g", "")
    if metric.is_accuracy:
        known, form, unit = [100 * value for value in known], ".2f", "%"
    if len(known) == 1:
        return f"{known[0]:{form}}{unit}"
    return f"{np.mean(known):{form}} ± {np.std(known, ddof=1):{form}}{unit}"


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else _number(value, ".4f")


def _number(value: float, form: str) -> str:
    return NOTHING if math.isnan(value) else format(value, form)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

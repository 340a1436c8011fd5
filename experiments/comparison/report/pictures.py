"""All figures of a comparison, by name, as PNG files with captions."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from amc_compress.comparison.naming import file_names
from amc_compress.comparison.report.drawing import png
from amc_compress.comparison.report.figures import draw_evaluations, draw_iqm_curves, draw_seconds
from amc_compress.comparison.report.overview_figures import (
    draw_improvements,
    draw_profiles,
    draw_ranks,
    draw_scores,
)
from amc_compress.comparison.report.styles import Style, agent_styles
from amc_compress.comparison.statistics.analysis import Analysis, Overall


@dataclass(frozen=True)
class Picture:
    """A figure to show.

    Args:
        name: Of its file, without an ending.
        caption: What it shows and how to read it.
        content: A PNG file.
    """

    name: str
    caption: str
    content: bytes

    @property
    def data_url(self) -> str:
        """Returns the file itself as an address, for a page that needs no other file."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode()}"


def task_pictures(analysis: Analysis) -> dict[str, list[Picture]]:
    """Returns task -> its figures."""
    styles = agent_styles(analysis.comparison.agents)
    names = file_names(analysis.tasks)
    pictures = {}
    for task, found in analysis.tasks.items():
        uniform = found.facts.uniform_reward
        pictures[task] = [
            Picture(
                f"evaluations-{names[task]}",
                "Best reward against evaluations, mean over seeds; shaded: 95% bootstrap "
                "interval of the mean. A line begins when every search of the agent has evaluated "
                "a plan within the budget; failed searches lie on the uniform plan.",
                png(draw_evaluations(found.curves, styles, task, uniform)),
            ),
            Picture(
                f"seconds-{names[task]}",
                "The same against processor seconds of agent and evaluation together, each plan "
                "charged with what evaluating it took when it was first evaluated. A mark is where "
                "the longest search ended; dashed: the uniform plan.",
                png(draw_seconds(found.seconds, styles, task, uniform)),
            ),
        ]
    return pictures


def overall_pictures(analysis: Analysis) -> list[Picture]:
    """Returns the figures over all tasks; none if the tasks have nothing in common."""
    if analysis.overall is None:
        return []
    styles = agent_styles(analysis.comparison.agents)
    return [*_scores(analysis.overall, styles), *_order(analysis, analysis.overall, styles)]


def _scores(overall: Overall, styles: dict[str, Style]) -> list[Picture]:
    scores = {agent: overall.aggregates[agent]["iqm"] for agent in overall.agents}
    return [
        Picture(
            "scores",
            "Mean score of the middle half of all searches; bars: 95% bootstrap interval over "
            "seeds.",
            png(draw_scores(scores, styles, len(overall.matrices.tasks))),
        ),
        Picture(
            "scores-evaluations",
            "The same against evaluations. Who has evaluated no plan within the budget yet counts "
            "as the uniform plan.",
            png(draw_iqm_curves(overall.curves, styles)),
        ),
        Picture(
            "profiles",
            "How reliable agents are: the further right and up, the better; shaded: 95% "
            "bootstrap interval.",
            png(draw_profiles(overall.profiles, styles)),
        ),
    ]


def _order(analysis: Analysis, overall: Overall, styles: dict[str, Style]) -> list[Picture]:
    ranks = {task: analysis.tasks[task].ranks for task in overall.matrices.tasks}
    pictures = [
        Picture(
            "ranks",
            "Ranks by mean reward on every task; left is best.",
            png(draw_ranks(ranks, overall.mean_ranks, styles)),
        )
    ]
    if len(overall.agents) > 1:
        pictures.append(
            Picture(
                "improvement",
                "Probability that a search of the row's agent beats one of the column's on a task "
                "drawn at random, ties half.",
                png(draw_improvements(overall.improvements, overall.agents, styles)),
            )
        )
    return pictures

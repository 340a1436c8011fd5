"""The report of a comparison: one page, its figures as files, and tables for other documents."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from amc_compress.comparison.records import Results
from amc_compress.comparison.report.findings import (
    failures,
    overall_findings,
    task_findings,
    without_plan,
)
from amc_compress.comparison.report.pictures import Picture, overall_pictures, task_pictures
from amc_compress.comparison.report.tables import (
    DIFFERENCE_COLUMNS,
    TASK_COLUMNS,
    Table,
    differences_table,
    improvements_table,
    opponents_table,
    ranks_table,
    scores_table,
    task_table,
)
from amc_compress.comparison.report.tensorboard import write_tensorboard
from amc_compress.comparison.statistics.analysis import Analysis, TaskAnalysis, analyse
from amc_compress.comparison.statistics.statistics import RESAMPLES
from amc_env.files import write_atomic


def write_report(
    folder: Path,
    results: Results,
    *,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Path:
    """Writes ``report.html``, ``tables.md``, ``figures/*.png`` and ``tensorboard/``.

    Args:
        folder: Where to write.
        results: A results file.
        reference: Compare every agent with this one instead of every pair.
        seed: Of all resampling; equal results and seeds give equal numbers.
        resamples: How often seeds are drawn again for the scores over all tasks.

    Returns:
        The path of the page.

    Raises:
        MissingDependencyError: Without the ``compare`` extra.
        ComparisonError: If there is nothing to compare, or the reference is not among the agents.
    """
    analysis = analyse(results, reference=reference, seed=seed, resamples=resamples)
    general, by_task = overall_pictures(analysis), task_pictures(analysis)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = [*general, *(p for group in by_task.values() for p in group)]
    for picture in pictures:
        write_atomic(folder / "figures" / f"{picture.name}.png", picture.content)
    write_atomic(folder / "tables.md", markdown(analysis))
    write_tensorboard(
        folder / "tensorboard", analysis.comparison, {p.name: p.content for p in pictures}
    )
    path = folder / "report.html"
    write_atomic(path, _page(analysis, general, by_task))
    return path


def markdown(analysis: Analysis) -> str:
    """Returns all tables as Markdown."""
    parts = [table.markdown() for table in _overall_tables(analysis)]
    parts.append(f"### Task by task\n\n{TASK_COLUMNS}\n\n{DIFFERENCE_COLUMNS}\n")
    for name, task in analysis.tasks.items():
        parts.append(task_table(analysis, name).markdown())
        if task.differences:
            parts.append(_main_differences(analysis, name, task).markdown())
    lines = [*failures(analysis), *without_plan(analysis), *analysis.notes]
    parts.append("### Failures and assumptions\n\n" + "".join(f"- {line}\n" for line in lines))
    return "\n".join(parts)


def _overall_tables(analysis: Analysis) -> list[Table]:
    overall = analysis.overall
    if overall is None:
        return []
    tables = [scores_table(overall), ranks_table(analysis, overall)]
    if len(overall.agents) > 1:
        tables += [opponents_table(analysis, overall), improvements_table(overall)]
    return tables


def _main_differences(analysis: Analysis, name: str, task: TaskAnalysis) -> Table:
    """Those from the reference; without one, those from the best agent."""
    opponent = analysis.reference or task.agents[0]
    pairs = [d for d in task.differences if opponent in (d.better, d.worse)]
    return differences_table(task, pairs, f"{name}: {opponent} and the others")


def _page(analysis: Analysis, general: list[Picture], by_task: dict[str, list[Picture]]) -> str:
    template = Template(
        (files("amc_compress.comparison.report") / "page_template.html").read_text("utf-8")
    )
    comparison = analysis.comparison
    searches = sum(len(group) for group in comparison.searches.values()) + comparison.unopened
    tiles = [
        (len(comparison.agents), "agents"),
        (len(comparison.tasks), "tasks"),
        (searches, "searches"),
        (len(analysis.failures) + comparison.unopened, "failed"),
    ]
    return template.substitute(
        headline=_headline(analysis),
        tiles="\n".join(_tile(value, text) for value, text in tiles),
        winners=_list(
            [
                *overall_findings(analysis),
                *(
                    " ".join(task_findings(name, task, analysis.reference))
                    for name, task in analysis.tasks.items()
                ),
            ]
        ),
        failures=_list([*failures(analysis), *without_plan(analysis), *analysis.notes]),
        columns=f"<p>{escape(TASK_COLUMNS)}</p>\n<p>{escape(DIFFERENCE_COLUMNS)}</p>",
        overall=_overall_section(analysis, general),
        tasks="\n".join(
            _task_section(analysis, name, task, by_task[name])
            for name, task in analysis.tasks.items()
        ),
    )


def _headline(analysis: Analysis) -> str:
    overall = analysis.overall
    agents = len(analysis.comparison.agents)
    if overall is None:
        return f"{agents} agents compared"
    return f"{agents} agents compared: {escape(overall.agents[0])} scores highest"


def _overall_section(analysis: Analysis, pictures: list[Picture]) -> str:
    if not pictures:
        return ""
    tables = "\n".join(_titled(table) for table in _overall_tables(analysis))
    figures = "\n".join(_figure(picture) for picture in pictures)
    return f"<section><h2>All tasks together</h2>{figures}\n{tables}</section>"


def _task_section(
    analysis: Analysis, name: str, task: TaskAnalysis, pictures: list[Picture]
) -> str:
    table = task_table(analysis, name)
    parts = [
        f"<section><h2>{escape(name)}</h2>",
        f"<p>{escape(table.note)}</p>",
        table.html(),
        *(_figure(picture) for picture in pictures),
    ]
    if task.differences:
        parts.append(_titled(_main_differences(analysis, name, task)))
    if analysis.reference is None and len(task.agents) > 2:
        pairs = differences_table(task, task.differences, "all pairs")
        parts.append(
            f"<details><summary>All {len(task.differences)} pairs of agents</summary>"
            f"{pairs.html()}</details>"
        )
    return "\n".join([*parts, "</section>"])


def _titled(table: Table) -> str:
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f"<h3>{escape(table.title)}</h3>{note}{table.html()}"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.content).decode()
    caption = escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _tile(value: int, text: str) -> str:
    return f'<div class="tile"><b>{value}</b><span>{text}</span></div>'


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)

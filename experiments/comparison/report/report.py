"""The report of a comparison: one page, its figures as files, and tables for other documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from amc_compress.report.rendering import render
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
    comparison = analysis.comparison
    searches = sum(len(group) for group in comparison.searches.values()) + comparison.unopened
    headline = f"{len(comparison.agents)} agents compared"
    if analysis.overall is not None:
        headline += f": {analysis.overall.agents[0]} scores highest"
    return render(
        "comparison.html",
        title=headline,
        headline=headline,
        tiles=[
            (len(comparison.agents), "agents"),
            (len(comparison.tasks), "tasks"),
            (searches, "searches"),
            (len(analysis.failures) + comparison.unopened, "failed"),
        ],
        winners=[
            *overall_findings(analysis),
            *(
                " ".join(task_findings(name, task, analysis.reference))
                for name, task in analysis.tasks.items()
            ),
        ],
        failures=[*failures(analysis), *without_plan(analysis), *analysis.notes],
        columns=[TASK_COLUMNS, DIFFERENCE_COLUMNS],
        overall_tables=_overall_tables(analysis),
        overall_pictures=general,
        tasks=[_task(analysis, name, task, by_task[name]) for name, task in analysis.tasks.items()],
    )


def _task(
    analysis: Analysis, name: str, task: TaskAnalysis, pictures: list[Picture]
) -> dict[str, Any]:
    """Returns what the section of a task shows."""
    is_matrix = analysis.reference is None and len(task.agents) > 2
    return {
        "table": task_table(analysis, name),
        "pictures": pictures,
        "differences": _main_differences(analysis, name, task) if task.differences else None,
        "pairs": differences_table(task, task.differences, "all pairs") if is_matrix else None,
    }

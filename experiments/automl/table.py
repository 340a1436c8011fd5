"""The results as Markdown, next to what the paper found."""

from __future__ import annotations

import math
from collections.abc import Sequence

from amc_compress.automl.datasets import DATA_SETS, TaskKind
from amc_compress.automl.frameworks import FRAMEWORKS
from amc_compress.automl.protocol import CONSTANT
from amc_compress.automl.records import Trainings
from amc_compress.automl.summary import Cell, Overall, cell, names_of, overall

_TITLES: tuple[tuple[TaskKind, str], ...] = (
    ("classification", "Classification: weighted F1, higher is better"),
    ("regression", "Regression: mean squared error, lower is better"),
)
# Balaji & Allen 2018: the framework they found best for each kind of task.
_BEST_IN_PAPER = {"classification": "auto-sklearn", "regression": "tpot"}


def make_table(results: Trainings) -> str:
    """Returns the results in Markdown: scores, figures over all data sets, failures, versions.

    Raises:
        RunFolderError: If the results lack the constant prediction on a split that needs it.
    """
    limits = results.protocol
    parts = [
        f"Soft limit {limits.seconds:g} s, hard limit {limits.hard_seconds:g} s, "
        f"{limits.n_jobs} core, mean ± standard deviation over seeds. A failed training counts as "
        f"the constant prediction, and is counted in brackets."
    ]
    for task, title in _TITLES:
        data_sets = _data_sets(results, task)
        if data_sets:
            parts += [f"**{title}**", _scores(results, data_sets, task)]
            parts.append(_overall_table(results, data_sets, task))
    parts += [_usage(results), _engines(results), *_failures(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data_sets(results: Trainings, task: TaskKind) -> list[str]:
    used = {row.data for row in results.rows.values()}
    return [name for name, data in DATA_SETS.items() if data.task == task and name in used]


def _scores(results: Trainings, data_sets: Sequence[str], task: TaskKind) -> str:
    digits = 3 if task == "classification" else 2
    names = [*names_of(results.rows, data_sets), CONSTANT]
    lines = [_line("framework", *data_sets), _rule(1 + len(data_sets))]
    for name in names:
        cells = [_cell_text(cell(results.rows, name, data), digits) for data in data_sets]
        lines.append(_line(name, *cells))
    return "\n".join(lines)


def _cell_text(found: Cell | None, digits: int) -> str:
    if found is None:
        return "-"
    # As many digits as the figures need: an error of thousands, or one of hundredths.
    digits = 0 if abs(found.mean) >= 100 else digits
    text = f"{found.mean:.{digits}f}"
    if not math.isnan(found.deviation):
        text += f" ± {found.deviation:.{digits}f}"
    return f"{text} ({found.failures} of {found.seeds} failed)" if found.failures else text


def _overall_table(results: Trainings, data_sets: Sequence[str], task: TaskKind) -> str:
    figures = overall(results.rows, data_sets, higher_is_better=task == "classification")
    if not figures:
        return ""
    head = ("over these", "scaled: constant 0, best 1", "mean rank", "the paper's statistic")
    lines = [_line(*head, "the paper's finding", "failures"), _rule(6)]
    for name, figure in sorted(figures.items(), key=lambda item: (item[1].rank, -item[1].scaled)):
        lines.append(_line(*_overall_cells(name, figure, task)))
    return "\n".join(lines)


def _overall_cells(name: str, figure: Overall, task: TaskKind) -> tuple[str, ...]:
    return (
        name,
        f"{figure.scaled:.3f}",
        f"{figure.rank:.2f}",
        "-" if figure.paper is None else f"{figure.paper:.3f}",
        "best" if _BEST_IN_PAPER[task] == name else "",
        f"{figure.failures} of {figure.trainings}",
    )


def _usage(results: Trainings) -> str:
    """Time and versions: what the frameworks really had."""
    lines = [
        _line("framework", "version", "Python", "paper's version", "wall s", "processor s",
              "predict s"),
        _rule(7),
    ]  # fmt: skip
    for name in names_of(results.rows, tuple(DATA_SETS)):
        rows = [row for row in results.rows.values() if row.framework == name]
        versions = next((row.versions for row in rows if row.versions), {})
        framework = FRAMEWORKS.get(name)
        lines.append(
            _line(
                name,
                versions.get(name, "-"),
                versions.get("python", "-"),
                framework.paper_version if framework else "-",
                _mean([row.wall_seconds for row in rows], 0),
                _mean([row.processor_seconds for row in rows], 0),
                _mean([row.predict_seconds for row in rows], 3),
            )
        )
    return "\n".join(lines)


def _engines(results: Trainings) -> str:
    """How the frameworks search, and where they could not follow the protocol."""
    lines = [_line("framework", "engine", "searches like our agents", "remark"), _rule(4)]
    for name in names_of(results.rows, tuple(DATA_SETS)):
        if framework := FRAMEWORKS.get(name):
            lines.append(_line(name, framework.engine, framework.stands_for, framework.note))
    return "\n".join(lines) if len(lines) > 2 else ""


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else "-"


def _failures(results: Trainings) -> list[str]:
    failed = [row for row in results.rows.values() if row.failure]
    cut = [
        "The last line was cut short: that training is missing; `amc automl run` makes it again."
    ]
    if not failed:
        return cut if results.cut_short else ["No training failed."]
    lines = [_line("failed", "data set", "seed", "kind", "reason"), _rule(5)]
    for row in failed:
        reason = (row.reason or "").replace("|", "\\|")
        lines.append(_line(row.framework, row.data, row.seed, row.failure or "", reason))
    return ["\n".join(lines), *(cut if results.cut_short else [])]


def _line(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns

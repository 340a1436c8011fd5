"""What each decision costs on its own: ``amc sensitivity``, before any search.

One decision takes a few of its values while all others leave the network as it is, and the
candidate is evaluated as in a search.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from amc_compress.agents.curves.sensitivity import spread
from amc_compress.config.option import flag
from amc_compress.config.run_config import OPTIONS
from amc_compress.report.sensitivity_figure import draw_sensitivity
from amc_compress.runs.problem import make_env
from amc_compress.runs.task import Task, use_threads
from amc_compress.runs.warm_start import FREE
from amc_compress.stages.search import workers_of
from amc_env import Budget, CompressionEnv, CompressionPlan, EvaluationError, RunFolderError
from amc_env.files import JsonLines, write_atomic, write_json
from amc_env.support.progress import Progress
from amc_env.validation.shapes import check_shape

ROWS = "sensitivity.jsonl"
"""Evaluations as they come, in the run folder."""

_FORM = "amc-sensitivity"
_SHAPE = {
    "decision": str, "kind": str, "value": float, "score": float, "drop": float,
    "cost_ratio": dict[str, float], "seconds": float,
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """One decision at one value, all others as in the original.

    Args:
        decision: The layer, or group of layers, that is decided about.
        kind: What the value means, e.g. ``"keep_ratio"``.
        value: Of the decision.
        score: Of the candidate.
        drop: How much lower that is than with all decisions at their largest values.
        cost_ratio: Its costs as shares of the original's.
        seconds: Of the evaluation.
    """

    decision: str
    kind: str
    value: float
    score: float
    drop: float
    cost_ratio: dict[str, float]
    seconds: float


def run_sensitivity(task: Task, points: int) -> list[Measurement]:
    """Measures all decisions; writes ``sensitivity.csv``, ``.json``, ``.png`` and ``.svg``.

    What was measured before is not measured again, so that it may be interrupted at any moment.

    Args:
        task: A run whose network is trained.
        points: Values of each decision, the smallest among them; the largest changes nothing.

    Raises:
        RunFolderError: If the folder holds measurements with other options.
    """
    folder, config = task.folder, task.config
    use_threads(config, folder.facts, training=False)
    asked = {
        name: value
        for name, value in config.to_dict().items()
        if OPTIONS[name].stage in ("task", "train", "search") and name not in FREE
    }
    lines = JsonLines(
        folder / ROWS, form=_FORM, content="measurements of amc sensitivity",
        remedy="restore the file, or remove it to measure again",
    )  # fmt: skip
    _begin(lines, asked)
    known = {(row.decision, row.kind, row.value): row for row in lines.rows(_measurement)}
    learner = task.learner
    further = task.problem.further if config.has_further_costs else None
    budget = Budget(**{config.spec.costs[0]: 1.0})
    with workers_of(config).evaluations(learner) as service:
        env = make_env(config, learner, budget, costs=further, evaluations=service)
        wanted = _wanted(env, points)
        whole_plan = CompressionPlan.full(env.decisions)
        env.submit([whole_plan, *(plan for key, plan in wanted if key not in known)])
        whole = env.evaluate(whole_plan).score
        found = []
        n_known = sum(key in known for key, _ in wanted)
        with Progress(len(wanted), "sensitivity", initial=n_known, shown=task.progress) as bar:
            for key, plan in wanted:
                if (row := known.get(key)) is None:
                    row = _measure(env, key, plan, whole)
                    lines.append(asdict(row))
                    bar.step(f"{row.decision} at {row.value:.3g}: {row.drop:+.4f}")
                found.append(row)
    _write(task, found, whole)
    return found


def _begin(lines: JsonLines, asked: dict[str, Any]) -> None:
    """Notes what is measured, or compares with what was noted.

    Raises:
        RunFolderError: If that was something else.
    """
    if not lines.path.exists():
        lines.write([], options=asked)
        return
    before: dict[str, Any] = lines.head(lambda row: dict(row["options"]))
    if others := [name for name, value in asked.items() if before.get(name) != value]:
        raise RunFolderError(
            f"{lines.path} was measured with other options "
            f"({', '.join(f'{flag(n)} {before.get(n)} there, {asked[n]} now' for n in others)}); "
            f"repeat those, or choose another --out."
        )
    lines.mend()


def _measurement(row: dict[str, Any]) -> Measurement:
    check_shape(row, _SHAPE)
    return Measurement(**row)


_Key = tuple[str, str, float]


def _wanted(env: CompressionEnv, points: int) -> list[tuple[_Key, CompressionPlan]]:
    """Returns what is to be measured, in network order, from the smallest value up."""
    largest = [d.choices[-1] for d in env.decisions]
    wanted = []
    for i, decision in enumerate(env.decisions):
        for k in spread(len(decision.choices) - 1, points):
            value = decision.choices[k]
            values = [*largest[:i], value, *largest[i + 1 :]]
            key = (decision.target, decision.kind.name, value)
            wanted.append((key, CompressionPlan.from_values(env.decisions, values)))
    return wanted


def _measure(env: CompressionEnv, key: _Key, plan: CompressionPlan, whole: float) -> Measurement:
    started = time.perf_counter()
    outcome = env.evaluate(plan)
    if outcome.evaluation is not None and outcome.evaluation.failure:
        name = ":".join(map(str, key))
        raise EvaluationError(f"{name} could not be measured. {outcome.evaluation.failure}")
    seconds = round(time.perf_counter() - started, 4)
    target, kind, value = key
    drop = whole - outcome.score
    return Measurement(target, kind, value, outcome.score, drop, dict(outcome.cost_ratio), seconds)


def _write(task: Task, rows: Sequence[Measurement], whole: float) -> None:
    folder, costs = task.folder, task.config.spec.costs
    write_json(
        folder / "sensitivity.json",
        {
            "metric": asdict(folder.metric),
            "original_score": task.learner.original_score,
            "whole_score": whole,
            "rows": [asdict(row) for row in rows],
        },
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["decision", "kind", "value", "score", "drop", *(f"{n}_ratio" for n in costs)])
    for row in rows:
        shares = [f"{row.cost_ratio[name]:.6g}" for name in costs]
        table.writerow(
            [row.decision, row.kind, f"{row.value:.6g}", f"{row.score:.6g}", f"{row.drop:.6g}",
             *shares]
        )  # fmt: skip
    write_atomic(folder / "sensitivity.csv", text.getvalue())
    draw_sensitivity(
        rows, costs[0], folder.metric, [folder / f"sensitivity.{kind}" for kind in ("png", "svg")]
    )


def sensitivity_table(rows: Sequence[Measurement], cost: str, *, percent: bool) -> str:
    """Returns the measurements as text: a line for each decision, those that hurt most first.

    Args:
        rows: Of all decisions.
        cost: Name of the cost that is shown.
        percent: Whether drops are shown in points (hundredths).
    """
    by_decision: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        by_decision.setdefault((row.decision, row.kind), []).append(row)
    unit = 100.0 if percent else 1.0
    lines = [("decision", f"saves of the {cost}", "drop at the value" + " (points)" * percent)]
    for (name, kind), own in sorted(
        by_decision.items(), key=lambda item: -max(row.drop for row in item[1])
    ):
        saved = 1.0 - min(row.cost_ratio[cost] for row in own)
        drops = "  ".join(f"{row.value:.3g}: {unit * row.drop:.4g}" for row in own)
        lines.append((f"{name} ({kind.replace('_', ' ')})", f"up to {saved:.1%}", drops))
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c}" for a, b, c in lines)

"""A run measured by another metric than accuracy says so, wherever people and programs look."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from amc_compress.report.page import run_report
from amc_compress.report.summary import summary_table
from amc_compress.runs.folder import RunFolder
from amc_compress.stages.evaluate import summarise
from amc_env.files import write_json
from amc_env.scores.metric import Metric

PERPLEXITY = Metric("perplexity", higher_is_better=False)
SCORES = ("score", "original_score", "validation_score", "validation_score_before", "reward")


def perplexed(value: Any, key: str = "") -> Any:
    """Results of a run as if accuracies had been negative perplexities."""
    if isinstance(value, dict):
        keys = {name: key if key in SCORES else name for name in value}
        return {name: perplexed(item, keys[name]) for name, item in value.items()}
    if isinstance(value, list):
        return [perplexed(item, key) for item in value]
    return value * 10 - 30 if key in SCORES else value


@pytest.fixture
def folder(copy: Path) -> Path:
    """A finished run whose scores are perplexities."""
    (copy / "report.html").unlink()
    state = json.loads((copy / "state.json").read_text())
    state["stages"] = perplexed(state["stages"])
    write_json(copy / "state.json", state | {"metric": asdict(PERPLEXITY)})
    lines = (copy / "trials.jsonl").read_text().splitlines()
    rows = [json.dumps(perplexed(json.loads(line))) for line in lines]
    (copy / "trials.jsonl").write_text("".join(row + "\n" for row in rows))
    return copy


def test_summary_report_and_table_name_the_metric_in_its_own_sign(folder: Path) -> None:
    with RunFolder.open(folder) as run:
        assert run.metric == PERPLEXITY
        summary = summarise(run)
        write_json(folder / "summary.json", summary)
        run_report(run)
    for network in (summary["original"], summary["compressed"]):
        assert network["perplexity"] == -network["score"] > 20.0
        assert "accuracy" not in network
    assert summary["metric"] == asdict(PERPLEXITY)
    assert summary_table(folder).splitlines()[1].startswith("test perplexity")
    page = (folder / "report.html").read_text()
    assert "accuracy" not in page.replace("--reward</td><td>accuracy", "").lower()
    for text in ("test perplexity (was 2", "Perplexity on test samples", "proxy perplexity"):
        assert text in page

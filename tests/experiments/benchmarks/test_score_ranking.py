"""The comparison of curves that predict plans: rows on disk, every kind's table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from amc_compress.benchmarks.learners import score_ranking
from amc_env import CompressionPlan


def test_predictions_sum_what_the_curves_give_to_the_choices():
    env = score_ranking.make_task("density", "", 2, "uniform", precision="fp32", n_validation=100)
    curves = {d.key: np.arange(len(d.choices), dtype=float) for d in env.decisions}
    first = {d.key: d.choices[0] for d in env.decisions}
    changed = env.decisions[1]
    plan = CompressionPlan({**first, changed.key: changed.choices[5]})
    assert score_ranking.predicted(env, curves, CompressionPlan(first)) == 0.0
    assert score_ranking.predicted(env, curves, plan) == 5.0


def test_an_unknown_kind_is_rejected():
    with pytest.raises(ValueError, match="Unknown kind 'rank'"):
        score_ranking.make_task("rank", "", 2, "uniform")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("channels", 4),
        pytest.param("bits", 3, marks=pytest.mark.slow),
        pytest.param("joint", 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_continues_where_it_stopped_and_prints_every_curve(kind, rows, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    options = {"kind": kind, "precision": "fp32", "n_validation": 100}
    score_ranking.main(out, **options, plans=3)
    before = out.read_text()
    capsys.readouterr()
    score_ranking.main(out, **options, plans=4)
    assert out.read_text().startswith(before)
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 4
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("4 plans")
    assert len([line for line in table if line.startswith("| ")]) == rows + 1

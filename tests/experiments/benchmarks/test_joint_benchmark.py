"""Joint against two-stage search: equal episodes, equal budget, resumable rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import typer

from amc_compress.benchmarks.learners import joint
from amc_compress.benchmarks.learners.fixed_decisions import FixedDecisions
from amc_env import CompressionPlan, DecisionKind

SETTINGS = joint.Settings(
    "digitsnet", "digits", None, "macs=0.4,bytes=0.08", "random", 6, "uniform", "2-8", "16", 4,
    100, "fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def env():
    return SETTINGS.environment()


@pytest.mark.slow
def test_both_ways_spend_equal_episodes_and_keep_the_whole_budget(env):
    rows = {way: joint.run(env, SETTINGS, way, 0) for way in joint.WAYS}
    assert rows["joint"].episodes == [6]
    assert rows["two-stage"].episodes == [3, 3]
    assert rows["uniform"].episodes == []
    for row in rows.values():
        assert row.cost_ratio["macs"] <= 0.4
        assert row.cost_ratio["bytes"] <= 0.08
        plan = CompressionPlan(row.plan)
        assert row.cost_ratio == env.cost_ratio(plan)
        assert row.accuracy == env.learner.evaluate_full(plan)


def test_the_first_stage_evaluates_wide_layers_and_counts_narrow_ones(env, monkeypatch):
    made = []
    true = FixedDecisions.__init__

    def spy(self, learner, fixed, *, assumed=None):
        made.append((dict(fixed), assumed))
        true(self, learner, fixed, assumed=assumed)

    monkeypatch.setattr(FixedDecisions, "__init__", spy)
    plan, results = joint.search_in_stages(env, "random", 4, 0)
    bits = [d for d in env.decisions if d.kind is DecisionKind.WEIGHT_BITS]
    (most, fewest), (ratios, nothing) = made
    assert most == {d.key: 8.0 for d in bits}
    assert fewest == {d.key: 2.0 for d in bits}
    assert nothing is None
    assert ratios == dict(results[0].plan)
    assert {key: plan[key] for key in ratios} == ratios
    assert {d.key: plan[d.key] for d in bits} == dict(results[1].plan)


def test_rows_on_disk_are_not_made_again_but_those_of_other_settings_are(
    env, tmp_path, monkeypatch
):
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(joint.Settings, "environment", lambda self: env)
    first = joint.run_all(SETTINGS, range(1), ["uniform"], out)
    with out.open("a") as file:
        file.write('{"way": "joint", "seed"')  # a line that was cut short

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(joint, "run", never)
    assert joint.run_all(SETTINGS, range(1), ["uniform"], out) == first
    with pytest.raises(AssertionError, match="made again"):
        joint.run_all(SETTINGS, range(1), ["joint"], out)
    row = json.loads(out.read_text().splitlines()[0])
    assert row["plan"] == first[0].plan
    monkeypatch.setattr(joint, "run", lambda _, __, way, seed: replace(first[0], way=way))
    made = joint.run_all(SETTINGS, range(1), ["joint"], out)
    monkeypatch.setattr(joint, "run", never)
    assert joint.run_all(SETTINGS, range(1), ["joint", "uniform"], out) == made + first


def test_the_table_pairs_the_seeds():
    def row(way, seed, accuracy):
        return joint.Row(way, seed, "", accuracy, {"macs": 0.5}, [6], 12.0, {})

    rows = [
        row("joint", 0, 0.80),
        row("joint", 1, 0.84),
        row("two-stage", 0, 0.79),
        row("two-stage", 1, 0.80),
    ]
    text = joint.table(rows, ["macs"])
    assert "| joint | 82.00 ± 2.83 | 0.5000 | 2.00 | 2 |" in text
    assert "joint minus two-stage, seed by seed, in points: 2.50 ± 2.12" in text


@pytest.mark.parametrize("budget", ["macs=0.4:0.5", "macs"])
def test_budgets_that_stages_cannot_promise_are_rejected(budget):
    with pytest.raises(typer.BadParameter, match="Expected"):
        joint.check_budget(budget)

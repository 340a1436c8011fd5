"""One policy for several budgets, policies carried to another network, and the table of both."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import gymnasium
import pytest

from amc_compress.agents import make_agent
from amc_compress.benchmarks.agents import kept_policies
from amc_compress.benchmarks.agents.kept_policies import (
    BUDGETS,
    Row,
    Rows,
    carried_over,
    from_nothing,
    one_policy,
    separate,
    table,
)
from amc_env import RunFolderError


@pytest.fixture
def env():
    return gymnasium.make("amc_env:amc/synthetic-v0", n_layers=4).unwrapped


def test_every_way_spends_equally_and_answers_for_every_budget(env):
    episodes = 5 * len(BUDGETS)
    shared, own = one_policy(env, episodes, seed=0), separate(env, "random", episodes, seed=0)
    assert {row.problem for row in shared} == {row.problem for row in own}
    assert {row.way for row in shared} == {"one policy", "one policy, last word"}
    uniform = {row.problem: row.uniform for row in own}
    for row in shared:
        assert row.uniform == uniform[row.problem]
    assert all(row.reward >= row.uniform for row in shared if row.way == "one policy")


def test_what_a_search_for_a_smaller_budget_found_may_win_a_larger_one(env, monkeypatch):
    names = iter(("local", "uniform"))  # so the second search finds less than the first
    monkeypatch.setattr(kept_policies, "BUDGETS", ("macs=0.5", "macs=0.51"))
    monkeypatch.setattr(
        kept_policies, "make_agent", lambda _, **options: make_agent(next(names), **options)
    )
    smaller, larger = separate(env, "one after the other", 60, seed=0)
    assert larger.uniform < smaller.reward
    assert larger.reward == smaller.reward


def test_a_policy_is_carried_to_a_network_with_more_decisions(env):
    target = gymnasium.make("amc_env:amc/synthetic-v0", n_layers=6, seed=1).unwrapped
    rows = carried_over(env, target, "six layers", training=14, episodes=5, seed=0)
    carried, bare = rows
    assert carried.way == "carried over"
    assert carried.reward >= max(bare.reward, carried.uniform)
    (fresh,) = from_nothing(target, "random", "six layers", 5, seed=0)
    assert fresh.uniform == carried.uniform


ROW = Row("random", "macs=0.5", 0, 10, 0.5, 0.7)
SETTINGS = {"table": "budgets", "budgets": ("macs=0.5",), "episodes": 10}


def test_rows_in_the_file_are_not_made_again(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    Rows(path, SETTINGS).ask("random", 0, lambda: [ROW])
    again = Rows(path, SETTINGS)
    again.ask("random", 0, lambda: pytest.fail("made again"))
    assert again.rows == [ROW]


def test_rows_of_other_settings_are_not_taken_and_stay_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(asdict(ROW)) + "\n")  # as rows were before they had settings
    other = replace(ROW, reward=0.9)
    for episodes, row in ((10, ROW), (20, other)):
        rows = Rows(path, SETTINGS | {"episodes": episodes})
        assert rows.rows == []
        rows.ask("random", 0, lambda row=row: [row])
    assert Rows(path, SETTINGS).rows == [ROW]
    assert len(path.read_text().splitlines()) == 3


def test_a_last_line_that_was_cut_short_is_made_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    Rows(path, SETTINGS).ask("random", 0, lambda: [ROW])
    Rows(path, SETTINGS).ask("random", 1, lambda: [replace(ROW, seed=1)])
    whole = path.read_text()
    path.write_text(whole[:-20])
    rows = Rows(path, SETTINGS)
    assert rows.rows == [ROW]
    rows.ask("random", 1, lambda: [replace(ROW, seed=1)])
    assert path.read_text() == whole


def test_a_damaged_line_says_which(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"way"\n')
    with pytest.raises(RunFolderError, match=r"Line 1 of .*rows.jsonl.*remove the line"):
        Rows(path, SETTINGS)


def test_the_command_keeps_the_tables_of_other_settings_apart(tmp_path, monkeypatch, capsys):
    made = []

    def one(env, episodes, seed):
        made.append(("one", episodes, seed))
        return [Row("one policy", "macs=0.2", seed, episodes, 0.5, 0.7)]

    def own(env, name, episodes, seed):
        made.append((name, episodes, seed))
        return [Row(name, "macs=0.2", seed, episodes, 0.5, 0.6)]

    monkeypatch.setattr(kept_policies, "_environment", lambda *_: None)
    monkeypatch.setattr(kept_policies, "one_policy", one)
    monkeypatch.setattr(kept_policies, "separate", own)
    out, known = tmp_path / "rows.jsonl", set()
    for episodes, images in ((10, 100), (10, 100), (20, 100), (10, 9)):
        before = len(made)
        kept_policies.main(seeds=1, episodes=episodes, images=images, out=out)
        assert len(made) - before == (0 if (episodes, images) in known else 5)
        known.add((episodes, images))
    assert "| one policy | 0.7000 |" in capsys.readouterr().out


def test_the_table_scores_each_problem_between_uniform_and_the_best():
    rows = [
        Row("a", "x", 0, 10, 0.5, 0.7),
        Row("a", "y", 0, 10, 0.2, 0.2),
        Row("b", "x", 0, 10, 0.5, 0.6),
        Row("b", "y", 0, 10, 0.2, 0.6),
    ]
    lines = table(rows).splitlines()
    assert lines[0] == "| way | x | y | score | seeds |"
    assert lines[2] == "| a | 0.7000 | 0.2000 | 0.50 | 1 |"
    assert lines[3] == "| b | 0.6000 | 0.6000 | 0.75 | 1 |"

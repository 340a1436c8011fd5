"""One policy for several budgets, policies carried to another network, and the table of both."""

from __future__ import annotations

import gymnasium
import pytest

from experiments.benchmarks.kept_policies import (
    BUDGETS,
    Row,
    Rows,
    carried_over,
    from_nothing,
    one_policy,
    separate,
    table,
)


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


def test_a_policy_is_carried_to_a_network_with_more_decisions(env):
    target = gymnasium.make("amc_env:amc/synthetic-v0", n_layers=6, seed=1).unwrapped
    rows = carried_over(env, target, "six layers", training=14, episodes=5, seed=0)
    carried, bare = rows
    assert carried.way == "carried over"
    assert carried.reward >= max(bare.reward, carried.uniform)
    (fresh,) = from_nothing(target, "random", "six layers", 5, seed=0)
    assert fresh.uniform == carried.uniform


def test_rows_in_the_file_are_not_made_again(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    row = Row("random", "macs=0.5", 0, 10, 0.5, 0.7)
    Rows(path).ask("random", 0, 10, lambda: [row])
    again = Rows(path)
    again.ask("random", 0, 10, lambda: pytest.fail("made again"))
    assert again.rows == [row]


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

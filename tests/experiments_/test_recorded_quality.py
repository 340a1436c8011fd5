"""What is printed about recorded tasks: the figures in the file, and how alike agents rank."""

from __future__ import annotations

from importlib.resources import as_file, files

from support.comparisons import facts, search

from amc_env.recorded_file import read_recorded
from experiments.benchmarks.recorded_quality import agreement, best_rewards, held_out, winners
from experiments.comparison.records import Results


def test_figures_are_those_of_the_shipped_file():
    with as_file(files("amc_env") / "recorded_tasks" / "digits-channels.npz") as path:
        quality = read_recorded(path).quality
    row = quality["cross_validation"]["surrogate"]
    wanted = f"| surrogate | {row['all']['n']} | {row['all']['spearman']:.3f} |"
    assert wanted in held_out(quality)
    assert row["all"]["spearman"] > 0.9
    assert f"| fresh ones | {quality['winners']['searches']} |" in winners(quality)


def test_best_rewards_count_what_came_in_time_and_did_not_fail():
    searches = [
        search("t", "a", 0, [0.6, 0.7, 0.9]),
        search("t", "a", 1, [0.5, 0.8, 0.9]),
        search("t", "b", 0, [0.9], error="It broke."),
        search("other", "a", 0, [1.0]),
    ]
    assert best_rewards(searches, "t", 2) == {"a": (0.7 + 0.8) / 2}


def test_agents_that_rank_the_other_way_round_have_a_negative_rho():
    tasks = {"t": facts("t"), "t-recorded": facts("t-recorded", recorded=True)}
    rewards = {"a": 0.7, "b": 0.8, "c": 0.9}
    searches = [search("t", agent, 0, [reward]) for agent, reward in rewards.items()]
    alike = [search("t-recorded", agent, 0, [reward]) for agent, reward in rewards.items()]
    reversed_ = [search("t-recorded", agent, 0, [-reward]) for agent, reward in rewards.items()]
    only_here = search("t-recorded", "d", 0, [0.5])
    found = agreement(Results(tasks, [*searches, *alike, only_here]), "t")
    assert "over 3 agents: 1.000" in found
    assert "| c | 0.9000 | 0.9000 |" in found
    assert "-1.000" in agreement(Results(tasks, [*searches, *reversed_]), "t")

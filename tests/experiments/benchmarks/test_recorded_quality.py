"""What is printed about recorded tasks: the figures in the file, and how alike agents rank."""

from __future__ import annotations

from importlib.resources import as_file, files

from support.runs.comparisons import facts, search

from amc_compress.benchmarks.agents.recorded_quality import agreement, held_out, winners
from amc_compress.comparison.records import Results
from amc_compress.comparison.statistics.scores import select
from amc_env.recorded_tasks.recorded_file import read_recorded


def test_figures_are_those_of_the_shipped_file():
    with as_file(files("amc_env") / "recorded_tasks" / "digits-channels.npz") as path:
        quality = read_recorded(path).quality
    row = quality["cross_validation"]["surrogate"]
    wanted = f"| surrogate | {row['all']['n']} | {row['all']['spearman']:.3f} |"
    assert wanted in held_out(quality)
    assert row["all"]["spearman"] > 0.9
    assert f"| fresh ones | {quality['winners']['searches']} |" in winners(quality)


TASKS = {"t": facts("t"), "t-recorded": facts("t-recorded", recorded=True)}


def test_failed_searches_count_as_uniform_and_only_what_came_in_time_counts():
    found = Results(
        TASKS,
        (
            search("t", "a", 0, [0.6, 0.7, 0.9]),
            search("t", "a", 1, [0.5, 0.8, 0.9]),
            search("t", "b", 0, [0.9, 0.9, 0.9]),
            search("t", "b", 1, [0.9], evaluations=3, error="It broke."),
            search("t", "c", 0, [0.9], evaluations=3, error="It broke."),
            *(search("t-recorded", agent, 0, [0.7, 0.8]) for agent in "abc"),
        ),
    )
    table = agreement(select(found), "t")
    assert "| a | 0.7500 | 0.8000 |" in table
    assert "| b | 0.7500 [1] | 0.8000 |" in table
    assert "| c | 0.6000 [1] | 0.8000 |" in table
    assert "over 3 agents: not defined" in table


def test_agents_that_rank_the_other_way_round_have_a_negative_rho():
    rewards = {"a": 0.7, "b": 0.8, "c": 0.9}
    searches = [search("t", agent, 0, [reward]) for agent, reward in rewards.items()]
    alike = [search("t-recorded", agent, 0, [reward]) for agent, reward in rewards.items()]
    reversed_ = [search("t-recorded", agent, 0, [-reward]) for agent, reward in rewards.items()]
    only_here = search("t-recorded", "d", 0, [0.5])
    found = agreement(select(Results(TASKS, (*searches, *alike, only_here))), "t")
    assert "over 3 agents: 1.000" in found
    assert "| c | 0.9000 | 0.9000 |" in found
    assert "-1.000" in agreement(select(Results(TASKS, (*searches, *reversed_))), "t")

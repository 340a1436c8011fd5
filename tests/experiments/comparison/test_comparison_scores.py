"""Scores of a comparison: one scale for all tasks, failures counted as the uniform plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.runs.comparisons import facts, results, search

from amc_compress.comparison.records import Results
from amc_compress.comparison.statistics.scores import ComparisonError, marks, score_matrices, select


def test_uniform_plan_scores_0_and_the_best_plan_of_the_file_1():
    # The best plan of the task is found by a search that ends elsewhere in the comparison.
    found = results({"t": {"a": [0.7, 0.8], "b": [0.6, 1.0]}})
    matrices = score_matrices(select(found))
    assert matrices.scores["a"][:, 0] == pytest.approx([0.25, 0.5])
    assert matrices.scores["b"][:, 0] == pytest.approx([0.0, 1.0])


def test_scale_knows_every_trial_of_the_file_even_of_searches_that_are_left_out():
    found = Results(
        {"t": facts("t")},
        (
            search("t", "a", 0, [0.7, 0.7]),
            search("t", "b", 0, [0.7, 0.7]),
            search("t", "a", 1, [1.0], evaluations=1),
            search("t", "b", 1, [0.65, 0.9], error="The disk is full."),
        ),
    )
    comparison = select(found)
    assert comparison.best_rewards["t"] == 1.0
    assert comparison.evaluations["t"] == 2
    assert comparison.notes == (
        "Left out on t: 1 search of a, given 1 evaluation where most agents were given 2.",
    )


def test_scores_below_the_uniform_plan_are_negative():
    matrices = score_matrices(select(results({"t": {"a": [0.5], "b": [0.7]}})))
    assert matrices.scores["a"][0, 0] == pytest.approx(-1.0)


@pytest.mark.parametrize("constant", [0.25, -3.0])
def test_adding_a_constant_to_all_rewards_of_a_task_changes_no_score(constant):
    before = results({"t": {"a": [0.7, 0.9], "b": [0.6, 0.65]}, "u": {"a": [0.8], "b": [0.61]}})
    moved = tuple(
        replace(s, trials=tuple(replace(t, reward=t.reward + constant) for t in s.trials))
        if s.task == "t"
        else s
        for s in before.searches
    )
    task = replace(before.tasks["t"], uniform_reward=before.tasks["t"].uniform_reward + constant)
    after = Results({**before.tasks, "t": task}, moved)
    old, new = score_matrices(select(before)), score_matrices(select(after))
    for agent in ("a", "b"):
        np.testing.assert_allclose(new.scores[agent], old.scores[agent], atol=1e-12)


def test_best_so_far_counts_only_evaluations_up_to_the_mark():
    found = Results(
        {"t": facts("t")},
        (search("t", "a", 0, [0.7, 0.65, 0.8, 1.0]), search("t", "b", 0, [0.6] * 4)),
    )
    comparison = select(found)
    assert [comparison.samples("t", n)["a"].mean for n in (1, 2, 3, 4)] == [0.7, 0.7, 0.8, 1.0]
    assert score_matrices(comparison, 2).scores["a"] == pytest.approx(np.array([[0.25]]))


def test_searches_without_a_plan_yet_count_as_uniform_and_are_counted():
    late = replace(search("t", "late", 0, [0.9]), evaluations=3)
    late = replace(late, trials=(replace(late.trials[0], evaluation=3),))
    found = Results({"t": facts("t")}, (late, search("t", "b", 0, [0.5, 0.7, 0.7])))
    comparison = select(found)
    early, end = score_matrices(comparison, 2), score_matrices(comparison)
    assert early.scores["late"][0, 0] == 0.0
    assert early.imputed == {"late": 1, "b": 0}
    assert end.imputed == {"late": 0, "b": 0}
    assert end.scores["late"][0, 0] == 1.0


def test_failed_searches_count_as_uniform_whatever_they_had_found():
    found = Results(
        {"t": facts("t")},
        (
            search("t", "a", 0, [0.9, 0.9], error="The evaluation gave up."),
            search("t", "a", 1, [0.8, 0.8]),
            search("t", "b", 0, [0.7, 0.7]),
        ),
    )
    sample = select(found).samples("t")["a"]
    assert sample.rewards.tolist() == [0.6, 0.8]
    assert sample.imputed == 1
    assert score_matrices(select(found)).imputed["a"] == 1


def test_one_search_counts_for_every_seed_if_its_agent_is_deterministic_by_its_own_word():
    found = results({"t": {"a": [0.7, 0.8, 1.0], "sensitivity:points=3": [0.6], "tpe": [0.8]}})
    comparison = select(found)
    fixed = [agent for agent, sample in comparison.samples("t").items() if sample.is_fixed]
    assert fixed == ["sensitivity:points=3"]
    matrices = score_matrices(comparison)
    assert matrices.scores["sensitivity:points=3"].tolist() == [[0.0]] * 3
    assert matrices.scores["tpe"] == pytest.approx(np.array([[0.5]]))


def test_several_searches_of_a_deterministic_agent_are_all_counted():
    comparison = select(results({"t": {"a": [0.7, 0.8], "uniform": [0.6, 0.6]}}))
    assert comparison.samples("t")["uniform"].is_fixed
    assert score_matrices(comparison).scores["uniform"].tolist() == [[0.0], [0.0]]


def test_tasks_that_an_agent_lacks_are_left_out_and_named():
    found = results({"t": {"a": [0.7], "b": [0.8]}, "only-a": {"a": [0.9]}})
    matrices = score_matrices(select(found))
    assert matrices.tasks == ("t",)
    assert matrices.notes == (
        "only-a is left out of the scores over all tasks: not searched by b.",
    )


def test_tasks_without_anything_better_than_uniform_are_left_out_and_named():
    found = results({"t": {"a": [0.7]}, "flat": {"a": [0.6]}})
    matrices = score_matrices(select(found))
    assert matrices.tasks == ("t",)
    assert "flat is left out" in matrices.notes[0]
    with pytest.raises(ComparisonError, match="the task has no scale"):
        select(found).scores("flat", np.array([0.5]))


def test_fewer_seeds_on_one_task_shorten_an_agents_matrix_and_it_is_said():
    b = [0.7] * 3
    found = results({"t": {"a": [0.7, 0.8, 0.9], "b": b}, "u": {"a": [0.7, 0.8], "b": b}})
    matrices = score_matrices(select(found))
    assert matrices.scores["a"].shape == (2, 2)
    assert matrices.scores["b"].shape == (3, 2)
    assert matrices.notes == (
        "Left out of the scores over all tasks: 1 search of a, which has only 2 on another task.",
    )


def test_order_of_the_file_and_names_of_the_seeds_change_no_score():
    found = results({"t": {"a": [0.9, 0.7, 0.8], "b": [0.6, 0.7, 0.65]}})
    renamed = tuple(replace(s, seed=(s.seed + 1) % 3) for s in reversed(found.searches))
    old, new = score_matrices(select(found)), score_matrices(select(Results(found.tasks, renamed)))
    for agent in ("a", "b"):
        np.testing.assert_array_equal(old.scores[agent], new.scores[agent])


def test_most_agents_decide_how_many_evaluations_are_compared():
    found = Results(
        {"t": facts("t")},
        (
            search("t", "a", 0, [0.7] * 4),
            search("t", "b", 0, [0.7] * 2),
            search("t", "c", 0, [0.8] * 2),
            search("t", "c", 0, [0.8] * 4, evaluations=4),
            search("t", "d", 0, [0.8] * 2),
        ),
    )
    comparison = select(found)
    assert comparison.evaluations == {"t": 2}
    assert comparison.agents == ("b", "c", "d")


def test_marks_double_from_25_and_end_with_the_last_evaluation():
    assert marks(200) == (25, 50, 100, 200)
    assert marks(130) == (25, 50, 100, 130)
    assert marks(25) == (25,)
    assert marks(7) == (7,)


def test_bad_results_are_rejected_with_what_to_do():
    with pytest.raises(ComparisonError, match="run amc compare first"):
        select(Results())
    with pytest.raises(ComparisonError, match="facts of the task 'u'"):
        select(Results({"t": facts("t")}, (search("u", "a", 0, [0.7]),)))
    with pytest.raises(ValueError, match="reward to be a number, got nan"):
        search("t", "a", 0, [0.7, float("nan")])
    with pytest.raises(ComparisonError, match="between 1 and 1 evaluations, got 2"):
        score_matrices(select(results({"t": {"a": [0.7]}})), 2)
    with pytest.raises(ComparisonError, match="not searched by b"):
        score_matrices(select(results({"t": {"a": [0.7]}, "u": {"b": [0.7]}})))


def test_a_task_that_could_not_be_opened_is_left_out_with_the_reason():
    failed = [search("u", "a", seed, [], evaluations=1, error="Give --data.") for seed in (0, 1)]
    kept = search("t", "a", 0, [0.7])
    comparison = select(Results({"t": facts("t")}, (*failed, kept)))
    assert list(comparison.tasks) == ["t"]
    assert comparison.searches == {("t", "a"): (kept,)}
    assert comparison.notes == (
        "u is left out: it could not be opened, so 2 searches of it failed: Give --data.",
    )
    with pytest.raises(ComparisonError, match=r"could be opened, got none.*Give --data"):
        select(Results({}, tuple(failed)))


def test_equal_rewards_have_no_deviation_and_their_own_value_as_mean():
    # 3 * 0.7 / 3 is not 0.7 in binary numbers.
    sample = select(results({"t": {"a": [0.7] * 3}})).samples("t")["a"]
    assert sample.mean == 0.7
    assert sample.deviation == 0.0

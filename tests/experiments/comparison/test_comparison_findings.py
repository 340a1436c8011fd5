"""What a comparison's report says in words: who won, which differences are real, what failed."""

from __future__ import annotations

from support.runs.comparisons import facts, results, search

from amc_compress.comparison.records import (
    Results,
)
from amc_compress.comparison.report.findings import failures, overall_findings, task_findings
from amc_compress.comparison.statistics.analysis import analyse

AGENTS = ("uniform", "random", "local", "ddpg", "sensitivity", "one-shot:agent=td3,entropy=0.01")
QUICK = 30
ERROR = "InputDataError: the kernel matrix is <singular> & useless."


def test_findings_say_who_won_and_which_differences_are_real():
    found = results(
        {"t": {"good": [0.80, 0.81, 0.82], "bad": [0.60, 0.61, 0.62], "near": [0.79, 0.81, 0.81]}}
    )
    sentences = task_findings("t", analyse(found, resamples=QUICK).tasks["t"])
    assert sentences[0] == ("On t good is best: mean reward 0.8100, 0.2100 above the uniform plan.")
    assert sentences[1] == (
        "good is really better than bad, also when all 3 pairs are counted together (Holm)."
    )
    assert sentences[2] == "good is not shown to differ from near."
    assert sentences[3] == "Of 3 pairs of agents 2 really differ, 2 with Holm's correction."


def test_findings_against_a_reference_say_what_is_better_and_worse():
    found = results(
        {"t": {"good": [0.80, 0.81, 0.82], "bad": [0.60, 0.61, 0.62], "mine": [0.70, 0.71, 0.72]}}
    )
    analysis = analyse(found, reference="mine", resamples=QUICK)
    sentences = task_findings("t", analysis.tasks["t"], "mine")
    counted = "also when all 2 comparisons with mine are counted together (Holm)."
    assert sentences[1:] == [
        f"mine is really better than bad, {counted}",
        f"mine is really worse than good, {counted}",
    ]
    assert len(analysis.tasks["t"].differences) == 2


def test_the_leader_is_not_said_to_win_against_an_agent_that_mostly_beats_it():
    """Far ahead on one task of three is enough for the highest mean."""
    first, second = [0.9, 0.5, 0.5], [0.0, 0.51, 0.51]
    tasks = {
        f"t{i}": {"A": [0.6 + x] * 3, "B": [0.6 + y] * 3, "C": [0.6] * 3}
        for i, (x, y) in enumerate(zip(first, second, strict=True))
    }
    analysis = analyse(results(tasks), resamples=QUICK)
    assert analysis.overall.agents[0] == "A"
    (sentence,) = overall_findings(analysis)
    assert "Whichever" not in sentence
    assert sentence.endswith("On a task drawn at random it mostly loses to B.")


def test_the_leader_that_beats_all_others_is_said_to():
    found = results({"t": {"a": [0.8, 0.81, 0.82], "b": [0.7, 0.71, 0.72], "uniform": [0.6]}})
    (sentence,) = overall_findings(analyse(found, resamples=QUICK))
    assert sentence.endswith("It is more likely than not to win against every other agent.")


def test_one_seed_of_an_agent_with_chance_tells_nothing():
    found = results({"t": {"a": [0.8, 0.81, 0.82], "tpe": [0.7], "uniform": [0.6]}})
    analysis = analyse(found, resamples=QUICK)
    assert task_findings("t", analysis.tasks["t"])[1:] == [
        "a is really better than uniform.",
        "Whether a differs from tpe is not known: one seed only.",
        "Of 1 pair of agents 1 really differ, 1 with Holm's correction.",
    ]
    assert overall_findings(analysis)[0].endswith(
        "Whether it beats tpe is not known: too few seeds."
    )
    assert analysis.notes[:2] == (
        "On t there is one seed only of tpe: no intervals, and no difference from it is called "
        "real.",
        "Run once, as they are deterministic: uniform. The one search counts for every seed.",
    )


def test_ties_have_several_winners():
    found = results({"t": {"a": [0.6, 0.6], "b": [0.6, 0.6]}})
    analysis = analyse(found, resamples=QUICK)
    assert task_findings("t", analysis.tasks["t"])[0] == (
        "On t a and b are best: mean reward 0.6000, that of the uniform plan."
    )
    assert overall_findings(analysis) == []
    assert "No task is left for scores over all tasks." in analysis.notes


def test_failures_are_counted_and_quoted():
    found = Results(
        {"t": facts("t")},
        (search("t", "a", 0, [0.7]), search("t", "a", 1, [], evaluations=1, error=ERROR)),
    )
    assert failures(analyse(found, resamples=QUICK)) == [
        "Failed, and counted as the uniform plan: 1 of 2 searches.",
        f"a on t, seed 1: {ERROR}",
    ]

"""The results of the AutoML comparison: the file, failures filled in, the paper's statistic."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest
from support.runs.automl import LIMITS

from amc_compress.automl.protocol import make_protocol
from amc_compress.automl.records import Training, Trainings, TrainingsFile, read_trainings
from amc_compress.automl.summary import cell, names_of, overall, paper_statistic
from amc_compress.automl.table import make_table
from amc_env import RunFolderError


def by_key(rows: Iterable[Training]) -> dict[tuple[str, str, int], Training]:
    return {row.key: row for row in rows}


def scores(framework: str, data: str, *values: float | None) -> list[Training]:
    return [
        Training(
            framework, data, seed, value, *((None,) if value is not None else ("crash", "it broke"))
        )
        for seed, value in enumerate(values)
    ]


CLASSES = by_key(
    [
        *scores("constant", "iris", 0.2, 0.3),
        *scores("a", "iris", 0.8, 0.9),
        *scores("b", "iris", 0.6, None),
        *scores("constant", "wine", 0.4, 0.4),
        *scores("a", "wine", 0.5, 0.7),
        *scores("b", "wine", 0.8, 1.0),
    ]
)


# ---- the summary


def test_failures_count_as_the_constant_prediction_of_their_split_and_are_counted():
    found = cell(CLASSES, "b", "iris")
    assert found is not None
    assert found.mean == pytest.approx((0.6 + 0.3) / 2)
    assert found.deviation == pytest.approx(0.3 / 2**0.5)
    assert (found.failures, found.seeds) == (1, 2)
    assert cell(CLASSES, "c", "iris") is None


def test_figures_over_all_data_sets_are_those_of_a_hand_computation():
    figures = overall(CLASSES, ["iris", "wine"], higher_is_better=True)
    # means: iris 0.85 and 0.45 above 0.25; wine 0.6 and 0.9 above 0.4
    assert figures["a"].scaled == pytest.approx((1 + 0.2 / 0.5) / 2)
    assert figures["b"].scaled == pytest.approx((0.2 / 0.6 + 1) / 2)
    assert figures["a"].rank == figures["b"].rank == 1.5
    assert (figures["a"].failures, figures["b"].failures) == (0, 1)
    assert figures["b"].trainings == 4


def test_the_papers_statistic_is_that_of_a_hand_computation():
    # iris, seed 1 is dropped because b failed: 0.8 and 0.6 become 1 and 0.
    # wine: 0.5, 0.7, 0.8, 1.0 become 0, 0.4, 0.6, 1.
    found = paper_statistic(CLASSES, ["iris", "wine"], higher_is_better=True)
    assert found == pytest.approx({"a": (1 + 0.2) / 2, "b": (0 + 0.8) / 2})


def test_errors_are_turned_round():
    rows = by_key(
        [
            *scores("constant", "diabetes", 10.0),
            *scores("a", "diabetes", 2.0),
            *scores("b", "diabetes", 6.0),
        ]
    )
    figures = overall(rows, ["diabetes"], higher_is_better=False)
    assert (figures["a"].scaled, figures["b"].scaled) == (1.0, 0.5)
    assert (figures["a"].rank, figures["b"].rank) == (1.0, 2.0)
    assert (figures["a"].paper, figures["b"].paper) == (1.0, 0.0)


def test_frameworks_that_never_succeed_do_not_empty_the_papers_statistic():
    rows = CLASSES | by_key([*scores("c", "iris", None, None), *scores("c", "wine", None, None)])
    figures = overall(rows, ["iris", "wine"], higher_is_better=True)
    assert figures["c"].paper is None
    assert figures["a"].paper == pytest.approx(0.6)
    assert figures["c"].scaled == pytest.approx(0)
    assert figures["c"].failures == 4


def test_equal_scores_are_all_best_in_the_papers_statistic():
    rows = by_key([*scores("a", "iris", 0.5, 0.5), *scores("b", "iris", 0.5, 0.5)])
    assert paper_statistic(rows, ["iris"], higher_is_better=True) == {"a": 1.0, "b": 1.0}


def test_only_splits_that_all_were_trained_on_are_compared():
    rows = {k: r for k, r in CLASSES.items() if k not in {("b", "wine", 0), ("b", "wine", 1)}}
    figures = overall(rows, ["iris", "wine"], higher_is_better=True)
    assert figures["a"].rank == 1.0  # iris alone
    assert figures["a"].trainings == 2
    assert names_of(rows, ["wine"]) == ["a"]


def test_a_failure_without_the_constant_prediction_says_how_to_get_it():
    rows = {k: r for k, r in CLASSES.items() if k != ("constant", "iris", 1)}
    with pytest.raises(RunFolderError, match="no constant prediction on iris, seed 1; repeat"):
        cell(rows, "b", "iris")


# ---- the table


def test_the_table_shows_scores_failures_and_reasons():
    table = make_table(Trainings(LIMITS, CLASSES))
    assert "| framework | wine | iris |" in table
    assert "| b | 0.900 ± 0.141 | 0.450 ± 0.212 (1 of 2 failed) |" in table
    assert "| b | iris | 1 | crash | it broke |" in table
    assert "Regression" not in table
    assert "hard limit 60 s" in table


def test_one_seed_has_no_deviation():
    table = make_table(Trainings(LIMITS, by_key(scores("a", "iris", 0.9))))
    assert "| a | 0.900 |" in table


def test_a_bar_in_a_reason_breaks_no_table():
    row = Training("a", "iris", 0, failure="crash", reason="expected a | b")
    rows = by_key([row, *scores("constant", "iris", 0.3)])
    assert "expected a \\| b |" in make_table(Trainings(LIMITS, rows))


# ---- the file


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "folder" / "results.jsonl"
    file = TrainingsFile(path, LIMITS)
    row = Training("a", "iris", 0, 0.9, wall_seconds=1.5, tried={"models": 3}, versions={"a": "1"})
    file.add(row)
    file.add(Training("a", "iris", 1, failure="timeout", reason="It was killed."))
    found = read_trainings(path)
    assert found.protocol == LIMITS
    assert found.rows[row.key] == row
    assert TrainingsFile(path, LIMITS).find(row.key) == row


def test_a_later_row_takes_the_place_of_an_earlier_one(tmp_path):
    file = TrainingsFile(tmp_path / "results.jsonl", LIMITS)
    file.add(Training("a", "iris", 0, failure="install", reason="no Python"))
    file.add(Training("a", "iris", 0, 0.9))
    assert [row.score for row in read_trainings(file.path).rows.values()] == [0.9]


def test_other_limits_are_rejected_in_the_same_file(tmp_path):
    path = tmp_path / "results.jsonl"
    TrainingsFile(path, make_protocol(60.0))
    with pytest.raises(RunFolderError, match=r"was started with seconds 60.*now it is seconds 30"):
        TrainingsFile(path, make_protocol(30.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got something else"),
        ("framework,score\n", "got something else"),
        ('{"format": "amc-comparison", "version": 1}\n', "got something else"),
        ('{"format": "amc-automl", "version": 2}\n', "version 1 .*, got version 2"),
        ('{"format": "amc-automl", "version": 1}\n', "first line .* is damaged"),
        ("HEAD{}\n", "Line 2 .* is damaged.*remove the line"),
        ('HEAD{"framework"\n{}\n', "Line 2 .* is damaged"),
        ("HEAD[1]\n", "Line 2 .* is damaged"),
    ],
)
def test_a_file_that_is_none_is_rejected(tmp_path, content, message):
    path = tmp_path / "results.jsonl"
    TrainingsFile(path, LIMITS)
    path.write_text(content.replace("HEAD", path.read_text()))
    before = path.read_text()
    with pytest.raises(RunFolderError, match=message):
        TrainingsFile(path, LIMITS)
    assert path.read_text() == before


def test_a_missing_file_says_how_it_is_made(tmp_path):
    with pytest.raises(RunFolderError, match="amc automl run --out"):
        read_trainings(tmp_path / "results.jsonl")


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "results.jsonl"
    TrainingsFile(path, LIMITS).add(Training("a", "iris", 0, 0.9))
    with path.open("a") as file:
        file.write('{"framework": "a", "da')
    TrainingsFile(path, LIMITS).add(Training("a", "iris", 1, 0.8))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("score") for line in lines[1:]] == [0.9, 0.8]
    assert np.isfinite(lines[0]["protocol"]["seconds"])

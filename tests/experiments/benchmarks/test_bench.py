"""Rows of a benchmark on disk: interrupted, damaged, of other settings."""

from __future__ import annotations

import json

import pytest

from amc_compress.benchmarks.bench import KeptRows, append_rows, read_rows
from amc_env import RunFolderError

ROWS = [{"seed": 0, "reward": 0.5}, {"seed": 1, "reward": 0.75}]


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert read_rows(path) == []
    append_rows(path, ROWS[:1])
    append_rows(path, ROWS[1:])
    assert read_rows(path) == ROWS
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS


def test_without_a_file_nothing_is_kept(tmp_path):
    append_rows(None, ROWS)
    assert read_rows(None) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_last_line_that_was_cut_short_is_written_again(lost, tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS)
    whole = path.read_text()
    path.write_text(whole[:-lost])
    left = read_rows(path)
    assert left == ROWS[: len(left)]
    assert len(left) < len(ROWS)
    append_rows(path, ROWS[len(left) :])
    assert path.read_text() == whole


@pytest.mark.parametrize("line", ['{"way"', "[1]", "", "7"])
def test_a_damaged_line_says_which(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"seed": 0}}\n{line}\n')
    with pytest.raises(RunFolderError, match=r"Line 2 of .*rows.jsonl.*remove the line"):
        read_rows(path)


def test_rows_of_other_settings_are_not_taken_and_stay_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS[:1])  # as rows without settings are written
    for epochs, row in enumerate(ROWS):
        kept = KeptRows(path, {"epochs": epochs, "budgets": ("macs=0.5",)})
        assert kept.rows == []
        kept.add([row])
        assert kept.rows == [row]
    assert KeptRows(path, {"budgets": ("macs=0.5",), "epochs": 0}).rows == ROWS[:1]
    assert len(read_rows(path)) == 3

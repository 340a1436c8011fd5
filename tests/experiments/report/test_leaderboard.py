"""Warnings of a report, its leaderboard, and the front of its plot."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from amc_compress.report.cautions import at_chance, below_noise, few_images, standard_error
from amc_compress.report.leaderboard import front, leaderboard
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.storage.trials import read_trials


def test_the_front_is_what_no_other_point_beats():
    rng = random.Random(0)
    for _ in range(50):
        points = [(rng.randint(0, 9) / 10, rng.randint(0, 9) / 10) for _ in range(12)]
        beaten = {
            a for a, b in itertools.permutations(set(points), 2) if b[0] <= a[0] and b[1] >= a[1]
        }
        assert front(points) == sorted(set(points) - beaten)


def test_the_standard_error_is_that_of_drawn_samples():
    rng = np.random.default_rng(0)
    drawn = rng.binomial(360, [0.95, 0.9], size=(20_000, 2)) / 360
    assert standard_error(0.95, 0.9, 360) == pytest.approx((drawn[:, 0] - drawn[:, 1]).std(), 0.02)


def test_few_images_and_small_differences_are_said():
    assert few_images(1000, "test") == []
    assert (
        "36 validation images: one of them is worth 2.8 points" in few_images(36, "validation")[0]
    )
    (sentence,) = below_noise("a and b", 0.972, 0.975, 360, standard_error(0.972, 0.975, 360))
    assert "0.3 points between a and b is below the noise of 360 images" in sentence
    assert below_noise("a and b", 0.90, 0.97, 3600, 0.01) == []
    assert below_noise("a and b", 0.9, 0.9, 10, 0.1) == []


def test_networks_that_guess_are_said():
    assert at_chance(0.95, 0.94, 0.1, 360) == []
    assert "original network is at chance level (11.0%" in at_chance(0.11, 0.11, 0.1, 360)[0]
    assert "compressed network is at chance level" in at_chance(0.95, 0.1, 0.1, 360)[0]
    assert at_chance(1.0, 1.0, 1.0, 10) == []  # of one class


def test_the_report_lists_the_best_plans_and_what_would_mislead(finished: Path):
    with RunFolder.open(finished, uses=()) as folder:
        trials = read_trials(finished / "trials.jsonl")
        board = leaderboard(folder, trials)
        tuned = folder.results("finetune")["validation_score"]
        plan = folder.read_plan()
    scores = sorted({str(t.plan): t.score for t in trials}.values(), reverse=True)
    assert [entry.score for entry in board.entries] == scores[: len(board.entries)]
    (chosen,) = (entry for entry in board.entries if entry.is_chosen)
    assert chosen.finetuned == tuned
    (own,) = {tuple(t.cost_ratio[c] for c in board.costs) for t in trials if t.plan == dict(plan)}
    assert chosen.costs == own
    page = (finished / "report.html").read_text()
    assert "The best plans" in page
    assert len(re.findall(r"<tr class=\"ours\"><td>\d+ · chosen</td>", page)) == 1
    cautions = json.loads((finished / "summary.json").read_text())["cautions"]
    assert not any("test images: one" in text for text in cautions)  # of 360 one is 0.28 points
    for text in cautions:
        assert text.split("(")[0] in page

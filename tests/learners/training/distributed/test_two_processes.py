"""Several processes train the network that one would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.learner_training import LEARNERS, with_every_learner
from support.processes import in_processes
from support.shared_training import CASES, carried_out, kept_on_going, rejected
from support.small_training import equal
from torch import Tensor

from amc_env.errors import RunFolderError


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")


@pytest.fixture(scope="module")
def results() -> Any:
    """What comes out in one process, and in each of two."""
    return [carried_out(), *in_processes(carried_out)]


def test_two_processes_take_the_steps_of_one(results: Any) -> None:
    alone, first, second = (trained for trained, _ in results)
    for name in CASES:
        expected, result = alone[name]
        found, theirs = first[name]
        assert equal(found, second[name][0]), name
        assert_close(found, expected, name)
        assert theirs.best_score == second[name][1].best_score == result.best_score
        ours, other = result.history[0], theirs.history[0]
        assert other.train_loss == pytest.approx(ours.train_loss, abs=1e-5)
        assert other.train_score == pytest.approx(ours.train_score, abs=1e-9)


def test_all_processes_measure_what_one_does(results: Any) -> None:
    (*alone, _), (*first, order), second = (measured for _, measured in results)
    assert first == alone
    assert second == [*first, order]
    assert "at least one image" in alone[6]
    assert "got 9: correct the labels" in alone[7]
    assert "validation loader that yields the same batches in every process" in order


@pytest.mark.slow
def test_hooks_and_layers_of_every_learner_are_the_same_in_all_processes() -> None:
    names = list(LEARNERS)
    alone, (first, second) = with_every_learner(names), in_processes(with_every_learner, names)
    for name in names:
        assert equal(first[name], second[name]), name
        assert_close(first[name], alone[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4])
def test_a_training_killed_inside_an_epoch_comes_to_the_same_weights(
    tmp_path: Path, stop: int
) -> None:
    whole: list[Any] = in_processes(kept_on_going, tmp_path / "whole", 2, None)
    resumed: list[Any] = in_processes(kept_on_going, tmp_path / "killed", 2, stop)
    for expected, found in zip(whole, resumed, strict=True):
        assert equal(expected[0], found[0])
        assert expected[1].history[-1].train_score == found[1].history[-1].train_score
    with pytest.raises(RunFolderError, match=r"another run \(devices was 2, now it is 1\)"):
        kept_on_going(tmp_path / "whole", 2, None)


@pytest.mark.slow
def test_what_several_processes_cannot_share_is_said() -> None:
    first, second = in_processes(rejected)
    assert first == second
    for text, expected in zip(
        first,
        ("got one with a DistributedSampler", "yields the same batches in every process",
         "batches of at least 4 samples for 2 processes", "seed is 0 in the first one and 1"),
        strict=True,
    ):  # fmt: skip
        assert expected in text

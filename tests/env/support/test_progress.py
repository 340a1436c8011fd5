"""Progress: a bar on a terminal, whole lines in a log file, nothing where it is not wanted."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from torch import nn

from amc_compress.agents import RandomSearch
from amc_compress.learners import TrainingConfig, train
from amc_env import CompressionEnv
from amc_env.recorded_tasks.synthetic import SyntheticLearner
from amc_env.support.progress import Progress


def written(capsys) -> list[str]:
    """Lines on stderr without the time that each of them ends with."""
    lines = capsys.readouterr().err.splitlines()
    return [line.rpartition(", ")[0] for line in lines]


def count(total: int, steps: int, **options) -> None:
    with Progress(total, "plan", **options) as bar:
        for step in range(steps):
            bar.step(f"best {step}")


@pytest.mark.parametrize(
    ("total", "steps", "options", "expected"),
    [
        (30, 30, {}, [*range(3, 31, 3)]),
        (25, 25, {}, [3, 6, 9, 12, 15, 18, 21, 24, 25]),
        (4, 4, {}, [1, 2, 3, 4]),
        (30, 7, {}, [3, 6, 7]),  # ended early
        (5, 3, {"initial": 2, "lines": None}, [3, 4, 5]),
        (3, 3, {"shown": False}, []),
        (0, 0, {}, []),
    ],
)
def test_a_log_file_gets_lines_evenly_and_the_last_step(total, steps, options, expected, capsys):
    count(total, steps, **options)
    first = options.get("initial", 0)
    assert written(capsys) == [f"plan {n}/{total}, best {n - first - 1}" for n in expected]


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    count(3, 3)
    assert "plan: 100%" in terminal.getvalue()
    assert "plan 3/3" not in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1  # when it ends


def test_a_search_writes_a_line_per_tenth(capsys):
    env = CompressionEnv(SyntheticLearner(3), "macs=0.5")
    result = RandomSearch().search(env, 20, seed=0, progress=True)
    lines = written(capsys)
    assert len(lines) == 10
    best, last = (f"{value:.4f}" for value in (result.reward, result.trials[-1].reward))
    assert lines[-1] == f"search 20/20, best {best}, last {last}"


def test_a_training_writes_a_line_per_epoch(capsys):
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    result = train(nn.Linear(3, 2), batches, batches, TrainingConfig(epochs=3), progress=True)
    assert written(capsys) == [
        f"epoch {r.epoch + 1}/3, loss {r.train_loss:.4f}, "
        f"validation accuracy {r.validation_score:.4f}"
        for r in result.history
    ]


def test_nothing_is_written_unless_it_is_wanted(capsys):
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    train(nn.Linear(3, 2), batches, batches, TrainingConfig(epochs=1))
    RandomSearch().search(CompressionEnv(SyntheticLearner(3), "macs=0.5"), 3, seed=0)
    assert written(capsys) == []

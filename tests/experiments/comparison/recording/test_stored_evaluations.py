"""What stored evaluations say is checked before it is believed."""

import io
import json
import zipfile
from importlib.resources import files

import numpy as np
import pytest

from amc_compress.agents import RandomSearch
from amc_compress.comparison.records import read_results
from amc_compress.comparison.searches.evaluation_store import EvaluationStore, TaskFingerprint
from amc_compress.runs.storage.trials import TrialRecorder, read_trials
from amc_env import CompressionEnv, CompressionError, CompressionPlan, Metric, RunFolderError
from amc_env.recorded_tasks.recorded_file import read_recorded
from amc_env.recorded_tasks.synthetic import SyntheticLearner


@pytest.fixture
def env():
    return CompressionEnv(SyntheticLearner(3), "macs=0.5")


def cost_of(env):
    return lambda plan: {n: c(plan.values_for(env.decisions)) for n, c in env.costs.items()}


@pytest.fixture
def trials(tmp_path, env):
    path = tmp_path / "trials.jsonl"
    RandomSearch().search(env, 4, 0, on_trial=TrialRecorder(path, cost_of(env)))
    return path


KEY = "conv0:keep_ratio"


def edited(path, number, change):
    """Changes one line of a file of JSON lines."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[number])
    change(row)
    lines[number] = json.dumps(row)
    path.write_text("".join(line + "\n" for line in lines))


def put(*way_and_value):
    *way, last, value = way_and_value

    def change(row):
        for key in way:
            row = row[key]
        row[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("score", 9), r"accuracy in \[0, 1\]"),
        (put("score", -0.1), r"accuracy in \[0, 1\]"),
        (put("score", float("nan")), "score"),
        (put("score", "good"), "score to be a number"),
        (put("score", None), "score to be a number"),
        (put("score", True), "score to be a number"),
        (put("reward", float("inf")), "reward"),
        (put("episode", "one"), "episode"),
        (put("seconds", -1.0), "seconds"),
        (put("source", 3), "source"),
        (put("plan", KEY, 0.4999), "not on the grid"),
        (put("plan", KEY, float("nan")), "plan"),
        (put("plan", "conv9:keep_ratio", 0.5), "not here"),
        (lambda row: row["plan"].pop(KEY), "lacks decisions"),
        (put("plan", []), "plan to be a mapping"),
        (put("cost", "macs", -1.0), "at least 0"),
        (put("cost", "macs", 1.0), "Expected macs of"),
        (put("cost_ratio", "macs", float("nan")), "cost_ratio"),
        (put("more", 1), "more"),
    ],
)
def test_a_bad_line_of_a_search_is_named(env, trials, change, message):
    edited(trials, 2, change)
    with pytest.raises(RunFolderError, match=rf"Line 3 of .*{message}") as caught:
        TrialRecorder(trials, cost_of(env), env.metric)
    assert "\n" not in str(caught.value)


def renamed(row):
    row["accuracy"] = row.pop("score")


def test_trials_of_before_there_were_scores_are_read_and_added_to(env, trials):
    expected = read_trials(trials)
    for number in range(3):
        edited(trials, number, renamed)
    assert read_trials(trials, cost_of(env), env.metric) == expected
    recorder = TrialRecorder(trials, cost_of(env), env.metric)
    for trial in recorder.known:
        env.remember(CompressionPlan(trial.plan), trial.score)
    RandomSearch().search(env, 5, 0, on_trial=recorder)
    assert read_trials(trials)[:4] == expected
    assert '"score"' in trials.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("accuracy", 9), r"accuracy in \[0, 1\] from a recorded trial, got 9"),
        (put("score", 0.5), "'score' twice, once by its old name 'accuracy'"),
    ],
)
def test_a_bad_accuracy_of_an_old_line_is_named(env, trials, change, message):
    edited(trials, 2, renamed)
    edited(trials, 2, change)
    with pytest.raises(RunFolderError, match=rf"Line 3 of .*{message}"):
        read_trials(trials)


def test_other_scores_are_any_finite_number(env, trials):
    edited(trials, 2, put("score", -1234.5))
    metric = Metric("perplexity", higher_is_better=False)
    assert read_trials(trials, metric=metric)[2].score == -1234.5
    with pytest.raises(RunFolderError, match=r"Line 3 of .*accuracy in"):
        read_trials(trials, metric=env.metric)


def test_two_scores_of_a_plan_do_not_agree(env, trials):
    lines = trials.read_text().splitlines(keepends=True)
    trials.write_text("".join([*lines, lines[0]]))
    assert len(read_trials(trials, cost_of(env))) == 5
    edited(trials, 4, put("score", 0.123))
    with pytest.raises(RunFolderError, match=r"Line 5 .* earlier line has for the same plan"):
        read_trials(trials, cost_of(env))


RESULTS = {
    "task": "t", "agent": "random", "seed": 0, "evaluations": 2, "prepare_seconds": 0.1,
    "error": None, "deterministic": False,
    "trials": [
        {
            "evaluation": 1, "plan": [0, 1], "accuracy": 0.5, "reward": 0.5, "agent_seconds": 0.1,
            "cost_ratio": {"macs": 0.5}, "judge_seconds": 0.1, "source": "uniform",
        },
        {
            "evaluation": 2, "plan": [1, 1], "accuracy": 0.6, "reward": 0.6, "agent_seconds": 0.1,
            "cost_ratio": {"macs": 0.5}, "judge_seconds": 0.1, "source": "random",
        },
    ],
    "final": {
        "plan": [1, 1], "validation": 0.6, "finetuned_validation": None, "test": None,
        "finetune_seconds": None, "finetune_epochs": None,
    },
}  # fmt: skip
HEAD = {
    "format": "amc-comparison", "version": 1,
    "tasks": {
        "t": {
            "name": "t", "decisions": ["a:keep_ratio", "b:keep_ratio"], "budget": "macs=0.5",
            "choices": [[0.5, 1.0], [0.5, 1.0]], "original_accuracy": 0.9, "uniform_reward": 0.5,
            "recorded": False,
        }
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        put("trials", 0, "accuracy", 9),
        put("trials", 0, "accuracy", float("nan")),
        put("trials", 0, "reward", float("inf")),
        put("trials", 0, "plan", [0, 2]),
        put("trials", 0, "plan", [0, -1]),
        put("trials", 0, "plan", [0]),
        put("trials", 0, "plan", [0, 0.5]),
        put("trials", 0, "plan", [1, 1]),
        put("trials", 0, "evaluation", 0),
        put("trials", 0, "cost_ratio", "macs", -0.5),
        put("final", "plan", [5, 1]),
        put("final", "test", 1.5),
        put("seed", "0"),
    ],
)
def test_a_bad_line_of_a_comparison_is_named(tmp_path, change):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(HEAD) + "\n" + json.dumps(RESULTS) + "\n")
    assert len(read_results(path).searches) == 1
    edited(path, 1, change)
    with pytest.raises(RunFolderError, match=r"Line 2 of .* is damaged"):
        read_results(path)


@pytest.mark.parametrize(
    "row",
    [
        {"plan": [0, 0], "accuracy": 9, "seconds": 1.0},
        {"plan": [0, 0.5], "accuracy": 0.5, "seconds": 1.0},
        {"plan": [True, 0], "accuracy": 0.5, "seconds": 1.0},
        {"plan": [0, 7], "accuracy": 0.5, "seconds": 1.0},
        {"plan": [0, 0], "accuracy": float("nan"), "seconds": 1.0},
    ],
)
def test_a_bad_line_of_an_evaluation_store_is_named(tmp_path, row):
    task = TaskFingerprint(("a", "b"), ((0.5, 1.0), (0.5, 1.0)), 0.9)
    path = tmp_path / "store.jsonl"
    EvaluationStore(path, task)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(RunFolderError, match="no evaluation of this task"):
        EvaluationStore(path, task)


@pytest.mark.parametrize(
    ("name", "value"), [("accuracies", 9.0), ("accuracies", np.nan), ("sources", 200)]
)
def test_bad_numbers_of_a_recorded_task_are_an_error(tmp_path, name, value):
    source = files("amc_env") / "recorded_tasks" / "digits-channels.npz"
    with np.load(io.BytesIO(source.read_bytes())) as archive:
        arrays = {key: archive[key].copy() for key in archive.files}
    arrays[name][3] = value
    path = tmp_path / "task.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            part = io.BytesIO()
            np.save(part, array)
            archive.writestr(f"{key}.npy", part.getvalue())
    with pytest.raises(CompressionError, match="damaged"):
        read_recorded(path)

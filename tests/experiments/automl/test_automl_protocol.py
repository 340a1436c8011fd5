"""The AutoML protocol with frameworks that are small scripts: scores, limits, failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.runs.automl import LIMITS, NEAREST, fake_framework, installed, line, steps

from amc_compress.automl.datasets import DATA_SETS, DataSet, split
from amc_compress.automl.environments import Failed, Installed
from amc_compress.automl.protocol import constant_row, make_protocol, run_all, score, train
from amc_compress.automl.records import Protocol, Training, TrainingsFile, read_trainings


def trained(
    folder: Path, code: str, data: DataSet | None = None, limits: Protocol = LIMITS, seed: int = 0
) -> Training:
    framework = fake_framework(folder, code)
    data = data or steps()
    parts = split(data, seed)
    return train(framework, installed(framework), data, seed, parts, limits, folder / "root")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- scores


def test_weighted_f1_is_that_of_a_hand_computation():
    truth, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    # class 0: precision 1, recall 2/3, F1 4/5; class 1: precision 1/2, recall 1, F1 2/3
    assert score(truth, predicted, "classification") == pytest.approx((3 * 4 / 5 + 2 / 3) / 4)


def test_mean_squared_error_is_that_of_a_hand_computation():
    assert score(np.array([1.0, 2.0]), np.array([2.0, 4.0]), "regression") == 2.5


def test_the_constant_prediction_is_the_commonest_class_or_the_mean_of_the_training_rows():
    parts = split(steps(), 0)  # 12 of class 0 and 8 of class 1: of 6 test rows about 4 and 2
    zeros = int((parts.y_test == 0).sum())
    precision = zeros / 6
    f1 = 2 * precision / (precision + 1) * precision
    assert constant_row(steps(), 0, parts).score == pytest.approx(f1)
    parts = split(line(), 0)
    error = float(((parts.y_test - parts.y_train.mean()) ** 2).mean())
    assert constant_row(line(), 0, parts).score == pytest.approx(error)


def test_a_framework_is_scored_on_the_test_rows(tmp_path):
    row = trained(tmp_path, NEAREST, line())
    parts = split(line(), 0)
    nearest = [parts.y_train[np.abs(parts.x_train[:, 0] - x).argmin()] for x in parts.x_test[:, 0]]
    assert row.score == pytest.approx(float(((parts.y_test - nearest) ** 2).mean()))
    assert row.failure is None
    assert row.tried == {"neighbours": 1}
    assert row.versions == {"nearest": "1.0", "python": sys.version.split()[0]}
    assert row.wall_seconds is not None
    assert row.fit_seconds is not None
    assert row.wall_seconds >= row.fit_seconds


def test_a_framework_is_told_the_limits_and_never_the_test_targets(tmp_path):
    spy = """
    import os

    def fit(x_train, y_train, job):
        with __import__("numpy").load(job["data"]) as arrays:
            names = sorted(arrays)
        seen = {"job": job, "arrays": names, "folder": sorted(os.listdir("."))}
        return (lambda x: [0] * len(x)), seen, {}
    """
    row = trained(tmp_path, spy, seed=3)
    assert row.tried["arrays"] == ["x_test", "x_train", "y_train"]
    assert row.tried["folder"] == ["data.npz", "job.json"]
    job = row.tried["job"]
    assert (job["seconds"], job["seed"], job["n_jobs"]) == (0.5, 3, 1)
    assert (job["task"], job["warm_start"]) == ("classification", True)


def test_warm_starts_are_off_where_they_were_trained_on_the_data_set(tmp_path):
    spy = """
    def fit(x_train, y_train, job):
        return (lambda x: [0] * len(x)), {"warm": job["warm_start"]}, {}
    """
    assert trained(tmp_path, spy, replace(steps(), in_meta_learning=True)).tried == {"warm": False}
    assert {d.name for d in DATA_SETS.values() if d.in_meta_learning} == {"digits", "breast_cancer"}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux binds to cores")
def test_a_framework_has_one_core_and_none_of_our_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spy = """
    import os, sys

    def fit(x_train, y_train, job):
        seen = {"cores": len(os.sched_getaffinity(0)), "path": sys.path}
        return (lambda x: [0] * len(x)), seen, {}
    """
    row = trained(tmp_path, spy)
    assert row.tried["cores"] == 1
    assert str(tmp_path) not in row.tried["path"]


# ---- splits


@pytest.mark.parametrize("name", DATA_SETS)
def test_splits_are_fixed_by_the_seed_and_keep_thirty_per_cent_for_the_test(name):
    data = DATA_SETS[name]
    first, again, other = split(data, 0), split(data, 0), split(data, 1)
    rows = len(first.y_train) + len(first.y_test)
    assert len(first.y_test) == int(np.ceil(0.3 * rows))
    np.testing.assert_array_equal(first.x_test, again.x_test)
    assert not np.array_equal(first.x_test, other.x_test)
    assert first.x_train.dtype == np.float64
    if data.task == "classification":
        classes = set(first.y_train.tolist())
        assert classes == set(range(len(classes))) == set(first.y_test.tolist())


def test_wine_alcohol_is_not_among_its_own_features():
    x, y = DATA_SETS["wine_alcohol"].load()
    assert x.shape == (178, 12)
    assert all(not np.array_equal(x[:, column], y) for column in range(12))


# ---- failures


SLEEPER = """
import os, subprocess, sys, time

def fit(x_train, y_train, job):
    code = "import time; time.sleep(600)"
    own_session = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    print(os.getpid(), own_session.pid, flush=True)
    time.sleep(600)
"""


def test_the_hard_limit_kills_the_framework_and_what_it_started(tmp_path):
    limits = replace(LIMITS, hard_seconds=6.0)
    row = trained(tmp_path, SLEEPER, limits=limits)
    assert (row.score, row.failure) == (None, "timeout")
    assert row.reason == "It was killed at the hard limit of 6 s."
    assert row.wall_seconds is not None
    assert 6 <= row.wall_seconds < 30
    pids = (tmp_path / "root" / "fake" / "logs" / "steps-0.log").read_text().split()
    assert len(pids) == 2
    if Path("/proc/self").exists():  # elsewhere only the group is killed
        assert not any(is_alive(int(pid)) for pid in pids)


def test_what_a_framework_leaves_running_ends_with_it(tmp_path):
    code = """
    import subprocess, sys

    def fit(x_train, y_train, job):
        code = "import time; time.sleep(600)"
        server = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        return (lambda x: [0] * len(x)), {"server": server.pid}, {}
    """
    row = trained(tmp_path, code)
    assert row.score is not None
    assert not is_alive(row.tried["server"])


def test_an_answer_counts_though_the_framework_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("amc_compress.automl.processes._SHUTDOWN_SECONDS", 0.2)
    code = """
    import threading, time

    def fit(x_train, y_train, job):
        threading.Thread(target=time.sleep, args=(600,)).start()
        return (lambda x: [0] * len(x)), {}, {}
    """
    assert trained(tmp_path, code).score is not None


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        ("raise RuntimeError('no model fits')", "crash", "RuntimeError: no model fits"),
        ("import no_such_package", "crash", "No module named 'no_such_package'"),
        ("import os; os._exit(0)", "crash", "it ended without an answer"),
        ("import os; os.abort()", "crash", "killed by signal 6"),
        (
            "return (lambda x: [0.0]), {}, {}",
            "answer",
            "expected 6 predictions, got the shape (1,)",
        ),
        ("return (lambda x: [float('nan')] * 6), {}, {}", "answer", "6 predictions are not finite"),
        ("return (lambda x: [0.5] * 6), {}, {}", "answer", "expected class numbers"),
        ("return (lambda x: ['a'] * 6), {}, {}", "answer", "Its answer cannot be used"),
    ],
)
def test_a_failure_is_a_row_with_its_reason(tmp_path, body, kind, reason):
    row = trained(tmp_path, f"def fit(x_train, y_train, job):\n    {body}\n")
    assert (row.score, row.failure) == (None, kind)
    assert row.reason is not None
    assert reason in row.reason
    assert "\n" not in row.reason


def test_what_could_not_be_installed_is_a_row_with_the_reason(tmp_path):
    framework = fake_framework(tmp_path, NEAREST)
    status = Failed("fake", "pip failed: no such package", framework.requirements)
    row = train(framework, status, steps(), 0, split(steps(), 0), LIMITS, tmp_path)
    assert (row.failure, row.reason) == ("install", "pip failed: no such package")


# ---- limits


def test_the_hard_limit_is_the_papers_share_above_the_soft_one_but_a_minute_at_least():
    assert make_protocol(3 * 3600.0).hard_seconds == pytest.approx(3.5 * 3600)
    assert make_protocol(60.0).hard_seconds == 120.0
    assert make_protocol(60.0).evaluation_seconds == 30.0
    assert make_protocol(3600.0).evaluation_seconds == 360.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_rejected(seconds):
    with pytest.raises(ValueError, match="Expected --seconds above 0"):
        make_protocol(seconds)


# ---- all of them


def run_fakes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, status: dict[str, Installed | Failed]
) -> list[Training]:
    """Runs two fakes on two splits, and returns the new rows."""
    codes = {
        "near": NEAREST,
        "broken": "def fit(x_train, y_train, job):\n    raise OSError('no')\n",
    }
    fakes = [fake_framework(folder, code, name) for name, code in codes.items()]
    known = {fake.name: installed(fake) for fake in fakes} | status
    monkeypatch.setattr(
        "amc_compress.automl.protocol.read_status", lambda framework, root: known[framework.name]
    )
    new: list[Training] = []
    results = TrainingsFile(folder / "results.jsonl", LIMITS)
    run_all(fakes, [steps()], range(2), results, LIMITS, folder, new.append)
    return new


def test_a_repeated_run_trains_nothing_twice(tmp_path, monkeypatch):
    new = run_fakes(tmp_path, monkeypatch, {})
    order = [("near", 0), ("broken", 0), ("near", 1), ("broken", 1)]
    assert [(row.framework, row.seed) for row in new] == order
    before = (tmp_path / "results.jsonl").read_text()
    assert run_fakes(tmp_path, monkeypatch, {}) == []
    assert (tmp_path / "results.jsonl").read_text() == before
    rows = read_trainings(tmp_path / "results.jsonl").rows
    assert {key[0] for key in rows} == {"near", "broken", "constant"}
    assert len(rows) == 6


def test_a_run_that_was_cut_short_makes_what_is_missing(tmp_path, monkeypatch):
    run_fakes(tmp_path, monkeypatch, {})
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text()[:-20])  # in the last line: broken, seed 1
    assert [(row.framework, row.seed) for row in run_fakes(tmp_path, monkeypatch, {})] == [
        ("broken", 1)
    ]
    assert len(read_trainings(path).rows) == 6


def test_a_framework_that_can_be_installed_by_now_is_trained(tmp_path, monkeypatch):
    failed = Failed("near", "no Python", ("nothing",))
    assert len(run_fakes(tmp_path, monkeypatch, {"near": failed})) == 4
    assert run_fakes(tmp_path, monkeypatch, {"near": failed}) == []
    again = run_fakes(tmp_path, monkeypatch, {})
    assert [(row.framework, row.failure) for row in again] == [("near", None)] * 2
    assert len(read_trainings(tmp_path / "results.jsonl").rows) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_leaves_no_process(tmp_path, number):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys\n"
        "from pathlib import Path\n"
        # A shell that starts tests in the background lets its children ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from support.runs.automl import LIMITS, fake_framework, installed, steps\n"
        "from amc_compress.automl.datasets import split\n"
        "from amc_compress.automl.protocol import train\n"
        "folder = Path(sys.argv[1])\n"
        f"fake = fake_framework(folder, {SLEEPER!r})\n"
        "train(fake, installed(fake), steps(), 0, split(steps(), 0), LIMITS, folder)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True
    ) as process:
        log = tmp_path / "fake" / "logs" / "steps-0.log"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (log.exists() and "\n" in log.read_text()):
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    if Path("/proc/self").exists():
        assert not any(is_alive(int(pid)) for pid in log.read_text().split())


def test_results_hold_plain_json(tmp_path, monkeypatch):
    run_fakes(tmp_path, monkeypatch, {})
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    head = json.loads(lines[0])
    assert (head["format"], head["version"]) == ("amc-automl", 1)
    assert head["protocol"]["seconds"] == 0.5
    assert json.loads(lines[1])["framework"] == "constant"

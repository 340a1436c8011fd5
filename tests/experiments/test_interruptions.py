"""Signals that ask a command to end, in this process and from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import is_there
from support.runs.command_line import WEIGHTS

from amc_compress.cli import main
from amc_compress.interruptions import (
    exit_code,
    interrupted_by_signals,
    interruption,
    is_spoken_for,
    signal_of,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@posix
def test_a_signal_interrupts_once_and_not_what_is_closed_then() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)

    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert exit_code(caught.value) == 143
    assert signal.getsignal(signal.SIGTERM) is before


@posix
def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_fails_after_an_interruption_is_the_interruption() -> None:
    try:
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError("the terminal is gone")
    except OSError as error:
        found = interruption(error)
    assert found is not None
    assert exit_code(found) == 130
    assert interruption(OSError()) is None


def test_one_process_of_several_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_spoken_for()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "theirs")
    monkeypatch.setenv("RANK", "0")
    assert not is_spoken_for()
    monkeypatch.setenv("RANK", "1")
    assert is_spoken_for()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "amc-1")
    assert is_spoken_for()
    assert [signal_of(code) for code in (0, 1, 2, 143, -9)] == ["", "", "", "SIGTERM", "SIGKILL"]


LONG = {
    "search": ("search", "--weights", WEIGHTS, "--agent", "random", "--evaluations", "5000",
               "--workers", "2", "--out", "run"),
    "train": ("train", "--epochs", "5000", "--out", "run"),
    "devices": ("train", "--epochs", "5000", "--devices", "2", "--out", "run"),
    "compare": ("compare", "--agent", "random,local", "--seeds", "50", "--evaluations", "300",
                "--workers", "2", "--out", "run"),
    "record": ("record", "--task", "digits-channels", "--plans", "20000", "--folder", "run",
               "--workers", "2", "--out", "run.npz"),
}  # fmt: skip


@posix
def test_the_command_line_hears_signals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def terminated(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)

    arguments = ["amc", "search", "--weights", WEIGHTS, "--out", str(tmp_path / "run"), "-q"]
    monkeypatch.setattr("amc_compress.stages.pipeline.run_stages", terminated)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    said = capsys.readouterr().err
    assert (
        said
        == f"amc: Interrupted; nothing is lost. Continue with: {' '.join(arguments)} --resume\n"
    )


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, True)]
)
@pytest.mark.parametrize("verb", LONG)
def test_a_command_that_is_asked_to_end_ends_as_by_an_interrupt(
    tmp_path: Path, verb: str, number: signal.Signals, to_all: bool
) -> None:
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "amc_compress", *LONG[verb]],
            cwd=tmp_path, stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        )  # fmt: skip
        (tmp_path / "temporary").mkdir()
        deadline = time.monotonic() + 120.0
        while not is_at_work(tmp_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        (os.killpg if to_all else os.kill)(process.pid, number)
        code = process.wait(60.0)
        while is_there(-process.pid) and time.monotonic() < deadline:  # what cleans up behind it
            time.sleep(0.1)
    text = said.read_text(encoding="utf-8")
    assert code == 128 + number, text
    assert text.count("Interrupted; nothing is lost.") == 1, text
    assert text.rstrip().endswith(("--resume", "Repeat the command to resume."))
    assert "leaked" not in text
    assert "Traceback" not in text
    assert [*(tmp_path / "temporary").glob("amc-*")] == []
    assert not is_there(-process.pid)


def is_at_work(place: Path) -> bool:
    """Whether something that is kept has been made."""
    names = ("trials.jsonl", "last.pt", "results.jsonl")
    return any(
        (path.name in names or path.parent.name == "judgements") and path.stat().st_size > 500
        for path in place.rglob("*.*")
    )

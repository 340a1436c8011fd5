"""Run folders that come from anywhere: what they name is not run, what they say is not markup."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs.command_line import QUICK

from amc_compress.cli import run
from amc_compress.runs.networks import load_compressed
from amc_env import RunFolderError

EVIL = """
from pathlib import Path
from amc_compress.models import make_model
Path("evil_code_ran").touch()
def make(n_classes, in_channels):
    return make_model("digitsnet", n_classes=n_classes, in_channels=in_channels)
"""


@pytest.fixture
def foreign(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of somebody's, which names code that lies in it, in the current directory."""
    (copy / "evil_net.py").write_text(EVIL)
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(copy))])
    monkeypatch.delitem(sys.modules, "evil_net", raising=False)
    return copy


def change(folder: Path, **options: Any) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    document["options"].update(options)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("option", "verbs"),
    [
        ({"model": "evil_net:make"}, ("evaluate", "finetune", "export")),
        ({"data": "evil_net:make"}, ("evaluate", "finetune", "export")),
        ({"task": "evil_net:make"}, ("evaluate", "finetune", "export")),
        ({"metric": "evil_net:make"}, ("evaluate", "finetune", "export")),
        ({"loss": "evil_net:make"}, ("evaluate", "finetune", "export")),
        ({"teacher": "evil_net:make"}, ("finetune",)),
        ({"cost": ["own=evil_net:make"]}, ("export",)),
    ],
)
def test_no_code_is_run_because_a_folder_names_it(
    foreign: Path, fails: Callable[..., str], option: dict[str, Any], verbs: tuple[str, ...]
) -> None:
    change(foreign, **option)
    for verb in verbs:
        sentence = fails(verb, ".", *(["-q"] if verb != "evaluate" else []))
        name = next(iter(option))
        assert f"names code to be run: the {name} 'evil_net:make'" in sentence
        assert "--trust" in sentence
    if "model" in option:
        with pytest.raises(RunFolderError, match=r"trust=True"):
            load_compressed(".")
    assert run(["report", "."]) == 0  # it runs nothing
    assert not (foreign / "evil_code_ran").exists()
    assert "evil_net" not in sys.modules


OPENER = """
from pathlib import Path
def make(n_classes, in_channels, file=None):
    from amc_compress.models import make_model
    Path(file or "evil_code_ran").touch()
    return make_model("digitsnet", n_classes=n_classes, in_channels=in_channels)
"""


def test_the_command_names_what_code_is_called_with_too(
    foreign: Path, fails: Callable[..., str]
) -> None:
    (foreign / "evil_net.py").write_text(OPENER)
    change(foreign, model="evil_net:make", model_args=["file=theirs"])
    named = ["evaluate", ".", "--model", "evil_net:make"]
    assert "'evil_net:make(file=theirs)'" in fails(*named)
    assert "'evil_net:make(file=theirs)'" in fails(*named, "--model-args", "file=mine")
    assert not (foreign / "theirs").exists()
    assert run([*named, "--model-args", "file=theirs"]) == 0
    change(foreign, model_args=[])
    assert "'evil_net:make'" in fails(*named, "--model-args", "file=mine")


def test_no_file_outside_is_written_through_a_link(foreign: Path, tmp_path: Path) -> None:
    names = [
        "config.json",
        "state.json",
        "report.html",
        "summary.json",
        ".lock",
        "model.safetensors",
    ]
    change(foreign, epochs=0)
    outside = {}
    for name in names:
        target = tmp_path / f"outside{name}"
        source = foreign / name
        target.write_bytes(source.read_bytes() if name != ".lock" else b"precious")
        source.unlink(missing_ok=True)
        source.symlink_to(target)
        outside[target] = target.read_bytes()
    assert run(["report", "."]) == 0
    assert run(["finetune", ".", "--epochs", "0", "-q"]) == 0
    assert {path: path.read_bytes() for path in outside} == outside


def test_code_is_run_because_the_command_says_so(
    foreign: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    change(foreign, model="evil_net:make")
    assert "evil_net:make" in fails("evaluate", ".", "--model", "other:make")
    assert run(["evaluate", ".", "--model", "evil_net:make"]) == 0
    assert run(["finetune", ".", "--trust", "--epochs", "0", "-q"]) == 0
    assert load_compressed(".", trust=True) is not None
    assert "accuracy" in json.loads(capsys.readouterr().out.splitlines()[0])
    assert (foreign / "evil_code_ran").exists()


class Bomb:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil_code_ran"),)


def test_no_pickle_is_opened_because_a_folder_allows_it(
    foreign: Path, fails: Callable[..., str]
) -> None:
    torch.save({"state": Bomb()}, "teacher.pt")
    place = str(foreign / "teacher.pt")
    change(foreign, allow_pickle=True, teacher="digitsnet", teacher_weights=place)
    assert "could run code" in fails("finetune", ".", "-q")
    named = ["--teacher", "digitsnet", "--teacher-weights", place, "-q"]
    assert "could run code" in fails("finetune", ".", *named)
    assert not (foreign / "evil_code_ran").exists()
    assert "holds no state_dict" in fails("finetune", ".", *named, "--allow-pickle")
    assert (foreign / "evil_code_ran").exists()


def test_what_a_folder_does_not_need_asks_for_no_trust(foreign: Path) -> None:
    change(foreign, allow_pickle=True, agent="evil_net:make", reward="evil_net:make")
    assert run(["evaluate", "."]) == 0
    assert run(["finetune", ".", "--epochs", "0", "-q"]) == 0
    assert json.loads((foreign / "config.json").read_text())["options"]["allow_pickle"] is True
    assert "evil_net" not in sys.modules


# ---- what a command leaves behind


def test_a_command_that_fails_leaves_no_folder(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: object, **__: object) -> None:
        raise ValueError("No.")

    out = tmp_path / "new" / "run"
    monkeypatch.setattr("amc_compress.config.learner_specs.LearnerSpec.prepare", no)
    assert "No." in fails("compress", *QUICK, "--out", str(out), "-q")
    assert not out.parent.exists()
    out.mkdir(parents=True)
    (out / ".mine").touch()
    assert "No." in fails("compress", *QUICK, "--out", str(out), "-q")
    assert [p.name for p in out.iterdir()] == [".mine"]
    monkeypatch.undo()
    monkeypatch.setattr("amc_compress.stages.pipeline.run_search", no)
    arguments = ["compress", *QUICK[2:], "--train-epochs", "1", "--out", str(out), "-q"]
    assert "No." in fails(*arguments)
    assert (out / "original.safetensors").exists()  # it took a training to make
    monkeypatch.undo()
    monkeypatch.setattr("amc_compress.config.learner_specs.LearnerSpec.prepare", no)
    for budget in ("macs=0.4", "macs=0.6"):  # nothing was evaluated: the options are still free
        assert "No." in fails(*arguments, "--budget", budget, "--resume")


AGENT = """
from amc_compress.agents import RandomSearch
class Mine(RandomSearch):
    def run(self, search):
        for _ in range(3):
            search.play(lambda *_: [0.5], "mine")
        raise KeyError("no more")
class Repaired(RandomSearch):
    pass
"""


@pytest.mark.slow
def test_the_folder_of_an_agent_that_failed_can_be_used_again(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"failing_{tmp_path.name}"
    Path(f"{name}.py").write_text(AGENT)
    base = ["search", *QUICK[:2], "--evaluations", "6", "--precision", "fp32", "-q"]
    agent = ["--agent", f"{name}:Mine"]
    assert "'no more'" in fails(*base, *agent, "--out", "run")
    assert "--proxy" in fails(
        *base, "--agent", "random", "--proxy", "none", "--resume", "--out", "run"
    )
    assert run([*base, "--agent", "random", "--resume", "--out", "run"]) == 0
    assert run([*base, "--agent", "random", "--out", "fresh"]) == 0
    assert Path("run/plan.json").read_text() == Path("fresh/plan.json").read_text()
    rows = [
        [json.loads(line)["plan"] for line in Path(out, "trials.jsonl").read_text().splitlines()]
        for out in ("run", "fresh")
    ]
    assert rows[0] == rows[1]


def test_leftovers_of_killed_writes_are_removed(copy: Path, tmp_path: Path) -> None:
    left = [".plan.json.4194999.tmp", "checkpoints/search/last.pt.4194999.tmp",
            ".model.onnx.4194999.tmp.onnx", ".model.onnx.4194999.float.onnx"]  # fmt: skip
    kept = ["notes.tmp", "a.1.tmp.txt"]
    for name in (*left, *kept):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    assert run(["compress", *QUICK, "--out", str(copy), "--resume", "-q"]) == 0
    assert [n for n in (*left, *kept) if (copy / n).exists()] == kept


def test_a_run_folder_is_no_place_for_anything_else(copy: Path, fails: Callable[..., str]) -> None:
    before = sorted(p.name for p in copy.iterdir())
    for verb in (["compare"], ["compare", "--report"]):
        assert "is the folder of a run" in fails(*verb, "--out", str(copy))
    record = ["record", "--task", "digits-channels", "--out", str(copy.parent / "t.npz")]
    assert "is the folder of a run" in fails(*record, "--folder", str(copy))
    assert sorted(p.name for p in copy.iterdir()) == before


# ---- markup

SCRIPT = "<script>alert('\"')</script>"


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of every value of a document, and of every key (ends with None)."""
    if isinstance(document, dict):
        inner = [p for k, v in document.items() for p in places(v, (*path, k))]
        return [*inner, *((*path, key, None) for key in document)]
    if isinstance(document, list):
        return [p for i, v in enumerate(document) for p in places(v, (*path, i))]
    return [path]


def poisoned(document: Any, path: tuple[Any, ...], poison: Any) -> Any:
    """Returns a copy with another value (or key) at a path."""
    copied = json.loads(json.dumps(document))
    *way, last = path[:-1] if path[-1:] == (None,) else path
    place = copied
    for step in way:
        place = place[step]
    if path[-1:] == (None,):
        place[f"{last}{poison}"] = place.pop(last)
    else:
        old = place[last]
        place[last] = f"{old}{poison}" if isinstance(old, str) else poison
    return copied


def reports(copy: Path, name: str, shown_first: tuple[str, ...] = ()) -> int:
    """Poisons one value or key after the other; returns how many were shown, as text."""
    file, page = copy / name, copy / "report.html"
    document = json.loads(file.read_text())
    shown = 0
    for path in places(document):
        if shown_first and not set(shown_first) & set(path[:2]):
            continue
        file.write_text(json.dumps(poisoned(document, path, SCRIPT)))
        page.unlink(missing_ok=True)
        code = run(["report", str(copy)])
        assert code == (0 if page.exists() else 2), path
        text = page.read_text() if page.exists() else ""
        assert "<script" not in text.lower(), path
        shown += "&lt;script" in text
    return shown


def test_nothing_that_a_report_shows_becomes_markup(copy: Path) -> None:
    config = ("packages", "command", "data", "model", "agent", "reward")
    assert reports(copy, "config.json", config) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "summary.json", "state.json", "plan.json"])
def test_nothing_in_a_folder_becomes_markup_of_the_report(copy: Path, name: str) -> None:
    reports(copy, name)


@pytest.mark.slow
def test_no_trial_becomes_markup_of_the_report(copy: Path) -> None:
    file, page = copy / "trials.jsonl", copy / "report.html"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for path in places(rows[1]):
        changed = [rows[0], poisoned(rows[1], path, SCRIPT), *rows[2:]]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in changed))
        page.unlink(missing_ok=True)
        assert run(["report", str(copy)]) in (0, 2)
        assert "<script" not in (page.read_text().lower() if page.exists() else ""), path

"""Options are declared once: in the help, in the docs, and in the files of ``--config``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from amc_compress.cli import app, run
from amc_compress.commands.options import FINETUNE, NEW_RUN, SEARCH, TASK, takes
from amc_compress.commands.reference import options_page
from amc_compress.commands.values import config_of
from amc_compress.config import RunConfig
from amc_compress.config.learner_specs import LEARNERS
from amc_compress.config.option import flag
from amc_compress.config.run_config import OPTIONS
from amc_compress.runs.storage.trust import UntrustedFolderError

DOCS = Path(__file__).parents[3] / "docs"
Built = Callable[..., RunConfig]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    """Returns the options that a verb finds: of a command line, and of a file's text."""
    monkeypatch.chdir(tmp_path)
    found: list[RunConfig] = []

    @takes(*NEW_RUN, *TASK, *SEARCH, *FINETUNE)
    def verb(ctx: typer.Context) -> None:
        found.append(config_of(ctx))

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(verb)

    def build(*words: str, text: str | None = None) -> RunConfig:
        if text is not None:
            Path("run.yaml").write_text(text)
            words = (*words, "--config", "run.yaml")
        app(["--out", "out", *words], standalone_mode=False)
        return found[-1]

    return build


# ---- help and docs


def test_page_of_options_is_made_from_the_declarations() -> None:
    assert (DOCS / "options.md").read_text() == options_page(), (
        "run python -m amc_compress.commands.reference > docs/options.md"
    )


def test_tables_of_the_docs_give_the_defaults_that_are_declared() -> None:
    found = []
    for page in DOCS.glob("learners/*.md"):
        for table in re.findall(
            r"^\|[^|\n]*\| default \|.*\n((?:\|.*\n)+)", page.read_text(), re.M
        ):
            found += re.findall(r"^\|[^|\n]*`--([\w-]+)[^|\n]*\| `?([^|\n`]*)`? \|", table, re.M)
    options = [(OPTIONS.get(written.replace("-", "_")), default) for written, default in found]
    compared = [(str(o.default), default) for o, default in options if o and default[:1].isdigit()]
    assert len(compared) >= 3
    assert all(declared == told for declared, told in compared), compared


def test_help_shows_what_is_used_every_day_and_where_the_rest_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = {}
    for option in ("--help", "--help-all"):
        assert run(["compress", option]) == 0
        shown[option] = set(re.findall(r"│ +\*? *(--[\w-]+)", capsys.readouterr().out))
    assert shown["--help-all"] >= {flag(name) for name in OPTIONS}
    assert shown["--help"] >= {"--help-all", "--out", "--config", "--model", "--budget", "--epochs"}
    assert len(shown["--help"]) <= 24


def test_help_is_written_for_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # typer keeps the line ends of a docstring: longer lines break twice, and so do examples
    commands = typer.main.get_command(app).commands
    for name, command in commands.items():
        _, *lines = (command.help or "").splitlines()  # the first line is a paragraph of its own
        assert [line for line in lines if len(line) > 78] == [], name
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["compress", "--help-all"]) == 0
    text = capsys.readouterr().out
    assert "<int>" in text
    assert "<bool>" not in text  # --resume takes no value


# ---- files of options


@pytest.mark.parametrize("learner", LEARNERS)
def test_file_of_a_run_gives_the_options_of_the_run(built: Built, learner: str) -> None:
    config = RunConfig(learner=learner, model_args=("width=0.5",), stages=(0.75, 0.6), std=(0.5,))
    document = {"format": "amc-run", "version": 1, "options": config.to_dict()}
    assert built(text=json.dumps(document)) == config
    assert built(text=json.dumps(config.to_dict(), indent=4)) == config


def test_file_takes_what_the_command_line_takes(built: Built) -> None:
    text = """
        # every value is read as the command line reads it
        learner: sparse
        pattern: 2:4          # a number in YAML 1.1
        learning-rate: 1e-3   # a word in YAML 1.1
        action: interval
        episodes: 7
        mean: [0.1, 0.2]
        std: 0.3,0.4
        ignore: [a, b]
        budget: {density: 0.5, bytes: 0.1:0.3}
        weights: none.pt
        teacher_weights: null
        allow_pickle: true
    """
    config = built("--trust", text=text)
    assert config == RunConfig(
        learner="sparse", pattern="2:4", learning_rate=1e-3, action="interval", evaluations=7,
        mean=(0.1, 0.2), std=(0.3, 0.4), ignore=("a", "b"), weights="none.pt", allow_pickle=True,
        budget="density=0.5,bytes=0.1:0.3",
    )  # fmt: skip
    assert built(text=text).allow_pickle is False  # only the command line lets files run code


def test_missing_file_is_named_with_its_option(built: Built) -> None:
    with pytest.raises(ValueError, match=r"Expected --config as a YAML .* got none.yaml: No such"):
        built("--config", "none.yaml")


def test_training_takes_a_file_with_the_names_of_its_own_options(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    command = typer.main.get_command(app).commands["train"]
    names = {"train_epochs": "epochs", "train_learning_rate": "learning_rate"}
    for text, epochs in (("epochs: 7", 7), ("epochs: 7\ntrain-epochs: 2", 2)):
        file.write_text(text)
        words = ["--config", str(file), "--out", "out"]
        assert config_of(command.make_context("train", words), **names).train_epochs == epochs


def test_command_line_wins_over_the_file(built: Built) -> None:
    text = "learner: uniform\nbudget: mean_bits=3/32\nevaluations: 9"
    config = built("--episodes", "5", "--learner", "channels", "--budget", "0.4", text=text)
    assert config == RunConfig(evaluations=5, budget="macs=0.4")
    assert built("--evaluations", "100", text=text).evaluations == 100  # a default that is given


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("evalutions: 3", "which is no option of a run; did you mean evaluations?"),
        ("out: runs/x", "which only the command line takes; give --out there"),
        ("evaluations: many", "Expected evaluations to be a whole number, got 'many'"),
        ("evaluations: [1, 2]", "Expected evaluations in run.yaml as one value"),
        ("evaluations: {a: 1}", "Expected evaluations in run.yaml as one value"),
        ("evaluations: 0", "Expected --evaluations >= 1, got 0"),
        ("learner: unifrom", "Expected --learner to be one of channels"),
        ("mean: [0.5, x]", "Expected --mean as numbers with commas"),
        ("", "Expected options in run.yaml, one a line"),
        ("[1, 2]", "Expected options in run.yaml, one a line"),
        ("a: [", "is neither YAML nor JSON"),
        ("[" * 500, "is neither YAML nor JSON"),
        ("model: !!python/object/apply:os.system [touch ran]", "Expected model in run.yaml as one"),
        ("format: amc-run", "Expected options in run.yaml"),
    ],
)
def test_other_files_are_answered_in_one_sentence(built: Built, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        built(text=text)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "model: evil:make",
        "model: timm:resnet18\nmodel_args: [checkpoint_path=evil.pt]",
        "teacher: evil:make",
        "cost: [own=evil:Make]",
        "reward: evil:make",
        "agent: evil:Agent",
        "agent: evil.Agent",
        "agent: cmaes:storage=journal:evil.log",
    ],
)
def test_no_code_is_run_because_a_file_names_it(built: Built, text: str) -> None:
    Path("evil.py").write_text("from pathlib import Path; Path('ran').touch()")
    with pytest.raises(UntrustedFolderError, match=r"run.yaml names code to be run.*--trust"):
        built(text=text)
    assert built("--trust", text=text).to_dict()
    key, _, value = text.splitlines()[0].partition(": ")
    if "model_args" not in text:  # the command line may name the same, with arguments of its own
        assert built(f"--{key}", value.strip("[]"), text=text).to_dict()
    assert not Path("ran").exists()


def test_plain_agents_need_no_trust(built: Built) -> None:
    assert built(text="agent: ddpg:elite_share=0").agent == "ddpg:elite_share=0"


def test_options_of_older_runs_are_read() -> None:
    older: dict[str, Any] = {**RunConfig().to_dict(), "episodes": 7, "reading": "interval"}
    del older["evaluations"], older["action"]
    assert RunConfig.from_dict(older) == RunConfig(evaluations=7, action="interval")


# ---- start-up

_DRIVER = """
import sys
from amc_compress.cli import run
assert [run(words.split()) for words in sys.argv[1:]] == [2] * (len(sys.argv) - 3) + [0, 0]
heavy = {"torch", "sklearn", "scipy", "pandas", "stable_baselines3", "matplotlib", "pyarrow"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


def test_mistakes_and_help_are_answered_before_torch_is_imported(tmp_path: Path) -> None:
    words = [
        "compress --out x --bugdet macs=0.5",
        "compress --out x --evaluations 0",
        "compress --out x --learner unifrom",
        "search --out x --budget macs=2",
        "train --out x --epochs 0",
        "compress --help",
        "--version",
    ]
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "amc 0." in done.stdout


def test_shells_complete_options_and_their_words(tmp_path: Path) -> None:
    for words, expected in (
        ("compress --weight-b", "--weight-bits"),
        ("compress --learner un", "uniform"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from amc_compress.cli import main; main()"],
            env=os.environ
            | {
                "_AMC_COMPLETE": "complete_bash",
                "COMP_WORDS": f"amc {words}",
                "COMP_CWORD": "2" if "=" in words else str(len(words.split())),
            },
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        )
        assert expected in done.stdout

"""Every fenced block of README and docs runs as pasted."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from amc_compress.cli import app, run

ROOT = Path(__file__).resolve().parent.parent
TOP = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
QUICK = {
    "CONTRIBUTING.md",
    "environment.md",
    "latency_tables.md",
}  # a few seconds; the others are slow
EXTRAS = {"ray", "tianshou", "transformers"}  # packages that a page says to install
OWN = re.compile(
    r"\b(?:[A-Z0-9_]*(?:FILE|FOLDER|DIR|WEIGHTS)|my_module|path/to|photos|pets|table)\b|\.\.\."
)


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in one language, without their indentation."""
    found = FENCE.finditer(page.read_text())
    return [re.sub(f"^{m[1]}", "", m[3], flags=re.MULTILINE) for m in found if m[2] == language]


def commands(page: Path) -> list[list[str]]:
    """The commands of a page as words, comments and line ends taken out."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shorter(words: list[str]) -> list[str]:
    """The arguments of a command, with few episodes and epochs."""
    few = {
        "compare": ["--evaluations", "3", "--seeds", "2"],
        "search": ["--evaluations", "3"],
        "train": ["--epochs", "1"],
    }
    return [*words[1:], *few.get(words[1], ["--evaluations", "3", "--epochs", "1"])]


def named(pages: list[Path]) -> list:
    slow = [] if {p.name for p in pages} <= QUICK else [pytest.mark.slow]
    return [pytest.param(p, id=p.name, marks=[] if p.name in QUICK else slow) for p in pages]


@pytest.mark.parametrize("page", named([p for p in PAGES if blocks(p, "python")]))
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.name == "comparison.md":  # its Python reads what its commands wrote
        assert run(shorter(next(w for w in commands(page) if "--out" in w))) == 0
    names: dict = {}
    for code in blocks(page, "python"):
        try:
            exec(compile(code, page.name, "exec"), names)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] not in EXTRAS:
                raise


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_shell_blocks_name_commands_options_modules_and_files_that_exist(page):
    amc = typer.main.get_command(app)
    for program, *words in commands(page):
        if program == "amc":
            verb, *rest = words
            command = amc.commands[verb]
            if hasattr(command, "commands"):
                command, rest = command.commands[rest[0]], rest[1:]
            command.make_context(verb, list(rest))
        elif program == "python":
            module = words[1] if words[0] == "-m" else ""
            assert not module.startswith("amc_compress") or find_spec(module), module
        elif program.startswith("experiments/"):
            assert (ROOT / program).is_file(), program


def runnable(page: Path) -> list[list[str]]:
    """The commands of a page that need no data or weights but ours."""
    return [
        words
        for words in commands(page)
        if words[0] == "amc" and words[1] in {"compress", "search", "compare", "train"}
        and not OWN.search(" ".join(words)) and "resnet20" not in " ".join(words)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=lambda p: p.name)
def test_commands_of_a_page_run_here_with_few_episodes_and_epochs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in runnable(page):
        assert run(shorter(words)) == 0, words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files_and_headings(page):
    for place, heading in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), place
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert heading in known, f"{place}#{heading}"

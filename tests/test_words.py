"""Code, docs and README speak the field's English."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("amc_env", "agents", "learners", "experiments", "docs")
SUFFIXES = {".py", ".md", ".html", ".sh"}

BANNED = {
    r"judg": "evaluation, evaluate, evaluator",
    r"refus": "reject, validate, raise",
    r"whoever|nobody": "who or what does it; no agent, not measured, ...",
    r"\d %(?![A-Za-z0-9(])": "98.33%, without a space",
    r"\blessons?\b": "loss",
    r"\bbeside\b": "besides, next to, alongside",
}
STORED = re.compile(  # keys and names in files that were written before
    r"amc-judgements|(?:OUT|FOLDER)/judgements|\"judgements\"|judged_before\.jsonl|judge_seconds"
    r"|[\"'`](?:best_)?judged[\"'`]|\"rejudge\"|[\"']refused[\"']|export_refused"
)


def files() -> list[Path]:
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return [ROOT / "README.md", *(path for path in inside if path.suffix in SUFFIXES)]


@pytest.mark.parametrize("word", BANNED)
def test_the_field_has_another_word(word):
    pattern = re.compile(word, re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r}"
        for path in files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (match := pattern.search(STORED.sub("", line)))
    ]
    assert not found, f"say {BANNED[word]} in:\n" + "\n".join(found)

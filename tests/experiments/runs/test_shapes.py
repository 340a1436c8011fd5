"""What documents must hold: the first thing that is missing or wrong is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from amc_compress.runs.storage.stored_state import blamed_on
from amc_env import RunFolderError
from amc_env.files import read_document
from amc_env.validation.shapes import check_shape

FACTS = Path("facts.json")
SHAPE = {"a": float, "b": {"c": Sequence[int], "d?": str | None}}


@pytest.mark.parametrize(
    "document",
    [
        {"a": 1, "b": {"c": []}},
        {"a": 1.5, "b": {"c": [1], "d": None}, "more": "of anything"},
        {"a": 0, "b": {"c": [1, 2], "d": "x"}},
    ],
)
def test_document_of_the_shape_passes(document: Any) -> None:
    check_shape(document, SHAPE)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "its content to have keys"),
        ([], "its content to have keys"),
        ({}, "the key a"),
        ({"a": 1}, "the key b"),
        ({"a": "1", "b": {"c": []}}, "a to be a number"),
        ({"a": True, "b": {"c": []}}, "a to be a number"),
        ({"a": float("nan"), "b": {"c": []}}, "a to be a number"),
        ({"a": float("inf"), "b": {"c": []}}, "a to be a number"),
        ({"a": 1, "b": []}, "b to have keys"),
        ({"a": 1, "b": {"c": [1.5]}}, "b.c to be"),
        ({"a": 1, "b": {"c": [], "d": 3}}, "b.d to be"),
    ],
)
def test_first_thing_that_is_wrong_is_named(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_shape(document, SHAPE)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff", b"[1", b"[]", None])
def test_document_that_cannot_be_read_names_its_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "facts.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"facts\.json.*; make it again\."):
        read_document(path, "make it again", shape=SHAPE)


def test_missing_document_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no facts yet"):
        read_document(tmp_path / "facts.json", missing="There are no facts yet.")


@pytest.mark.parametrize("error", [KeyError("x"), IndexError(), TypeError("y"), OverflowError()])
def test_fault_of_a_file_names_it(error: Exception) -> None:
    with (
        pytest.raises(RunFolderError, match=r"facts\.json does not hold"),
        blamed_on(FACTS),
    ):
        raise error


def test_what_is_said_already_is_not_said_again() -> None:
    with pytest.raises(RunFolderError, match=r"^As it is$"), blamed_on(FACTS):
        raise RunFolderError("As it is")

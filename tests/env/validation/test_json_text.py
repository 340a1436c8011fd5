"""JSON that anybody may have written: read as it is meant, or one kind of error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amc_env.validation.json_text import parse_json

DOCUMENT = {"a": [1, 2.5, None, True, "x"], "b": {"c": -(2**63)}, "d": 2**64 - 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_document_comes_back_from_any_encoding(encoding: str) -> None:
    assert parse_json(json.dumps(DOCUMENT).encode(encoding)) == DOCUMENT


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "", " ", "{", "nul",
        '{"a": 1, "a": 1}', '[{"a": {"b": 0, "b": 1}}]', "1" + "0" * 30, "-" + "9" * 5000,
        b"\xff\xfe\xff", b"\0", b"\0" * 100, '{"a": 1}x', "\ufeff{}", "[1,]", "'a'",
    ],
)  # fmt: skip
def test_anything_else_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(text)


def test_document_cut_anywhere_is_a_value_error() -> None:
    text = json.dumps(DOCUMENT)
    for n in range(len(text)):
        with pytest.raises(ValueError, match=r"\S"):
            parse_json(text[:n])

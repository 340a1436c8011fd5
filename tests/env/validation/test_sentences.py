"""Parts of sentences: nothing is cut off in the middle of a word."""

from __future__ import annotations

import pytest

from amc_env.validation.sentences import first_line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("All is well.\nOr not.", "All is well"),
        ("", "ValueError"),
        ("one two three four", "one two..."),
        ("x" * 30, "x" * 9 + "..."),
    ],
)
def test_the_first_line_of_an_error_ends_at_a_word(said, line):
    assert first_line(ValueError(said), most=12) == line

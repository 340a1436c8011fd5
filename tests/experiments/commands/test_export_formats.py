"""``amc export --format``: what does not go together is rejected, and nothing is written."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "torchao"), "a network with quantized weights"),
        (("--format", "tf-lite"), "--format"),
        (("--format", "torchao", "--batch", "1"), "--format onnx alone"),
        (("--group-size", "32"), "--group-size with --format compressed-tensors"),
        (("--tokenizer", "."), "--tokenizer with --format transformers"),
    ],
)
def test_what_does_not_go_together_is_said(options, said, finished, fails):
    before = {file: file.stat().st_mtime_ns for file in finished.iterdir()}
    assert said in fails("export", str(finished), *options)
    assert {file: file.stat().st_mtime_ns for file in finished.iterdir()} == before

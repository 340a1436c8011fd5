"""``amc export --format``: what does not go together is rejected, and nothing is written."""

from __future__ import annotations

import json

import onnx
import pytest

from amc_compress.cli import run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "torchao"), "a network with quantized weights"),
        (("--format", "tf-lite"), "--format"),
        (("--format", "torchao", "--batch", "1"), "--format onnx alone"),
        (("--group-size", "32"), "--group-size with --format compressed-tensors"),
        (("--tokenizer", "."), "--tokenizer with --format transformers"),
        (("--weights",), "--weights with --format compressed-tensors"),
        (
            ("--format", "compressed-tensors", "--weights", "--group-size", "32"),
            "--group-size without --weights",
        ),
        (("--block-size", "32"), "--block-size with --integers"),
        (("--integers", "int4", "--block-size", "24"), "a --block-size of 16"),
        (("--integers", "int3"), "--integers"),
        (("--integers", "int4", "--half"), "a float network for --half"),
    ],
)
def test_what_does_not_go_together_is_said(options, said, finished, fails):
    before = {file: file.stat().st_mtime_ns for file in finished.iterdir()}
    assert said in fails("export", str(finished), *options)
    assert {file: file.stat().st_mtime_ns for file in finished.iterdir()} == before


@pytest.mark.slow
def test_weights_become_integers_without_calibration(copy, capsys):
    command = ["export", str(copy), "--integers", "int8-dynamic"]
    assert run(command) == 0
    assert "0 layers in 4-bit blocks, 1 in 8-bit products" in capsys.readouterr().err
    kinds = [node.op_type for node in onnx.load(copy / "model.onnx").graph.node]
    assert "MatMulInteger" in kinds
    stored = json.loads((copy / "summary.json").read_text())
    assert stored["export_note"].startswith("0 layers in 4-bit blocks")

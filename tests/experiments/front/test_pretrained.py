"""From a network of ``transformers`` to a smaller one that it loads, in Python and by command."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.libraries import installed

import amc_compress
from amc_compress.cli import run
from amc_compress.runs.networks import load_compressed

FACTORY = """
import transformers

def make(n_classes, in_channels, image_size):
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=image_size, patch_size=4, num_channels=in_channels, num_labels=n_classes,
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        )
    )
"""


@pytest.fixture(scope="module")
def transformers() -> Any:
    return installed("transformers")


def test_a_result_is_saved_and_loaded_in_one_line_each(transformers, tmp_path):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=2,
    )  # fmt: skip
    network = transformers.BertForSequenceClassification(config)
    ids = torch.randint(5, 50, (16, 6), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "labels": ids[:, 0] % 2}]
    result = amc_compress.compress(
        network, batches, batches, budget="macs=0.8", agent="random", evaluations=2, round_to=1,
        proxy="none", quiet=True,
    )  # fmt: skip
    folder = result.save_pretrained(tmp_path / "small")
    loaded = amc_compress.load(folder)
    small = result.network
    assert sum(p.numel() for p in loaded.parameters()) < network.num_parameters()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, small(input_ids=ids).logits)


def test_a_run_is_exported_by_command(transformers, tmp_path, monkeypatch, capsys):
    (tmp_path / "vit_of_digits.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    common = ["--quiet", "--trust"]
    options = ["--model", "vit_of_digits:make", "--data", "digits", "--budget", "macs=0.8"]
    options += ["--agent", "uniform", "--evaluations", "1", "--epochs", "0", "--train-epochs", "0"]
    assert run(["compress", *options, "--no-export", "--out", "run", "--quiet"]) == 0
    capsys.readouterr()
    for _ in range(2):  # the second takes the place of the first
        assert run(["export", "run", "--format", "transformers", *common]) == 0
    assert capsys.readouterr().out.split() == ["run/transformers"] * 2
    loaded = amc_compress.load("run/transformers")
    expected = load_compressed("run", trust=True)
    images = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, expected(images).logits)
    assert json.loads((tmp_path / "run/transformers/config.json").read_text())["architectures"] == [
        "ViTForImageClassification"
    ]

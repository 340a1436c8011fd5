"""ONNX files of integers of networks of ``transformers``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.libraries import installed

from amc_compress import post_training_int8
from amc_compress.learners.export.integers.onnx_weights import export_weights
from amc_compress.learners.export.onnx_options import KINDS, Integers

IDS = torch.arange(5, 41).view(4, 9)


@pytest.fixture(scope="module")
def transformers() -> Any:
    return installed("transformers")


def test_an_encoder_with_masks_is_calibrated(transformers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    example = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    network = transformers.BertModel(config, add_pooling_layer=False).eval()
    saved = post_training_int8(network, example, tmp_path / "int8.onnx", calibration=example)
    assert saved.n_int8_layers >= 6
    assert saved.n_float_layers == 0
    assert [file.name for file in tmp_path.iterdir()] == ["int8.onnx"]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_hold_an_input_a_row_keep_their_tied_table(kind, transformers, tmp_path):
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16, use_cache=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    network = transformers.GPT2LMHeadModel(config).eval()
    saved = export_weights(network, {"input_ids": IDS}, tmp_path / "weights.onnx", Integers(kind))
    layers = saved.int4_layers if kind == "int4" else saved.int8_layers
    assert set(layers) == {
        "lm_head", *(f"transformer.h.0.{n}.c_proj" for n in ("attn", "mlp")),
        "transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc",
    }  # fmt: skip
    assert saved.tables == ("transformer.wte", "transformer.wpe")
    assert saved.float_layers == ()
    assert saved.max_difference < 1e-3

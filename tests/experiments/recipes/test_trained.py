"""The small language model is trained from text, and resumes to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.libraries import installed

from amc_compress.learners import evaluate
from amc_compress.recipes.trained import gpt
from amc_env.errors import InputDataError


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes text, network and intervals small."""
    installed("transformers")
    lines = [f"def f{i}(x):\n    return x + {i} * {i % 7}\n" for i in range(400)]
    texts = {"train": lines, "validation": lines[:60], "test": lines[60:120]}
    monkeypatch.setattr(gpt, "_texts", lambda part: ["".join(texts[part])] * 4)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    monkeypatch.setattr(gpt, "_SHAPE", {**gpt._SHAPE, **shape, **heads})
    monkeypatch.setattr(gpt, "_BATCH", 2)
    monkeypatch.setattr(gpt, "_KEPT_EVERY", 2)


def test_an_interrupted_training_resumes_to_the_same_weights(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpt.text_hash("train") != gpt.text_hash("test")
    whole = gpt.train(tmp_path / "whole", steps=5)
    keep = gpt._keep

    def keep_and_stop(folder: Path, state: dict[str, Any]) -> None:
        keep(folder, state)
        if state["step"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gpt, "_keep", keep_and_stop)
        with pytest.raises(KeyboardInterrupt):
            gpt.train(tmp_path / "cut", steps=5)
    with pytest.raises(InputDataError, match="Expected --steps 5"):
        gpt.train(tmp_path / "cut", steps=6)
    assert gpt.train(tmp_path / "cut", steps=5) == whole

    train, validation, test = gpt.blocks(tmp_path / "cut", counts=(4, 3, 2), batch_size=2)
    assert [len(batch["labels"]) for batch in validation] == [2, 1]
    assert train[0]["input_ids"].shape == (2, 256)
    parts = gpt.splits(tmp_path / "cut")
    assert parts["calibration"] == parts["train"][: gpt._CALIBRATION]
    score = evaluate(gpt.network(tmp_path / "cut"), test, task="language-modelling")
    assert -gpt._WORDS * 1.1 < score < -1.0


def test_the_held_out_files_differ() -> None:
    validation, test = (set(gpt._texts(part)) for part in ("validation", "test"))
    assert min(len(validation), len(test)) > 20
    assert not (validation - {""}) & test

"""The small vision transformer is trained from images."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from support.libraries import installed

from amc_compress.recipes.trained import vit
from amc_env.errors import MissingDependencyError


def test_it_trains_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("timm")
    monkeypatch.setattr(vit, "_WIDTH", 24)
    monkeypatch.setattr(vit, "_BLOCKS", 2)
    found = vit.train(tmp_path, "digits", epochs=1)
    assert found == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert vit.train(tmp_path, "digits", epochs=1) == found
    train, validation, test = vit.images(tmp_path, (300, 100, 10), batch_size=128)
    assert [len(y) for _, y in [*train, *validation, *test]] == [128, 128, 44, 100, 10]
    assert vit.network(tmp_path)(validation[0][0]).shape == (100, 10)


def test_it_begins_at_multiples_of_the_identity() -> None:
    into, out = vit._factors(0.0, -0.4, rank=vit._WIDTH)
    torch.testing.assert_close(into.T @ out, -0.4 * torch.eye(vit._WIDTH))
    into, out = vit._factors(0.7, 0.7, rank=64)
    assert into.shape == out.shape == (64, vit._WIDTH)


def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        vit.deit_tiny()

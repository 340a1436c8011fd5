"""Weights from files: what loads, and the sentences for what does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from amc_compress.data import load_data
from amc_compress.models import load_weights, make_model, pretrained_weights
from amc_env.errors import InputDataError


def small(seed: int = 0, out: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, out))


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_safetensors_round_trip(tmp_path: Path) -> None:
    source, target = small(1), small(2)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_saved_state_dicts_load_wrapped_and_prefixed(
    tmp_path: Path, wrap: str | None, prefix: str
) -> None:
    source, target = small(1), small(2)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_files_without_batch_counters_load(tmp_path: Path) -> None:
    state = {k: v for k, v in small(1).state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.pt")
    target = small(2)
    load_weights(target, tmp_path / "w.pt")
    assert same(small(1), target)


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_no_code_is_unpickled_unless_allowed(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    torch.save({"state_dict": small(1).state_dict(), "trap": Trap(trap)}, tmp_path / "w.pt")
    target = small(2)
    with pytest.raises(InputDataError, match="could run code"):
        load_weights(target, tmp_path / "w.pt")
    assert not trap.exists()
    assert same(target, small(2))
    load_weights(target, tmp_path / "w.pt", allow_pickle=True)
    assert trap.exists()
    assert same(target, small(1))


def test_a_pickled_module_loads_when_allowed(tmp_path: Path) -> None:
    torch.save(small(1), tmp_path / "w.pt")
    target = small(2)
    load_weights(target, tmp_path / "w.pt", allow_pickle=True)
    assert same(target, small(1))


def test_other_shapes_and_names_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = small(1, out=7).state_dict()
    state["extra.weight"] = state.pop("0.weight")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    target = small(2)
    with pytest.raises(InputDataError) as caught:
        load_weights(target, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "'0.weight' is missing (expected shape [5, 4])" in message
    assert "'2.weight' has shape [7, 5], expected [3, 5]" in message
    assert "and 1 more" in message
    assert same(target, small(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_rejected(tmp_path: Path, bad: float) -> None:
    state = small(1).state_dict()
    state["2.bias"][1] = bad
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputDataError, match=r"NaN or infinite values, first in '2\.bias'"):
        load_weights(small(2), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 1, 9, 400])
def test_truncated_files_are_rejected(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(small(1).state_dict(), path)
    else:
        safetensors.torch.save_file(small(1).state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputDataError, match="truncated or not a weights file"):
        load_weights(small(2), path)


@pytest.mark.parametrize("content", [b"just some text\n", b"\x00" * 64, b"hello world" * 99])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_files_of_another_kind_are_rejected(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputDataError, match="truncated or not a weights file"):
        load_weights(small(2), path)


def test_a_missing_file_and_a_file_without_tensors_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="no weights file"):
        load_weights(small(), tmp_path / "none.pt")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(InputDataError, match="holds no state_dict"):
        load_weights(small(), tmp_path / "w.pt")


def test_shipped_digits_weights_are_as_good_as_promised() -> None:
    path = pretrained_weights("digitsnet")
    assert path is not None
    assert pretrained_weights("resnet20") is None
    model = make_model("digitsnet", in_channels=1).eval()
    load_weights(model, path)
    test = load_data("digits").test
    with torch.no_grad():
        accuracy = (model(test.images).argmax(1) == test.labels).double().mean()
    assert accuracy >= 0.97

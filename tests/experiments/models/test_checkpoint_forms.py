"""Every way in which training scripts store a network's tensors, and what is said of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_compress.cli import run
from amc_compress.config.texts import split_key
from amc_compress.models import load_weights
from amc_compress.models.state_dicts import find_fits
from amc_env.errors import InputDataError

State = dict[str, Tensor]


class Net(nn.Module):
    """Names that prefixes could be taken for: a child called ``model``, another ``module``."""

    def __init__(self, seed: int = 0, width: int = 5) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
            self.module = nn.Linear(width, 3)


def state(seed: int = 1, width: int = 5) -> State:
    return Net(seed, width).state_dict()


def under(prefix: str, tensors: State) -> State:
    return {prefix + key: value for key, value in tensors.items()}


def inside(tensors: State) -> State:
    """As ``torch.compile`` of a submodule leaves its names."""
    return {key.replace("model.", "model._orig_mod."): value for key, value in tensors.items()}


def profiled(tensors: State) -> State:
    extra = ("total_ops", "total_params", "model.0.total_ops", "module.total_params")
    return {**tensors, **{name: torch.zeros(1) for name in extra}}


METRICS = {"val_acc.correct": torch.zeros(3), "loss.weight": torch.ones(3)}
SETTINGS = argparse.Namespace(lr=0.1, best=np.float64(0.93), name="r20", sizes=np.arange(3))

FORMS: dict[str, Callable[[], Any]] = {
    "plain": state,
    **{
        f"under {key}": lambda key=key: {key: state(), "epoch": 3, "optimizer": {"state": {}}}
        for key in (
            *("state_dict", "model_state_dict", "model", "net", "params", "weights", "network"),
            *("model_state", "module", "generator", "anything else"),
        )
    },
    **{
        f"prefix {prefix}": lambda prefix=prefix: under(prefix, state())
        for prefix in (
            *("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model."),
            *("net.", "backbone.encoder.", "module.model."),
        )
    },
    "compiled submodule": lambda: inside(state()),
    "nested": lambda: {"checkpoint": {"weights": {"model": under("module.", state())}}},
    "list": lambda: [7, {"state_dict": state()}],
    "lightning": lambda: {"state_dict": {**under("model.", state()), **METRICS}, "epoch": 1},
    "averaged model": lambda: {**under("module.", state()), "n_averaged": torch.tensor(7)},
    "profiled": lambda: profiled(state()),
    "settings": lambda: {"model": state(), "args": SETTINGS, "hyper": {"a": np.float32(1)}},
    "parameters": lambda: {k: nn.Parameter(v, requires_grad=False) for k, v in state().items()},
    "half": lambda: {k: v.half() if v.is_floating_point() else v for k, v in state().items()},
    "ema alone": lambda: {"ema": state(), "updates": 3},
    "timm ema alone": lambda: {"state_dict_ema": under("module.", state())},
}  # fmt: skip


WRAPPED = {
    f"prefix {a}{b}" for a in ("module.", "_orig_mod.") for b in ("", "module.", "_orig_mod.")
}
OBVIOUS = {"plain", "parameters", "half", "compiled submodule"} | WRAPPED


def same(model: nn.Module, tensors: State, atol: float = 0.0) -> None:
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, tensors[key].to(value.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_holds_every_tensor_loads(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form](), tmp_path / "w.pt")
    model = Net()
    note = load_weights(model, tmp_path / "w.pt")
    same(model, state(), atol=1e-3 if form == "half" else 0.0)
    assert (note == "") == (form in OBVIOUS)
    assert ("averaged" in note) == any(word in form for word in ("ema", "averaged"))


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    torch.save(FORMS["lightning"](), tmp_path / "w.pt")
    note = load_weights(Net(), tmp_path / "w.pt")
    assert note == (
        "weights under 'state_dict.model'; 2 other tensors left out (val_acc.correct, loss.weight)"
    )


@pytest.mark.parametrize("order", [("state_dict", "state_dict_ema"), ("model_ema", "model")])
def test_raw_weights_go_before_averaged_ones_and_a_key_chooses(order, tmp_path: Path) -> None:
    seeds = {name: 2 if "ema" in name else 1 for name in order}
    torch.save({name: state(seeds[name]) for name in order}, tmp_path / "w.pt")
    model = Net()
    note = load_weights(model, tmp_path / "w.pt")
    same(model, state(1))
    average = next(name for name in order if "ema" in name)
    assert f"FILE::{average}" in note
    assert "averaged" in load_weights(model, f"{tmp_path / 'w.pt'}::{average}")
    same(model, state(2))


def test_two_networks_under_prefixes_of_one_dictionary_are_told_apart(tmp_path: Path) -> None:
    both = {**under("ema_model.", state(2)), **under("model.", state(1))}
    torch.save(both, tmp_path / "w.pt")
    model = Net()
    assert "under 'model'" in load_weights(model, tmp_path / "w.pt")
    same(model, state(1))
    load_weights(model, tmp_path / "w.pt::ema_model")
    same(model, state(2))


def test_a_pickled_module_anywhere_loads_when_allowed(tmp_path: Path) -> None:
    torch.save({"model": Net(1), "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(InputDataError, match="could run code"):
        load_weights(Net(), tmp_path / "w.pt")
    model = Net()
    assert load_weights(model, tmp_path / "w.pt", allow_pickle=True) == "weights under 'model'"
    same(model, state(1))


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "larger network": (
        lambda: {"net": {**state(), "layer9.weight": torch.zeros(3)}},
        r"nearest: 'net'\): 'layer9\.weight' is unknown to the network",
    ),
    "other width": (
        lambda: {"a": {"x": torch.zeros(2)}, "b": under("module.", state(1, 6))},
        r"'model\.0\.weight' has shape \[6, 4\], expected \[5, 4\]",
    ),
    "part missing": (
        lambda: {k: v for k, v in state().items() if k != "module.bias"},
        r"'module\.bias' is missing",
    ),
    "optimizer only": (
        lambda: {"optimizer": {"state": {0: {"step": torch.zeros(1)}}}, "epoch": 3},
        r"holds no state_dict of this network.*'optimizer' \(1 entries\), 'epoch' \(int\)",
    ),
    "sparse": (
        lambda: {**state(), "module.weight": state()["module.weight"].to_sparse()},
        r"'module\.weight' is a sparse tensor",
    ),
    "8 bits": (
        lambda: {**state(), "module.weight": state()["module.weight"].to(torch.float8_e4m3fn)},
        r"'module\.weight' has type torch\.float8_e4m3fn without its scale",
    ),
    "meta": (
        lambda: {**state(), "module.weight": state()["module.weight"].to("meta")},
        r"'module\.weight' is a meta tensor",
    ),
}


@pytest.mark.filterwarnings("ignore:.*Sparse:UserWarning")
@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_says_what_it_holds(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    torch.save(make(), tmp_path / "w.pt")
    model = Net()
    with pytest.raises(InputDataError, match=message):
        load_weights(model, tmp_path / "w.pt")
    same(model, Net().state_dict())


def test_a_key_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    torch.save({"a": state(), "b": state(2)}, tmp_path / "w.pt")
    with pytest.raises(InputDataError, match=r"no tensors under 'c'.*one of 'a', 'b'"):
        load_weights(Net(), tmp_path / "w.pt::c")


def test_a_name_that_wrapping_would_confuse_is_taken_literally() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.module = nn.Module()
            self.module.a = nn.Linear(2, 2)

    twins = Twins()
    fit = find_fits(twins.state_dict(), twins)[0]
    assert not fit.problems
    assert all(fit.tensors[key] is value for key, value in fit.tensors.items())
    assert torch.equal(fit.tensors["a.weight"], twins.a.weight)
    assert torch.equal(fit.tensors["module.a.weight"], twins.module.a.weight)


def test_files_with_colons_in_their_names_are_files(tmp_path: Path) -> None:
    path = tmp_path / "a::b.pt"
    path.touch()
    assert split_key(path) == (path, None)
    assert split_key("w.pt::ema.model") == (Path("w.pt"), "ema.model")


def test_the_command_line_takes_a_key_and_says_what_it_took(tmp_path: Path, capsys) -> None:
    from amc_compress.models import make_model

    network = make_model("digitsnet", in_channels=1)
    torch.save({"raw": state(), "ema": network.state_dict()}, tmp_path / "w.pt")
    arguments = ["--model", "digitsnet", "--data", "digits", "--weights", f"{tmp_path}/w.pt::ema"]
    assert run(["evaluate", *arguments]) == 0
    captured = capsys.readouterr()
    assert "averaged weights under 'ema'" in captured.err
    assert '"accuracy"' in captured.out

"""The command line and the exports on networks that come wrapped, parametrised or in half."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.networks.network_forms import EXAMPLE, Untouched, network, new_weight_norm
from torch import nn

from amc_compress.cli import run
from amc_compress.learners.export.integers.onnx_quantized import post_training_int8
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.networks import build_with_weights, load_compressed

FACTS = DataFacts("digits", 10, (1, 8, 8), tuple("0123456789"))
NETS = """
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

def plain():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    )

def formed():
    net = plain()
    weight_norm(net[0])
    return nn.DataParallel(net.bfloat16())

def lazy():
    return nn.Sequential(nn.LazyConv2d(16, 3), nn.Flatten(), nn.LazyLinear(10))

def without_values():
    return plain().to("meta")

def scripted():
    return torch.jit.trace(plain().eval(), torch.zeros(1, 1, 8, 8))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with networks of a user's own, in the current directory."""
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return name


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("factory", "options", "sentence"),
    [
        ("lazy", (), "run the network once on an example."),
        ("without_values", (), "load its weights on the cpu."),
        ("scripted", (), "pass the module that was scripted or traced"),
        ("plain", ("--device", "meta"), "a device that computes, got 'meta'"),
    ],
)
def test_what_cannot_be_taken_in_is_one_sentence(
    nets: str, fails: Callable[..., str], factory: str, options: tuple[str, ...], sentence: str
) -> None:
    model = f"{nets}:{factory}"
    assert sentence in fails("compress", "--model", model, *options, "--out", "run", "-q")
    assert not Path("run").exists()


def test_a_run_on_a_formed_network_says_so_and_ends_in_plain_float32(
    nets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", f"{nets}:formed", "--train-epochs", "1", "--agent", "uniform"]
    options += ["--budget", "macs=0.6"]
    assert run(["compress", *options, "--epochs", "0", "--no-export", "--out", "run"]) == 0
    said = capsys.readouterr().err
    for note in ("DataParallel", "WeightNorm of weight", "weights in bfloat16"):
        assert note in said
    small = load_compressed("run", trust=True)
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert {"0.bias", "0.weight"} <= small.state_dict().keys()


@pytest.mark.parametrize("saved_as", ["as the factory makes it", "plain"])
def test_weights_fit_by_the_names_of_either_form(nets: str, tmp_path: Path, saved_as: str) -> None:
    module = __import__(nets)
    given = module.formed()
    plain = build_with_weights(f"{nets}:plain", FACTS, None).network
    state = plain.state_dict() if saved_as == "plain" else given.module.state_dict()
    safetensors.torch.save_file(state, tmp_path / "given.safetensors")
    built = build_with_weights(f"{nets}:formed", FACTS, tmp_path / "given.safetensors")
    with torch.no_grad():
        weight = plain[0].weight if saved_as == "plain" else given.module[0].weight.float()
    assert torch.equal(built.network[0].weight, weight)
    assert len(built.notes) == 3


@pytest.mark.slow
def test_exports_take_any_form_and_leave_it_alone(tmp_path: Path) -> None:
    model = nn.DataParallel(new_weight_norm(network()).half())
    model.module[1].eval()  # modes of its own are kept, too
    before = Untouched(model)
    images = torch.randn(8, *EXAMPLE.shape[1:], generator=torch.Generator().manual_seed(0))
    checked = export_onnx(model, EXAMPLE.half(), tmp_path / "a.onnx", images=images)
    assert checked.agreement == 1.0
    result = post_training_int8(model, EXAMPLE, tmp_path / "b.onnx", calibration=images)
    assert result.n_int8_layers == 4
    before.check()

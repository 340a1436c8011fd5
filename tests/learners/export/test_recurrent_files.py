"""ONNX files of recurrent networks, for any number of samples and of steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.export.integers.onnx_quantized import export_quantized
from amc_compress.learners.export.onnx_file import ExportError, export_onnx
from amc_compress.learners.export.runtime import open_session, run_named
from tests.learners.export.test_quantized_kinds import in_eight_bits

# Kind, whether samples come first, whether it runs both ways, layers, whether it is given states.
Layer = tuple[type[nn.RNNBase], bool, bool, int, bool]

LSTM_THEN_GRU: list[Layer] = [(nn.LSTM, True, True, 1, False), (nn.GRU, True, False, 1, False)]
ALL_KINDS: list[Layer] = [
    (nn.GRU, True, True, 2, True),
    (nn.LSTM, False, True, 1, False),
    (nn.GRU, False, False, 1, True),
    (nn.LSTM, True, False, 2, True),
    (nn.GRU, True, True, 1, False),
]
OTHERS: list[list[Layer]] = [
    [(first, is_first, both, layers, given), (second, is_first, not both, 1, given)]
    for first, second in ((nn.LSTM, nn.LSTM), (nn.GRU, nn.LSTM), (nn.GRU, nn.GRU))
    for is_first, both, layers, given in ((True, True, 1, False), (False, False, 2, True))
]
IDS = torch.randint(50, (12, 6), generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """Recurrent layers behind each other, over token ids (samples, steps)."""

    def __init__(self, kinds: list[Layer]) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.layers, self.starts = nn.ModuleList(), nn.ParameterList()
        width = 8
        for kind, samples_first, both, layers, given in kinds:
            self.layers.append(
                kind(width, 10, layers, batch_first=samples_first, bidirectional=both)
            )
            width = 20 if both else 10
            start = torch.randn(layers * (1 + both), 1, 10)
            self.starts.append(nn.Parameter(start, requires_grad=False) if given else None)
        self.head = nn.Linear(width, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer, start in zip(self.layers, self.starts, strict=True):
            x = x if layer.batch_first else x.transpose(0, 1)
            states = None if start is None else start.expand(-1, len(ids), -1).contiguous()
            given = (states, states) if isinstance(layer, nn.LSTM) and start is not None else states
            x = layer(x, given)[0]
            x = x if layer.batch_first else x.transpose(0, 1)
        return self.head(x[:, -1])


def tagger(kinds: list[Layer]) -> Tagger:
    torch.manual_seed(0)
    return Tagger(kinds).eval()


def largest_difference(path: Path, network: nn.Module) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", "sequence"]
    found = []
    for samples, steps in ((1, 6), (5, 6), (3, 4), (2, 9), (4, 1)):
        ids = torch.randint(50, (samples, steps), generator=torch.Generator().manual_seed(samples))
        got = session.run(None, {"ids": ids.numpy()})[0]
        found.append(np.abs(got - network(ids).detach().numpy()).max())
    return float(max(found))


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(LSTM_THEN_GRU, marks=pytest.mark.slow),
        ALL_KINDS,
        *(pytest.param(kinds, marks=pytest.mark.slow) for kinds in OTHERS),
    ],
)
def test_a_file_takes_any_number_of_samples_and_of_steps(kinds, tmp_path):
    network = tagger(kinds)
    path = export_onnx(network, IDS, tmp_path / "float.onnx").path
    assert largest_difference(path, network) < 1e-5
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("LSTM") + operators.count("GRU") == sum(kind[3] for kind in kinds)


@pytest.mark.parametrize("kinds", [LSTM_THEN_GRU, pytest.param(ALL_KINDS, marks=pytest.mark.slow)])
def test_a_quantized_file_takes_them_too(kinds, tmp_path):
    network = in_eight_bits(tagger(kinds), IDS)
    path = export_quantized(network, IDS, tmp_path / "small.onnx", calibration=IDS).path
    assert largest_difference(path, network) < 0.02


@pytest.mark.slow
def test_a_length_that_the_network_needs_is_fixed_in_the_file(tmp_path):
    # The exporter writes a plain RNN step by step.
    network = tagger([(nn.RNN, True, False, 1, False), (nn.GRU, True, False, 1, False)])
    path = export_onnx(network, IDS, tmp_path / "float.onnx").path
    session = open_session(path)
    assert session.get_inputs()[0].shape == ["batch", 6]
    with pytest.raises(ExportError, match=r"cannot run the exported network on ids \(2, 4\)"):
        run_named(session, {"ids": IDS[:2, :4]})

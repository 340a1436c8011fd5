"""Layers whose weights stand otherwise: transposed convolutions, and recurrent ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.costs import counted_macs
from support.networks.counted_networks import build
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace

SAMPLES = 3


def groups(traced: TracedModel) -> dict[str, int]:
    return {group.name: group.size for group in traced.graph.groups}


def assert_right(traced: TracedModel, batch: Tensor) -> None:
    """Random cuts: the slice equals the mask, and costs what the graph says."""
    full = traced.graph.full()
    for seed in range(3):
        kept = random_cut(groups(traced), torch.Generator().manual_seed(seed), None)
        small = traced.slice(kept)
        with torch.no_grad():
            assert difference(small(batch), traced.mask(kept)(batch)) <= 1e-4
        left = full | {name: float(len(units)) for name, units in kept.items()}
        claimed = sum(layer.macs(left) for layer in traced.graph.layers)
        assert claimed == counted_macs(small, batch[:1])
    small(batch).sum().backward()  # it can be trained on


# ---------------------------------------------------------------------- transposed convolutions


class UNet(nn.Module):
    """An encoder and a decoder with transposed convolutions, joined by skips."""

    def __init__(self, dims: int, groups: int = 1) -> None:
        super().__init__()
        conv, up, norm, pool = (
            getattr(nn, f"{kind}{dims}d")
            for kind in ("Conv", "ConvTranspose", "BatchNorm", "MaxPool")
        )

        def block(i: int, o: int) -> nn.Module:
            return nn.Sequential(
                conv(i, o, 3, padding=1, bias=False), norm(o), nn.ReLU(),
                conv(o, o, 3, padding=1), nn.ReLU(),
            )  # fmt: skip

        self.down1, self.down2, self.pool = block(3, 8), block(8, 16), pool(2)
        self.up, self.norm = up(16, 8, 2, stride=2, groups=groups), norm(8)
        self.after, self.leave = block(16, 8), conv(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        deep = self.norm(self.up(self.down2(self.pool(skip))))
        return self.leave(self.after(torch.cat((deep, skip), 1)))


@pytest.mark.parametrize(("dims", "side"), [(1, 16), (2, 8), (3, 4)])
def test_transposed_convolutions_are_cut_on_both_sides(dims: int, side: int) -> None:
    torch.manual_seed(0)
    net, images = UNet(dims).eval(), torch.randn(SAMPLES, 3, *[side] * dims)
    traced = trace(net, images[:1])
    assert groups(traced) == {
        "down1.0": 8, "down1.3": 8, "down2.0": 16, "down2.3": 16, "up": 8,
        "after.0": 8, "after.3": 8,
    }  # fmt: skip
    assert_right(traced, images)
    kept = {"down2.3": torch.tensor([1, 4, 9]), "up": torch.tensor([0, 5])}
    assert traced.kept_inputs("up", kept).tolist() == [1, 4, 9]
    assert traced.kept_outputs("up", kept).tolist() == [0, 5]
    assert torch.equal(traced.slice(kept).up.weight, net.up.weight[[1, 4, 9]][:, [0, 5]])


def test_groups_of_a_transposed_convolution_stay_equally_wide() -> None:
    torch.manual_seed(0)
    net, images = UNet(2, groups=2).eval(), torch.randn(SAMPLES, 3, 8, 8)
    traced = trace(net, images[:1])
    assert groups(traced)["up"] == 4
    assert groups(traced)["down2.3"] == 8
    assert_right(traced, images)


def test_a_depthwise_transposed_convolution_is_cut_with_its_inputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 12, 2, stride=2, groups=6),
        nn.Conv2d(12, 3, 1),
    )  # fmt: skip
    images = torch.randn(SAMPLES, 3, 6, 6)
    traced = trace(net.eval(), images[:1])
    assert groups(traced) == {"0": 8, "3": 6}
    assert_right(traced, images)


def test_a_weight_that_is_used_both_ways_round_stays_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(6, 9, 3), nn.ConvTranspose2d(9, 6, 3)
            self.up.weight = self.down.weight
            self.enter, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.up(self.down(self.enter(x)).relu()).relu())

    graph = trace(Tied().eval(), torch.randn(1, 3, 6, 6)).graph
    assert not graph.groups
    assert "both ways round" in graph.frozen["down"]


# ---------------------------------------------------------------------- recurrent layers


@pytest.mark.parametrize(
    ("name", "layer", "units"),
    [
        ("lstm", "recurrent.weight_ih_l0", 6),
        ("lstm_both_ways", "recurrent.weight_ih_l0", 6),
        ("lstm_packed", "recurrent.weight_ih_l0", 6),
        ("gru", "recurrent.weight_ih_l0", 6),
        ("rnn", "recurrent.weight_ih_l0", 6),
        ("rnn_cell", "cell.weight_hh", 6),
        ("gru_cell", "cell.weight_ih", 6),
        ("lstm_cell", "cell.weight_hh", 6),
    ],
)
def test_units_of_recurrent_layers_are_cut_with_all_their_gates(
    name: str, layer: str, units: int
) -> None:
    net, example = build(name)
    batch = torch.cat((example, torch.randn(2, *example.shape[1:])))
    traced = trace(net, example)
    assert groups(traced)[layer] == units
    assert_right(traced, batch)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_a_cut_of_units_is_that_of_the_formulas(
    kind: Callable[..., nn.RNNBase], gates: int
) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 8, num_layers=2, bidirectional=True, batch_first=True)
            self.leave = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.rnn(x)[0])

    net, units = Net().eval(), torch.tensor([0, 3, 4, 7])
    rows = torch.cat([units + 8 * gate for gate in range(gates)])
    small = trace(net, torch.randn(1, 5, 3)).slice({"rnn.weight_ih_l0": units})
    by_hand = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for name, weight in by_hand.named_parameters():
            whole = getattr(net.rnn, name)[rows]
            if "weight_hh" in name:
                whole = whole[:, units]
            elif "weight_ih_l1" in name:
                whole = whole[:, torch.cat((units, units + 8))]
            weight.copy_(whole)
    x = torch.randn(SAMPLES, 7, 3)
    with torch.no_grad():
        assert torch.allclose(small.rnn(x)[0], by_hand(x)[0], atol=1e-6)
    assert (small.rnn.hidden_size, small.rnn.input_size) == (4, 3)


def test_a_decoder_that_starts_from_an_encoder_has_its_units() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = (nn.GRU(3, 8, batch_first=True) for _ in range(2))
            self.leave = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.decoder(x.flip(1), self.encoder(x)[1])[0])

    torch.manual_seed(0)
    batch = torch.randn(SAMPLES, 5, 3)
    traced = trace(Net().eval(), batch[:1])
    assert groups(traced) == {"encoder.weight_ih_l0": 8}
    assert_right(traced, batch)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_with_a_projection_keep_their_widths() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(3, 9), nn.Linear(4, 2)
            self.rnn = nn.LSTM(9, 8, proj_size=4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.rnn(self.enter(x))[0])

    traced = trace(Net().eval(), torch.randn(1, 5, 3))
    assert groups(traced) == {"enter": 9}
    assert "projection" in traced.graph.frozen["rnn.weight_hr_l0"]
    assert "projection" in traced.graph.frozen["rnn.weight_ih_l0"]


def test_a_first_state_of_fixed_width_keeps_the_units() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.leave = nn.GRUCell(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), 8)
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.leave(state)

    graph = trace(Net().eval(), torch.randn(1, 5, 3)).graph
    assert not graph.groups
    assert graph.frozen["cell.weight_ih"]


# ---------------------------------------------------------------------- bare products


class Upright(nn.Module):
    """A linear layer whose weight is the matrix of the product itself, as in GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.width = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = x.size()[:-1] + (self.width,)  # noqa: RUF005 (as GPT-2 writes it)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def test_a_weight_that_is_multiplied_as_it_is_has_its_outputs_along_axis_1() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Upright(4, 9), nn.GELU(), Upright(9, 7), nn.ReLU(), nn.Linear(7, 2))
    batch = torch.randn(SAMPLES, 5, 4)
    traced = trace(net.eval(), batch[:1])
    assert groups(traced) == {"0": 9, "2": 7}
    assert_right(traced, batch)


# ---------------------------------------------------------------------- tables


class Words(nn.Module):
    """Tokens and places are looked up and added to what layers make of them."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 12), nn.Embedding(9, 12)
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)
        self.leave = nn.Linear(12, 20, bias=False)
        if tied:
            self.leave.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        t = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.leave(t + self.down(self.up(t).relu()))


@pytest.mark.parametrize("tied", [False, True])
def test_tables_are_cut_with_the_layers_that_write_beside_them(tied: bool) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (SAMPLES, 7))
    net = Words(tied).eval()
    traced = trace(net, ids[:1])
    assert groups(traced) == {"down": 12, "up": 16}
    assert_right(traced, ids)
    small = traced.slice({"down": torch.tensor([1, 5, 6])})
    assert (small.words.embedding_dim, small.places.weight.shape) == (3, (9, 3))
    assert (small.leave.weight is small.words.weight) == tied
    assert groups(trace(net, ids[:1], ignore=["words"])) == {"up": 16}


def test_a_table_that_nothing_writes_beside_stays_whole() -> None:
    net = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    assert groups(trace(net.eval(), torch.randint(0, 20, (1, 5)))) == {"1": 6}

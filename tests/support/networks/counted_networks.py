"""Small networks whose costs are easily counted wrongly: recurrent, attention, shared, routed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CLASSES = 5
STEPS = 9


class Recurrent(nn.Module):
    """Convolutions in front of a recurrent layer, two linear layers behind it."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv1d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv1d(12, 8, 3, padding=1), nn.ReLU()
        )
        self.recurrent = kind(8, 6, batch_first=True, **options)
        with torch.no_grad():
            width = self.recurrent(torch.zeros(1, 2, 8))[0].shape[-1]
        self.hidden = nn.Linear(width, 16)
        self.leave = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states = self.recurrent(self.enter(x).transpose(1, 2))[0]
        return self.leave(self.hidden(states[:, -1]).relu())


class Cells(nn.Module):
    """A recurrent cell in a loop of Python."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.enter, self.cell = nn.Conv1d(3, 8, 3, padding=1), kind(8, 6)
        self.hidden, self.leave = nn.Linear(6, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.enter(x).relu().unbind(2):
            state = self.cell(step, state)
        last = state[0] if isinstance(state, tuple) else state
        return self.leave(self.hidden(last).relu())


class Packed(Recurrent):
    """Sequences of different lengths in one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        states = self.enter(x).transpose(1, 2)
        lengths = [STEPS - 2] * len(x)
        packed = nn.utils.rnn.pack_padded_sequence(states, lengths, batch_first=True)
        last = self.recurrent(packed)[1][0][-1]
        return self.leave(self.hidden(last).relu())


class Attention(nn.Module):
    """A transformer block; several heads of the query may share a key and a value."""

    def __init__(self, heads: int, shared: int, how: str, width: int = 4, causal: bool = False):
        super().__init__()
        self.heads, self.shared, self.how, self.width = heads, shared, how, width
        self.causal = causal
        inner, few = heads * width, shared * width
        self.enter, self.norm = nn.Conv1d(3, 10, 1), nn.LayerNorm(10)
        self.q, self.k, self.v = (nn.Linear(10, w, bias=False) for w in (inner, few, few))
        self.o = nn.Linear(inner, 10)
        self.up, self.down, self.leave = nn.Linear(10, 24), nn.Linear(24, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        t = self.enter(x).transpose(1, 2)
        y = self.norm(t)
        q, k, v = (
            f(y).unflatten(-1, (-1, self.width)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        t = t + self.o(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return self.leave((t + self.down(F.gelu(self.up(t)))).mean(1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.how == "kernel":
            grouped = self.heads != self.shared
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=self.causal, enable_gqa=grouped
            )
        copies = self.heads // self.shared
        if self.how == "repeated":
            k, v = (x.repeat_interleave(copies, 1) for x in (k, v))
        else:
            k, v = (
                x[:, :, None].expand(-1, -1, copies, -1, -1).reshape(len(x), -1, *x.shape[2:])
                for x in (k, v)
            )
        weights = torch.einsum("bhik,bhjk->bhij", q, k).div(self.width**0.5).softmax(-1)
        return weights @ v


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.attention = (
            nn.Conv1d(3, 8, 1),
            nn.MultiheadAttention(8, 2, batch_first=True),
        )
        self.up, self.leave = nn.Linear(8, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        t = self.enter(x).transpose(1, 2)
        return self.leave(self.up(t + self.attention(t, t, t)[0]).relu().mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(3, 8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 24, batch_first=True)
        self.leave = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.layer(self.enter(x).transpose(1, 2)).mean(1))


class Products(nn.Module):
    """Products of activations, of a matrix with a vector, and of a raw parameter."""

    macs_by_hand = 8 * STEPS  # the matrix with the vector

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(3, 8, 1)
        self.mixing = nn.Parameter(torch.randn(STEPS, STEPS))
        self.direction = nn.Parameter(torch.randn(STEPS))
        self.both, self.hidden = nn.Bilinear(8, 8, 12), nn.Linear(12, 24)
        self.leave = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu() @ self.mixing, self.b(x).relu()
        gram = torch.einsum("bci,bdi->bcd", a, b)
        a = torch.bmm(gram, b)
        return self.leave(self.hidden(self.both(a @ self.direction, b.mean(2))).relu())


class OneRow(nn.Module):
    """Linear layers on a vector without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.a = nn.Conv1d(3, 8, 3), nn.Linear(8, 12)
        self.leave = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.leave(self.a(row).relu()) for row in self.enter(x).relu().mean(2)]
        return torch.stack(rows)


class Experts(nn.Module):
    """A gate sends every input to one of three experts."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate = nn.Linear(3 * STEPS, 12), nn.Linear(12, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12)) for _ in range(3)
        )
        self.leave = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        t = self.enter(x.flatten(1)).relu()
        chosen, out = self.gate(t).argmax(1), torch.zeros_like(t)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                out = out.index_copy(0, rows, expert(t[rows]))
        return self.leave(t + out)


class Shared(nn.Module):
    """One weight in two layers with biases of their own, and one bias in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.second = (
            nn.Linear(27, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 12),
        )
        self.second.weight = self.first.weight
        self.third, self.fourth = nn.Linear(12, 10), nn.Linear(12, 10)
        self.fourth.bias = self.third.bias
        self.leave = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        t = self.second(self.first(self.enter(x.flatten(1)).relu()).relu()).relu()
        return self.leave((self.third(t) + self.fourth(t)).relu())


class Buffers(nn.Module):
    """Buffers of channels that are stored, that are not, and that are no floats."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv1d(3, 12, 3), nn.BatchNorm1d(12)
        self.register_buffer("scale", torch.rand(12, 1) + 0.5)
        self.register_buffer("shift", torch.rand(12, 1), persistent=False)
        self.register_buffer("power", torch.ones(12, 1, dtype=torch.int64))
        self.body, self.leave = nn.Conv1d(12, 12, 3), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        t = self.norm(self.enter(x)) * self.scale * self.power + self.shift
        return self.leave(self.body(t.relu()).mean(2))


def _stacked(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(2), _Mean(), nn.Linear(8, CLASSES))


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


SEQUENCE = (3, STEPS)
IMAGE = (3, 6, 6)
VOLUME = (3, 4, 4, 4)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCE),
    "lstm_both_ways": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), SEQUENCE),
    "lstm_packed": (lambda: Packed(nn.LSTM), SEQUENCE),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2), SEQUENCE),
    "rnn": (lambda: Recurrent(nn.RNN, bidirectional=True), SEQUENCE),
    "rnn_cell": (lambda: Cells(nn.RNNCell), SEQUENCE),
    "gru_cell": (lambda: Cells(nn.GRUCell), SEQUENCE),
    "lstm_cell": (lambda: Cells(nn.LSTMCell), SEQUENCE),
    "attention": (lambda: Attention(4, 4, "kernel"), SEQUENCE),
    "attention_causal": (lambda: Attention(4, 4, "kernel", causal=True), SEQUENCE),
    "grouped_2": (lambda: Attention(4, 2, "kernel"), SEQUENCE),
    "grouped_3": (lambda: Attention(6, 2, "kernel"), SEQUENCE),
    "grouped_causal": (lambda: Attention(6, 3, "kernel", causal=True), SEQUENCE),
    "grouped_all": (lambda: Attention(4, 1, "kernel"), SEQUENCE),
    "grouped_repeated": (lambda: Attention(6, 3, "repeated"), SEQUENCE),
    "grouped_expanded": (lambda: Attention(6, 3, "expanded"), SEQUENCE),
    "multi_head": (MultiHead, SEQUENCE),
    "encoder": (Encoder, SEQUENCE),
    "products": (Products, SEQUENCE),
    "one_row": (OneRow, SEQUENCE),
    "experts": (Experts, SEQUENCE),
    "shared": (Shared, SEQUENCE),
    "buffers": (Buffers, SEQUENCE),
    "conv1d": (
        lambda: _stacked(nn.Conv1d(3, 16, 3), nn.ReLU(), nn.Conv1d(16, 8, 3, 2)),
        SEQUENCE,
    ),
    "conv3d": (lambda: _stacked(nn.Conv3d(3, 12, 3), nn.ReLU(), nn.Conv3d(12, 8, 1)), VOLUME),
    "grouped_conv": (
        lambda: _stacked(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(), nn.Conv2d(16, 8, 1),
        ),
        IMAGE,
    ),
    "transposed": (
        lambda: _stacked(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
            nn.Conv2d(16, 8, 1),
        ),
        IMAGE,
    ),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Returns the network in eval mode and an example of one."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return make().eval(), torch.randn(1, *shape)

"""Criteria of what units do on data, and the influence of blocks, against loops over samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.reconstruction import prepare_reconstruction
from amc_compress.learners.channel_pruning.criteria import CRITERIA
from amc_compress.learners.channel_pruning.ranking import group_contexts
from amc_compress.learners.networks.block_influence import Span, block_influence
from amc_compress.learners.tasks.inputs import Call, Split
from amc_compress.learners.tracing.traced_model import trace
from amc_env.errors import InputDataError

WIDTH, HEADS, SIZE = 8, 2, 3


class Block(nn.Module):
    """Attention of two heads and an MLP, behind a convolution of two groups over the tokens.

    Of layers with a bias the moments are kept around the mean, of others as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(4, WIDTH, 3, padding=1, groups=2)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * SIZE) for _ in range(3))
        self.out = nn.Linear(HEADS * SIZE, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)
        self.leave = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.enter(x).relu()).transpose(1, 2)
        q, k, v = (
            m(x).view(*x.shape[:2], -1, SIZE).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.leave(x + self.down(self.up(x).relu()))


def inputs_of(net: nn.Module, layer: str, batch: Tensor) -> Tensor:
    """Returns rows of what a layer multiplies, (positions, conv groups, columns)."""
    seen: list[Tensor] = []
    module = net.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        net(batch)
    handle.remove()
    if isinstance(module, nn.Conv1d):
        unfolded = F.unfold(seen[0][:, :, None], (1, 3), padding=(0, 1))
        return unfolded.transpose(1, 2).reshape(
            -1, module.groups, unfolded.shape[1] // module.groups
        )
    return seen[0].reshape(-1, 1, seen[0].shape[-1])


def slow(net: nn.Module, layer: str, batch: Tensor, units: list[list[int]]) -> tuple[list, list]:
    """Both scores, number by number."""
    rows, weight = (
        inputs_of(net, layer, batch).double(),
        net.get_submodule(layer).weight.detach().double(),
    )
    groups = rows.shape[1]
    weight = weight.reshape(groups, -1, rows.shape[2])
    weighted, energies = [], []
    for columns in units:
        score = energy = 0.0
        for g in range(groups):
            for j in columns:
                norm = sum(float(row[g, j]) ** 2 for row in rows) / len(rows)
                score += sum(abs(w) for w in weight[g, :, j].tolist()) * norm**0.5
            for row in rows:
                energy += float((weight[g][:, columns] @ row[g, columns]).square().sum()) / len(
                    rows
                )
        weighted.append(score)
        energies.append(energy)
    outputs = sum(float((weight[g] @ row[g]).square().sum()) for row in rows for g in range(groups))
    return weighted, [energy / (outputs / len(rows)) for energy in energies]


def test_scores_on_data_equal_their_formulas() -> None:
    torch.manual_seed(0)
    net, batch = Block().eval(), torch.randn(5, 4, 6) + 1.0
    traced = trace(net, batch[:1])
    readers = {
        "enter": ("mix", [[3 * c + k for k in range(3)] for c in range(4)]),
        "q": ("out", [[SIZE * h + i for i in range(SIZE)] for h in range(HEADS)]),
        "up": ("down", [[i] for i in range(6)]),
    }
    statistics = collect_statistics(net, [batch], [x for x, _ in readers.values()], positions=10**6)
    layers = prepare_reconstruction(net, statistics, {})
    contexts = {c.name: c for c in group_contexts(traced, net, layers, [Split(batch, None)], 0)}
    assert readers.keys() <= contexts.keys()
    for group, (layer, units) in readers.items():
        weighted, energies = slow(net, layer, batch, units)
        for name, expected in (("wanda", weighted), ("output_energy", energies)):
            found = CRITERIA[name](contexts[group])
            np.testing.assert_allclose(
                found.numpy(), expected, rtol=1e-4, err_msg=f"{name} {group}"
            )


def test_influence_of_blocks_equals_one_minus_the_cosines() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 4))
    batches = [torch.randn(3, 5, 4), torch.randn(2, 5, 4)]
    spans = {"block": Span("0", "1"), "branch": Span("2", "3", adds=True)}
    expected: dict[str, list[float]] = {name: [] for name in spans}
    with torch.no_grad():
        for token in torch.cat([b.flatten(0, 1) for b in batches]):
            middle = net[:2](token)
            pairs = {"block": (token, middle), "branch": (middle, middle + net[2:](middle))}
            for name, (x, y) in pairs.items():
                expected[name].append(1.0 - float(x @ y / (x.norm() * y.norm())))
    found = block_influence(net, batches, spans)
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values), rel=1e-5)
    assert net.training


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.idle = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.block(x)


def test_padding_has_no_influence_and_a_block_must_pass_its_stream_on() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch, net = Call((), {"x": x, "attention_mask": mask}), Texts()
    found = block_influence(net, [batch], {"block": Span("block", "block")})
    there = x[mask.bool()]
    cosines = F.cosine_similarity(there, net.block(there), -1)
    assert found["block"] == pytest.approx(1.0 - float(cosines.detach().mean()), rel=1e-5)
    with pytest.raises(InputDataError, match="none of 'idle'"):
        block_influence(net, [batch], {"idle": Span("idle", "idle")})
    narrow = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(InputDataError, match="alike"):
        block_influence(narrow, [x], {"all": Span("0", "0")})

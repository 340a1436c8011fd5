"""Moments piece by piece: the same numbers, in the memory they may take, from files or anew."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners import ChannelPruning, UniformQuantization, WeightSparsification
from amc_compress.learners.candidates.moments.pieces import FittedLayers
from amc_compress.learners.candidates.moments.room import Room
from amc_compress.learners.testing.networks import EXAMPLE, Residual, make_data
from amc_env.plan import CompressionPlan

MEMORY = 8 * 40**2  # of the largest layer of the stack below, and of two small ones
LEARNERS = {
    "bits": (UniformQuantization, {"rounding": "gptq", "weight_bits": (3, 4)}),
    "zeros": (WeightSparsification, {"repair": "sparsegpt"}),
    "channels": (ChannelPruning, {"round_to": 2}),
}


class Stack(nn.Module):
    """Linear layers, one of which runs twice, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(20, 20), nn.Linear(20, 20)
        self.wide, self.last, self.idle = nn.Linear(20, 40), nn.Linear(40, 5), nn.Linear(5, 5)
        self.runs: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "again", "again", "wide", "last"):
            self.runs.append(name)
            x = torch.tanh(getattr(self, name)(x))
        return x


def fitted(net: Stack, room: Room) -> FittedLayers:
    batches = list(torch.randn(60, 20, generator=torch.Generator().manual_seed(0)).split(20))
    names = ["first", "again", "wide", "last", "idle"]
    return FittedLayers(net, batches, names, {}, seed=0, room=room)


def test_passes_end_behind_their_piece_and_give_the_moments_of_one_pass():
    torch.manual_seed(0)
    net = Stack().eval()
    whole = fitted(net, Room())
    assert len(net.runs) == 5 * 3
    parts = fitted(net, Room(MEMORY))
    runs = parts._network.runs  # of a copy that shares the weights
    assert parts._network.first.weight is net.first.weight
    assert [len(x) for x in (whole._pieces, parts._pieces)] == [1, 2]
    assert parts._pieces == [["first", "again", "wide"], ["last", "idle"]]
    runs.clear()
    parts._take(["first"])
    assert runs == ["first"] * 3
    runs.clear()
    parts._take(["idle"])
    assert not runs
    assert list(whole) == list(parts) == ["first", "again", "wide", "last"]
    assert "idle" not in parts
    for name in (*whole, *whole):
        assert torch.equal(whole[name].gram, parts[name].gram)
        assert torch.equal(whole[name].mean, parts[name].mean)
        assert sum(x.nbytes for x in parts._held.values()) <= 1.5 * MEMORY
    parts.tell("first", ridge=0.5)
    list(parts.values())
    assert parts["first"].ridge == 0.5
    folder = parts._scratch.files.folder
    assert len(list(folder.iterdir())) == 4
    del parts
    assert not folder.exists()


@pytest.mark.parametrize(
    "kind",
    ["bits", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("zeros", "channels"))],
)
def test_learners_find_the_same_in_little_memory(kind):
    learner_class, options = LEARNERS[kind]
    train, validation = make_data(96, 0), make_data(64, 1)

    def prepared(**room):
        torch.manual_seed(0)
        given = {"n_calibration": 64, "seed": 0, **options, **room}
        return learner_class(Residual().eval(), EXAMPLE, train, validation, **given)

    whole = prepared()
    plan = CompressionPlan({d.key: d.choices[0] for d in whole.decisions})
    expected = [*whole.compress(plan).state_dict().values()], whole.evaluate(plan)
    for room in ({"moments_memory": 1}, {"moments_memory": 1, "scratch_disk": 0}):
        learner = prepared(**room)
        assert len(learner._layers._pieces) > 1
        for again in (learner, pickle.loads(pickle.dumps(learner))):
            found = [*again.compress(plan).state_dict().values()]
            assert all(torch.equal(x, y) for x, y in zip(found, expected[0], strict=True))
            assert again.evaluate(plan) == expected[1]
            assert len(again._layers._held) <= 1
    for found, curve in zip(
        learner.layer_errors().values(), whole.layer_errors().values(), strict=True
    ):
        assert (found == curve).all()

"""Channel pruning of networks whose channels are normalised over, or whose weights are computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.networks.normalised import NormFree, Transformer
from torch import Tensor, nn

from amc_compress.learners import ChannelPruning, WeightSparsification, load_packed, save_packed
from amc_compress.learners.candidates.norms_before import NormBefore, norms_before
from amc_env.plan import CompressionPlan

IMAGES = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def prepared(network: nn.Module, **options: object) -> ChannelPruning:
    network.eval()
    with torch.no_grad():
        classes = network(IMAGES).argmax(1)
    batches = [(IMAGES, classes)]
    return ChannelPruning(network, IMAGES[:1], batches, batches, round_to=1, **options)  # type: ignore[arg-type]


def plan(learner: ChannelPruning, share: float) -> CompressionPlan:
    return CompressionPlan({d.key: d.nearest(share) for d in learner.decisions})


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(IMAGES)  # type: ignore[no-any-return]


def test_a_repair_behind_a_layer_norm_brings_the_outputs_nearer() -> None:
    torch.manual_seed(0)
    network = Transformer()
    repaired, raw = (prepared(network, proxy=p) for p in ("reconstruction", "none"))
    stream = {d.key: d.nearest(0.75 if d.target == "embed" else 1.0) for d in raw.decisions}
    assert min(stream.values()) == 0.75
    wanted = outputs(network)
    lost, left = (
        float((outputs(x.compress(CompressionPlan(stream))) - wanted).square().mean())
        for x in (raw, repaired)
    )
    assert left < 0.7 * lost


class Readers(nn.Module):
    """Layers that read a norm as it is, and others that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.rms = nn.LayerNorm(6), nn.RMSNorm(6)
        self.inside, self.rooted = nn.Linear(6, 2), nn.Linear(6, 2)
        self.image, self.turned, self.changed, self.other = (
            nn.Conv2d(6, 2, 1), nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(6, 2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.norm(x)  # (batch, 6 tokens, 6 channels)
        read = [self.inside(y), self.rooted(self.rms(x)), self.turned(y.mT), self.other(x)]
        read.append(self.image(y.permute(0, 2, 1)[..., None]))
        return [*read, self.changed(F.relu(y, inplace=True))]


def test_who_reads_a_norm_is_told_by_memory() -> None:
    net = Readers().eval()
    readers = ("inside", "rooted", "image", "turned", "changed", "other")
    found = norms_before(net, torch.randn(2, 6, 6), readers)
    assert {name: norm.is_centred for name, norm in found.items()} == {
        "inside": True, "rooted": False, "image": True
    }  # fmt: skip


@pytest.mark.parametrize("is_centred", [True, False])
def test_moments_behind_a_norm_of_what_stays(is_centred: bool) -> None:
    """Against the norm itself, on rows whose variance over channels is always the same."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    kept = torch.tensor([0, 2, 3, 7])
    x = rows[:, kept] - (rows[:, kept].mean(1, keepdim=True) if is_centred else 0)
    rows[:, kept] /= x.square().mean(1, keepdim=True).sqrt() / 1.7
    scale, shift = torch.linspace(0.5, 2, 8), torch.linspace(-1, 1, 8)
    seen = rows * scale + shift
    wanted = rows[:, kept] - (rows[:, kept].mean(1, keepdim=True) if is_centred else 0)
    wanted = wanted / 1.7 * scale[kept] + shift[kept]
    mean, covariance = seen[:, kept].mean(0), seen[:, kept].T.cov(correction=0)
    change = NormBefore(scale, shift, is_centred, 0.0).of(kept, 1, (mean, covariance))
    torch.testing.assert_close(change.mean(mean), wanted.mean(0))
    moved = change.linear(change.linear(covariance).T)
    torch.testing.assert_close(moved, wanted.T.cov(correction=0))
    other = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(change.transposed(other), change.linear(identity).T @ other)


@pytest.mark.parametrize("criterion", ["l1", "taylor", "lasso"])
def test_weights_that_are_computed_with_are_sliced_and_not_repaired(criterion: str) -> None:
    torch.manual_seed(0)
    network = NormFree()
    learner = prepared(network, criterion=criterion)
    assert [d.units(d.choices[0]) for d in learner.decisions] == [2, 1, 2]
    assert set(learner.graph.computed) == {"stem", "first", "grouped", "last"}
    chosen = plan(learner, 0.5)
    small, kept = learner.compress(chosen), learner.kept_units(chosen)
    assert outputs(small).isfinite().all()
    for name in learner.graph.computed:
        rows, columns = (
            learner.traced.kept_outputs(name, kept), learner.traced.kept_inputs(name, kept)
        )  # fmt: skip
        weight = network.get_submodule(name).weight
        assert torch.equal(small.get_submodule(name).weight, weight[rows][:, columns])
    # The classifier is an ordinary layer: its weights are fitted.
    columns = learner.traced.kept_inputs("head", kept)
    assert not torch.equal(small.head.weight, network.head.weight[:, columns])
    assert all(
        len(x) == len(d.choices)
        for d, x in zip(learner.decisions, learner.gradient_scores().values(), strict=True)
    )


def test_computed_weights_get_no_zeros() -> None:
    torch.manual_seed(0)
    batches = [(IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64))]
    learner = WeightSparsification(NormFree().eval(), IMAGES[:1], batches, batches)
    assert [d.target for d in learner.decisions] == ["head"]


def test_a_packed_file_of_a_cut_stream_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Transformer()
    learner = prepared(network)
    small = learner.compress(plan(learner, 0.5))
    kept = learner.kept_units(plan(learner, 0.5))
    save_packed(small, tmp_path / "small.packed", kept=kept, example_input=IMAGES[:1])
    assert torch.equal(outputs(load_packed(tmp_path / "small.packed", network)), outputs(small))

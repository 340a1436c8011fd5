"""Channel pruning of networks whose channels are normalised over, or whose weights are computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.networks.normalised import NormFree, Transformer
from torch import Tensor, nn

from amc_compress.learners import ChannelPruning, WeightSparsification, load_packed, save_packed
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


@pytest.mark.parametrize("criterion", ["l1", "taylor", "lasso"])
def test_weights_that_are_computed_with_are_sliced_and_not_repaired(criterion: str) -> None:
    torch.manual_seed(0)
    network = NormFree()
    learner = prepared(network, criterion=criterion)
    assert all(d.units(d.choices[0]) >= 2 for d in learner.decisions)
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

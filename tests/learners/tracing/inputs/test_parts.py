"""Networks of which a part alone is cut; the rest is of any kind."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from support.costs import counted_bytes, counted_flops, counted_parameters
from torch import Tensor, nn

from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.quantization.uniform.learner import UniformQuantization
from amc_compress.learners.tasks.inputs import ask, to_inputs
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env import Budget, CompressionEnv
from amc_env.errors import InputDataError, UntraceableModelError
from amc_env.graph import LayerGraph

SIDE = 16


def block(i: int, o: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
    )


class Pyramid(nn.Module):
    """Three stages and a feature pyramid of them, in a dictionary."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [block(3, width), block(width, 2 * width, 2), block(2 * width, 2 * width, 2)]
        )
        self.sides = nn.ModuleList(nn.Conv2d(w, 6, 1) for w in (width, 2 * width, 2 * width))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps = [side(x) for side, x in zip(self.sides, maps, strict=True)]
        for i in (1, 0):
            size = maps[i].shape[-2:]
            maps[i] = maps[i] + nn.functional.interpolate(maps[i + 1], size=size)
        return OrderedDict((str(i), x) for i, x in enumerate(maps))


class Detector(nn.Module):
    """Pre- and post-processing by hand around a body: numpy, sorting, boxes that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"body": Pyramid(), "head": nn.Conv2d(6, 5, 3, padding=1)})
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))
        self.norm = nn.BatchNorm2d(5)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        pixels = torch.stack([torch.from_numpy(image.numpy().copy()) for image in images])
        maps = self.model["body"](pixels - self.mean[:, None, None])
        found: list[dict[str, Tensor]] = [{} for _ in images]
        for level in maps.values():
            scores = self.norm(self.model["head"](level)).flatten(2)
            for answer, sample in zip(found, scores, strict=True):
                best = sample[0].sort(descending=True).indices[: max(1, int(sample[0].sum() > 0))]
                boxes = torch.stack([sample[1:, int(i)] for i in best.tolist()])
                answer["boxes"] = torch.cat((answer["boxes"], boxes)) if answer else boxes
        return found


def images(n: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, SIDE, SIDE, generator=generator) for _ in range(n)]


def groups(traced: TracedModel) -> dict[str, int]:
    return {group.name: group.size for group in traced.graph.groups}


@pytest.fixture(scope="module")
def detector() -> tuple[Detector, TracedModel]:
    torch.manual_seed(0)
    net = Detector().eval()
    return net, trace(net, (images(2),), part="model.body")


def test_the_inside_of_a_part_is_cut_and_its_border_stays(
    detector: tuple[Detector, TracedModel],
) -> None:
    net, traced = detector
    start = "model.body.stages"
    assert groups(traced) == {f"{start}.0.0": 8, f"{start}.1.0": 16, f"{start}.2.0": 16}
    assert "output" in traced.graph.frozen["model.body.sides.0"]
    pixels = torch.stack(images(3, seed=1))
    for seed in range(3):
        kept = random_cut(groups(traced), torch.Generator().manual_seed(seed), None)
        small, masked = traced.slice(kept), traced.mask(kept)
        assert isinstance(small, Detector)
        assert small.model["head"].weight.shape == net.model["head"].weight.shape
        with torch.no_grad():
            parts = (x.model["body"](pixels) for x in (small, masked))
            assert difference(*parts) <= 1e-4
            assert [len(x["boxes"]) for x in small(images(3))]


def numbers(graph: LayerGraph, kept: dict[str, Tensor]) -> tuple[float, float, float]:
    at = graph.full() | {name: float(len(units)) for name, units in kept.items()}
    macs = sum(layer.macs(at) for layer in graph.layers)
    parameters = graph.other_parameters + sum(
        x.weights(at) + x.has_bias * x.out_width.at(at) for x in graph.layers if x.has_weights
    )
    buffers = float(graph.other_buffer_bytes)
    for entry in graph.channel_parameters:
        parameters += entry.n_parameters * entry.width.at(at)
        buffers += 4 * entry.n_buffers * entry.width.at(at)
    return macs, parameters, 4 * parameters + buffers


def test_costs_are_those_of_the_whole_network(detector: tuple[Detector, TracedModel]) -> None:
    net, traced = detector
    kept = random_cut(groups(traced), torch.Generator().manual_seed(5), None)
    for network, cut in ((net, {}), (traced.slice(kept), kept)):
        macs, parameters, size = numbers(traced.graph, cut)
        assert 2 * macs == counted_flops(network, images(1))
        assert parameters == counted_parameters(network)
        assert size == counted_bytes(network)
    outside = "all outside of model.body"
    assert traced.graph.fixed_shares()[outside] > 0.1
    assert any(outside in remark for remark in traced.graph.remarks())


def test_a_part_that_runs_several_times_counts_every_time() -> None:
    class Heads(nn.Module):
        """One head for three maps of different sizes."""

        def __init__(self) -> None:
            super().__init__()
            self.body = Pyramid()
            self.head = nn.Sequential(block(6, 10), nn.Conv2d(10, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            maps = self.body(x).values()
            return torch.cat([self.head(x).flatten(2) for x in maps], 2).sort(2).values

    torch.manual_seed(0)
    net, batch = Heads().eval(), torch.rand(3, 3, SIDE, SIDE)
    traced = trace(net, batch, part="head")
    assert groups(traced) == {"head.0.0": 10}
    kept = {"head.0.0": torch.tensor([1, 2, 7])}
    with torch.no_grad():
        assert difference(traced.slice(kept)(batch), traced.mask(kept)(batch)) <= 1e-4
    macs = numbers(traced.graph, kept)[0]
    assert 2 * macs == counted_flops(traced.slice(kept), batch[:1])


def test_a_part_may_be_called_with_anything() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 9), nn.Linear(9, 4)

        def forward(self, values: list[dict[str, Tensor]], *, power: int, note: object) -> Any:
            return [self.down(self.up(entry["x"]).relu() ** power) for entry in values]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Named()

        def forward(self, x: Tensor, *, times: int = 2) -> Tensor:
            steps = [{"x": x[i]} for i in range(len(x))]  # steps first, then samples
            return torch.stack(self.inner(steps, power=times, note=self)).sort(0).values

    torch.manual_seed(0)
    call = to_inputs((torch.randn(5, 2, 4),))
    net = Net().eval()
    traced = trace(net, call, part="inner")
    assert groups(traced) == {"inner.up": 9}
    kept = {"inner.up": torch.tensor([0, 8])}
    with torch.no_grad():
        assert difference(ask(traced.slice(kept), call), ask(traced.mask(kept), call)) <= 1e-4


def test_parts_that_cannot_be_cut_alone_are_named() -> None:
    class Reaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
            self.unused, self.tied = nn.Linear(4, 4), nn.Linear(4, 8)
            self.shared = nn.Sequential(nn.Linear(4, 8))
            self.shared[0].weight = self.tied.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + self.body[0].weight.sum() + self.tied(x).sum()

    net, x = Reaching().eval(), torch.randn(1, 4)
    with pytest.raises(InputDataError, match=r"got 'nothing'; there are body, unused, tied"):
        trace(net, x, part="nothing")
    with pytest.raises(InputDataError, match=r"run the part 'unused'"):
        trace(net, x, part="unused")
    with pytest.raises(UntraceableModelError, match=r"reads body\.0\.weight itself"):
        trace(net, x, part="body")
    with pytest.raises(UntraceableModelError, match=r"'shared\.0\.weight' is 'tied\.weight'"):
        trace(net, x, part="shared")


def test_a_rest_that_reads_widths_of_the_part_is_named() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + torch.ones(self.body[0].out_features).view(2, 4)

    with pytest.raises(UntraceableModelError, match="choose the part around the code"):
        trace(Reading().eval(), torch.randn(2, 4), part="body")


def test_learners_compress_the_inside_of_a_part_and_pack_it(tmp_path: Path) -> None:
    class Routed(nn.Module):
        """Data decide which way to go around a body."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(block(3, 16), block(16, 8), nn.Conv2d(8, 4, 1))
            self.bright, self.dark = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            pooled = self.body(x).mean((2, 3))
            rows = [self.bright(row) if row.sum() > 0 else self.dark(row) for row in pooled]
            return torch.stack(rows)

    torch.manual_seed(0)
    net = Routed().eval()
    batches = [(torch.randn(16, 3, 8, 8), torch.arange(16) % 4)]
    given = (net, batches[0][0][:1], batches, batches)
    learner = ChannelPruning(*given, part="body", round_to=1)
    assert [d.target for d in learner.decisions] == ["body.0.0", "body.1.0"]
    plan = CompressionEnv(learner, budget=Budget(macs=0.5)).uniform_plan()
    small = learner.compress(plan)
    ratio = counted_flops(small, batches[0][0]) / counted_flops(net, batches[0][0])
    assert 0.3 < ratio <= 0.5
    assert 0.0 <= learner.evaluate(plan) <= 1.0
    bits = UniformQuantization(*given, part="body")
    assert {d.target for d in bits.decisions} == {"body.1.0"}  # first and last have 8 bits

    path = tmp_path / "small.packed"
    kept = learner.kept_units(plan)
    save_packed(small, path, kept=kept, plan=plan, example_input=given[1], part="body")
    loaded = load_packed(path, Routed())
    with torch.no_grad():
        assert torch.equal(loaded(batches[0][0]), small(batches[0][0]))

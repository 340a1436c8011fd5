"""Code that runs only sometimes: both modes, both sides of a branch, other inputs."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
import torch
from support.costs import counted_parameters, graph_parameters
from support.networks.sometimes_networks import NETWORKS, Detector, Trunk, conv
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.cases import Case
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace

GENERATOR = torch.Generator().manual_seed(3)
EXAMPLE = torch.rand(1, 3, 16, 16, generator=GENERATOR)
INPUTS = [
    EXAMPLE,
    *(torch.randn(n, 3, h, w, generator=GENERATOR) for n, h, w in
      ((1, 16, 16), (2, 16, 16), (3, 12, 20), (2, 24, 32))),
    -torch.rand(2, 3, 16, 16, generator=GENERATOR),
    torch.full((2, 3, 16, 16), 1e4), torch.full((2, 3, 16, 16), 1e7),
    torch.zeros(1, 3, 16, 16),
]  # fmt: skip


@cache
def traced(name: str) -> TracedModel:
    torch.manual_seed(0)
    return trace(NETWORKS[name]().eval(), EXAMPLE)


def sizes(model: TracedModel) -> dict[str, int]:
    return {group.name: group.size for group in model.graph.groups}


def cuts(model: TracedModel) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [random_cut(sizes(model), generator, fraction) for fraction in (0.5, None)]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slice_is_right_in_both_modes_and_on_all_inputs(name: str) -> None:
    model = traced(name)
    for kept in cuts(model):
        small, masked = model.slice(kept).eval(), model.mask(kept).eval()
        for images in INPUTS:
            for training in (False, True) if len(images) > 1 else (False,):
                for seed in range(4):
                    case = Case(images, training=training, seed=seed)
                    got, want = case.run(small), case.run(masked)
                    if isinstance(want, Tensor) and not want.numel():
                        assert got.shape == want.shape
                    else:
                        assert difference(got, want) <= 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_what_runs_only_sometimes_does_not_keep_the_rest_whole(name: str) -> None:
    found = sizes(traced(name))
    assert found["a"] == 8
    assert "b" in found


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_of_all_layers_are_counted(name: str) -> None:
    model = traced(name)
    for kept in [{}, *cuts(model)]:
        counts = model.graph.full() | {group: float(len(units)) for group, units in kept.items()}
        assert graph_parameters(model.graph, counts) == counted_parameters(model.slice(kept))


def test_layers_of_training_are_stored_and_do_no_work() -> None:
    model = traced("AuxiliaryHead")
    assert [layer.name for layer in model.graph.layers] == ["a", "b", "head"]
    assert model.graph.frozen["aux.0"] == "it runs in training only"
    small = model.slice({"a": torch.tensor([0, 3])})
    assert small.aux[0].weight.shape == (5, 2, 1, 1)


def test_the_other_side_of_a_branch_is_cut_and_does_no_work() -> None:
    model = traced("TwoExperts")
    work = {layer.name: layer.positions for layer in model.graph.layers}
    assert work["bright"] == 256
    assert work["dark.0"] == work["dark.2"] == 0
    assert sizes(model)["dark.0"] == 7


def test_tracing_leaves_statistics_and_chance_as_they_were() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    net = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Dropout(), conv(4, 2)).train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    trace(net, EXAMPLE)
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


# ------------------------------------------------------------------ what cannot be seen


class Unreached(nn.Module):
    """A layer that a switch of the user's leads to, next to a block that knows nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.secret = conv(3, 8), conv(8, 8), conv(8, 8)
        self.block = nn.Sequential(conv(8, 6), nn.ReLU(), conv(6, 8))
        self.head = nn.Linear(8, 4)
        self.switch = "usual"

    def forward(self, x: Tensor) -> Tensor:
        z = self.block(self.a(x).relu())
        z = self.b(z) if self.switch == "usual" else self.secret(z)
        return self.head(z.relu().mean((2, 3)))


def test_what_may_feed_a_layer_that_never_ran_stays_whole() -> None:
    net = Unreached().eval()
    model = trace(net, EXAMPLE)
    assert sizes(model) == {"block.0": 6}  # nothing but what one block keeps to itself
    assert model.graph.frozen["secret"] == "no input that was tried runs it"
    for layer in ("a", "block.2", "b"):
        expected = "it may meet secret, which no input that was tried runs"
        assert model.graph.frozen[layer] == expected
    small = model.slice({"block.0": torch.tensor([1, 4])})
    small.switch = "other"
    with torch.no_grad():
        assert small(EXAMPLE).shape == (1, 4)


def _helped(net: nn.Module, z: Tensor) -> Tensor:
    return net.spare(z)


REACHED = {
    "named": lambda net, x, other=False: net.classify(
        net.spare(net.a(x)) if other else net.a(x).relu()
    ),
    "by string": lambda net, x, other=False: net.classify(
        getattr(net, "spare")(net.a(x)) if other else net.a(x).relu()  # noqa: B009
    ),
    "by helper": lambda net, x, other=False: net.classify(
        _helped(net, net.a(x)) if other else net.a(x).relu()
    ),
    "in general": lambda net, x, other=False: net.classify(
        list(net.children())[-1](net.a(x)) if other else net.a(x).relu()
    ),
    "never": lambda net, x, other=False: net.classify(net.a(x).relu()),
}


@pytest.mark.parametrize("way", ["named", "by string", "by helper", "in general", "never"])
def test_layers_that_no_code_names_keep_nothing_whole(way: str) -> None:
    class Leftover(Trunk):
        def __init__(self) -> None:
            super().__init__()
            self.spare = conv(8, 8)

        forward = REACHED[way]

    net = Leftover().eval()
    model = trace(net, EXAMPLE)
    if way == "never":
        assert sizes(model) == {"a": 8, "b": 6}
        assert model.graph.frozen["spare"] == "nothing runs it"
    else:
        assert not sizes(model)
        assert "spare" in model.graph.frozen["a"]


class Leading(Trunk):
    """Its methods name ``spare``; which of them run is the business of a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = conv(8, 8)

    def features(self, x: Tensor, other: bool = False) -> Tensor:
        return self.spare(self.a(x)) if other else self.a(x).relu()

    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        return self.classify(self.features(x, other))


class Overridden(Leading):
    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        return self.classify(self.a(x).relu())


class Inheriting(Leading):
    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        return super().forward(x, other)


class ByItsBase(Leading):
    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        return Leading.forward(self, x, other)


class Decorated(Overridden):
    @torch.no_grad()
    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        return self.classify(self.features(x, other))


class Outside(nn.Module):
    """Another module calls the method."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Overridden()

    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        return self.inner.classify(self.inner.features(x) if other else self.inner.a(x).relu())


@pytest.mark.parametrize("kind", [Leading, Overridden, Inheriting, ByItsBase, Decorated, Outside])
def test_methods_that_nothing_calls_keep_nothing_whole(kind: type[nn.Module]) -> None:
    model = trace(kind().eval(), EXAMPLE)
    if kind is Overridden:
        assert sizes(model) == {"a": 8, "b": 6}
        assert model.graph.frozen["spare"] == "nothing runs it"
    else:
        assert "spare" in model.graph.frozen["inner.a" if kind is Outside else "a"]


def test_a_weight_that_its_module_did_not_use_keeps_the_module_whole() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(8, 1, 1))
            self.inside = conv(8, 8)

        def forward(self, x: Tensor, masked: bool = False) -> Tensor:
            return self.inside(x + self.token if masked else x)

    net = nn.Sequential(conv(3, 8), conv(8, 8), Own(), conv(8, 4))
    model = trace(net.eval(), EXAMPLE)
    assert sizes(model) == {"0": 8}
    assert "2.token" in model.graph.frozen["1"]


# ------------------------------------------------------------------ proofs that compare nothing


class HandWritten(Trunk):
    """Channel numbers written by hand: a cut of ``a`` is wrong."""

    def __init__(self, scale: float = 1.0, threshold: float | None = None) -> None:
        super().__init__()
        self.scale, self.threshold = scale, threshold

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu().clone()
        z[:, :4] = z[:, :4] * 2
        z[:, 4:].add_(1.0)
        out = self.classify(z) * self.scale
        return out if self.threshold is None else out[out[:, 0] > self.threshold]


@pytest.mark.parametrize("scale", [1e6, 1.0, 1e-3, 1e-5, 1e-7, 1e-9])
def test_a_wrong_cut_is_found_whatever_the_scale_of_the_output(scale: float) -> None:
    torch.manual_seed(0)
    model = trace(HandWritten(scale).eval(), EXAMPLE)
    assert sizes(model) == {"b": 6}
    assert "a cut changes the output" in model.graph.frozen["a"]


@pytest.mark.parametrize("threshold", [-1e9, 0.0, 1e9])
def test_outputs_that_are_empty_prove_nothing(threshold: float) -> None:
    torch.manual_seed(0)
    model = trace(HandWritten(threshold=threshold).eval(), EXAMPLE)
    assert "a" not in sizes(model)
    if threshold == 1e9:
        assert not sizes(model)
        expected = "no output that was seen depends on it, so a comparison proves nothing"
        assert all(model.graph.frozen[layer].startswith(expected) for layer in "ab")


def test_an_output_that_is_rarely_there_is_looked_for() -> None:
    """On the example, and with the network's own weights, this one finds nothing."""
    net = Detector()
    net.threshold = 0.2
    nn.init.constant_(net.head.bias, -5.0)
    model = trace(net.eval(), EXAMPLE)
    with torch.no_grad():
        assert not net(EXAMPLE).numel()
    assert sizes(model) == {"a": 8, "b": 6}


def test_an_output_that_is_there_does_not_prove_one_that_is_not() -> None:
    class Two(HandWritten):
        def __init__(self) -> None:
            super().__init__(threshold=1e9)
            self.plain = nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return self.plain(x), super().forward(x)

    assert sizes(trace(Two().eval(), EXAMPLE)) == {"plain.0": 5}


@pytest.mark.parametrize("output", [torch.zeros(2, 0), (), torch.tensor([float("nan")])])
def test_nothing_compared_is_no_agreement(output: object) -> None:
    assert difference(output, output) == float("inf")


def test_each_output_is_compared_by_its_own_scale() -> None:
    large, small = torch.tensor([1e6, -1.0]), torch.tensor([1e-6, 2e-6])
    wrong = small * torch.tensor([1.0, 1.1])
    assert difference((large, small), (large, small)) == 0.0
    assert difference((large, wrong), (large, small)) == pytest.approx(0.1, rel=1e-5)
    infinite = torch.tensor([float("-inf"), 1.0])
    assert difference(infinite, infinite) == 0.0
    assert difference(torch.zeros(2), torch.zeros(2)) == 0.0
    assert difference(torch.ones(2), torch.zeros(2)) == float("inf")


@pytest.mark.parametrize("last", ["zero", "constant"])
def test_a_last_layer_at_its_first_values_hides_nothing(last: str) -> None:
    net = HandWritten()
    nn.init.constant_(net.head.weight, 0.0 if last == "zero" else 0.1)
    model = trace(net.eval(), EXAMPLE)
    assert sizes(model) == {"b": 6}

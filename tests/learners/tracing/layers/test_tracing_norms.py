"""Channels that a norm or a mean runs over are cut, and the norm is taken over what stays.

The definition is built here once more, by hand: a network of full size whose norms loop over the
channels that stay, whose kernels are standardised over the inputs that stay, and whose layers have
zeros for what is cut.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.networks.normalised import (
    NORMALISED,
    GlobalResponseNorm,
    MeanNorm,
    NormFree,
    PoolFormer,
    ScaledConv,
    StandardisedConv,
    VarianceNorm,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amc_compress.learners.channel_pruning.decisions import keep_ratio_decisions
from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.labels.counting import visible_attention
from amc_compress.learners.tracing.masking.absence import Absence
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.recorded_tasks.facts_json import task_from_json, task_to_json

EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
BATCH = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
Kept = Mapping[str, Tensor]


@pytest.fixture(scope="module", params=NORMALISED)
def case(request: pytest.FixtureRequest) -> tuple[str, TracedModel]:
    torch.manual_seed(0)
    return request.param, trace(NORMALISED[request.param][0]().eval(), EXAMPLE)


def sizes(model: TracedModel) -> dict[str, int]:
    return {group.name: group.size for group in model.graph.groups}


def cut(model: TracedModel, seed: int, share: float | None = None) -> dict[str, Tensor]:
    least = {group.name: group.least for group in model.graph.groups}
    return random_cut(sizes(model), torch.Generator().manual_seed(seed), share, least)


# ------------------------------------------------------------------ the definition, by hand


class Loop(nn.Module):
    """A norm over some coordinates, one number after the other.

    Args:
        like: The norm.
        kept: Coordinates that count.
    """

    def __init__(self, like: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.like, self.kept = like, kept.tolist()

    def forward(self, x: Tensor) -> Tensor:
        like = self.like
        if isinstance(like, VarianceNorm):
            return self._rows(x.permute(0, 2, 3, 1), 1e-6, True).permute(0, 3, 1, 2)
        if isinstance(like, nn.GroupNorm):
            return torch.stack([self._image(image) for image in x])
        if isinstance(like, GlobalResponseNorm):
            return self._response(x)
        is_centred = isinstance(like, nn.LayerNorm)
        eps = 1e-6 if isinstance(like, MeanNorm) else like.eps
        eps = torch.finfo(x.dtype).eps if eps is None else float(eps)  # type: ignore[arg-type]
        return self._rows(x, eps, is_centred)

    def _rows(self, x: Tensor, eps: float, is_centred: bool) -> Tensor:
        rows = []
        for row in x.reshape(-1, x.shape[-1]):
            values = [float(row[k]) for k in self.kept]
            mean = sum(values) / len(values) if is_centred else 0.0
            spread = sum((value - mean) ** 2 for value in values) / len(values)
            rows.append((row - mean) / math.sqrt(spread + eps))
        y = torch.stack(rows).view(x.shape) * self.like.weight
        return y if getattr(self.like, "bias", None) is None else y + self.like.bias

    def _image(self, image: Tensor) -> Tensor:
        values = [value for k in self.kept for value in image[k].flatten().tolist()]
        mean = sum(values) / len(values)
        spread = sum((value - mean) ** 2 for value in values) / len(values)
        y = (image - mean) / math.sqrt(spread + self.like.eps)  # type: ignore[operator]
        return y * self.like.weight[:, None, None] + self.like.bias[:, None, None]  # type: ignore[index]

    def _response(self, x: Tensor) -> Tensor:
        response = x.square().sum((1, 2), keepdim=True).sqrt()
        mean = sum(response[..., k] for k in self.kept) / len(self.kept)
        share = response / (mean.unsqueeze(-1) + 1e-6)
        return self.like.gamma * (x * share) + self.like.beta + x  # type: ignore[operator]


def standardised(conv: nn.Conv2d, rows: Tensor, columns: Tensor) -> nn.Conv2d:
    """Returns an ordinary convolution with the weights that a cut one computes, of full size."""
    plain = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
        groups=conv.groups,
    )  # type: ignore[arg-type]  # fmt: skip
    plain.weight.data.zero_()
    plain.bias.data.copy_(conv.bias)
    for row in rows.tolist():
        values = conv.weight[row, columns]
        mean = values.sum() / values.numel()
        spread = (values - mean).square().sum() / values.numel()
        eps = 1e-6 if isinstance(conv, ScaledConv) else 1e-10
        gain = conv.gain[row] * conv.scale if isinstance(conv, ScaledConv) else 1.0
        plain.weight.data[row, columns] = (values - mean) / (spread + eps).sqrt() * gain
    return plain


def by_hand(model: TracedModel, kept: Kept) -> nn.Module:
    """Returns the network that a slice must equal."""
    network = copy.deepcopy(model.model)
    widths = {name: torch.arange(size) for name, size in sizes(model).items()} | dict(kept)
    for name, module in list(network.named_modules()):
        if isinstance(module, ScaledConv | StandardisedConv):
            rows, columns = model.kept_outputs(name, kept), model.kept_inputs(name, kept)
            network.set_submodule(name, standardised(module, rows, columns))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            columns = model.kept_inputs(name, kept)
            stays = torch.zeros(module.weight.shape[1], dtype=torch.bool)
            stays[columns] = True
            module.weight.data[:, ~stays] = 0
        elif isinstance(
            module,
            nn.LayerNorm | nn.RMSNorm | MeanNorm | VarianceNorm | GlobalResponseNorm | nn.GroupNorm,
        ):
            network.set_submodule(name, Loop(module, _channels(name, module, widths)))
    return network


def _channels(name: str, module: nn.Module, widths: Kept) -> Tensor:
    """Which channels of the test networks stay at a norm."""
    if isinstance(module, GlobalResponseNorm):
        return widths[name.replace("response", "wide")]
    if name.startswith("attention.of"):
        return torch.arange(4)  # all of a head
    streams = [widths[key] for key in ("stem", "embed") if key in widths]
    if "reduce" in widths:
        if name == "last":
            return widths["reduce"]
        if name == "second":  # four patches side by side
            return torch.cat([streams[0] + 12 * patch for patch in range(4)])
    return streams[0]


# ------------------------------------------------------------------ proofs


def test_the_channels_that_a_norm_runs_over_are_groups(case: tuple[str, TracedModel]) -> None:
    name, model = case
    assert sizes(model) == NORMALISED[name][1]
    assert set(model.graph.frozen) == {"head"}


def test_a_slice_is_the_definition(case: tuple[str, TracedModel]) -> None:
    _, model = case
    for seed, share in ((0, 0.5), (1, None), (2, 0.0)):
        kept = cut(model, seed, share)
        small, masked, reference = model.slice(kept), model.mask(kept), by_hand(model, kept)
        with torch.no_grad():
            wanted = reference(BATCH)
            assert difference(small(BATCH), wanted) <= 1e-4
            assert difference(masked(BATCH), wanted) <= 1e-4
            assert difference(small.train()(BATCH), wanted) <= 1e-4
    with torch.no_grad():
        assert difference(model.model(BATCH), wanted) > 1e-2


def test_the_macs_are_those_of_the_flop_counter(case: tuple[str, TracedModel]) -> None:
    _, model = case
    for seed in range(2):
        kept = cut(model, seed)
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            visible_attention(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            model.slice(kept)(EXAMPLE)
        widths = model.graph.full() | {name: float(len(units)) for name, units in kept.items()}
        claimed = sum(layer.macs(widths) for layer in model.graph.layers)
        assert 2 * claimed == counter.get_total_flops()


def test_absence_takes_statistics_over_what_is_there() -> None:
    x = torch.randn(2, 3, 5, 4)
    there = torch.tensor([0, 1, 3])
    absent = x.clone()
    absent[:, :, [2, 4]] = math.nan
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.mean(2), lambda x: x.mean((1, 2), keepdim=True), lambda x: x.var(2),
        lambda x: x.std((2, 3), unbiased=False), lambda x: torch.var_mean(x, 2)[1],
        lambda x: x.mean((0, 1, 3)).nanmean(), lambda x: F.pad(x, (0, 2)).mean((2, 3)),
        lambda x: F.pad(x, (1, 0, 0, 2), value=3.0).var((2, 3)),
    ]  # fmt: skip
    for function in functions:
        with Absence():
            got = function(absent)
        torch.testing.assert_close(got, function(x[:, :, there]))
    for training in (False, True):
        one, two = nn.BatchNorm1d(3).train(training), nn.BatchNorm1d(3).train(training)
        with Absence(), torch.no_grad():
            got = one(absent.flatten(2))
        wanted = two(x[:, :, there].flatten(2))
        torch.testing.assert_close(got.view(2, 3, 5, 4)[:, :, there].flatten(2), wanted)


# ------------------------------------------------------------------ what stays whole


class Between(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: x.softmax(1), "softmax runs over it"),
        (lambda x: x - x.logsumexp(1, keepdim=True), "logsumexp"),
        (lambda x: x.sort(1).values, "sort runs over it"),
        (lambda x: x.cumsum(1), "cumsum runs over it"),
        (lambda x: x * x.argmax(1, keepdim=True), "argmax runs over it"),
        (lambda x: x * x.amax(1, keepdim=True), "amax runs over it"),
        (lambda x: x - x.sum(1, keepdim=True) / 8, "sum runs over it"),
        (lambda x: F.normalize(x, dim=1) * 8**0.5, "linalg_vector_norm runs over it"),
        (lambda x: x - x.mean(1, keepdim=True) / x.shape[1], "a cut changes the output"),
        (lambda x: F.layer_norm(x.mT.permute(0, 3, 2, 1), (8,)).permute(0, 3, 1, 2), "(8,)"),
        (lambda x: F.instance_norm(x.transpose(1, 2)).transpose(1, 2), "tied together"),
    ],
)  # fmt: skip
def test_what_would_mean_something_else_stays_whole(
    between: Callable[[Tensor], Tensor], reason: str
) -> None:
    torch.manual_seed(0)
    traced = trace(Between(between).eval(), EXAMPLE)
    assert not traced.graph.groups
    assert reason.replace("(8,)", "normalized_shape") in traced.graph.frozen["a"]


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x * x.mean(1, keepdim=True).sigmoid(),
        lambda x: (x - x.mean((1, 2, 3), keepdim=True)) * 8,
        lambda x: x / (1 + x.var(1, keepdim=True, unbiased=False)),
        lambda x: F.group_norm(x, 1),
        lambda x: F.group_norm(F.pad(x, (0, 1, 2, 0)), 1),
        lambda x: F.layer_norm(x, x.shape[1:]),
    ],
)
def test_statistics_without_parameters_are_of_what_stays(
    between: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    traced = trace(Between(between).eval(), EXAMPLE)
    assert sizes(traced) == {"a": 8}
    kept = torch.tensor([0, 3, 4])
    net = traced.model
    with torch.no_grad():
        wanted = F.conv2d(between(net.a(BATCH)[:, kept]), net.b.weight[:, kept], net.b.bias)
        assert difference(traced.slice({"a": kept})(BATCH), wanted) <= 1e-5


def test_an_output_that_is_a_mean_over_channels_is_of_all() -> None:
    class Saliency(Between):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.a(x)
            return self.b(x), x.mean(1).sigmoid() * 2

    traced = trace(Saliency(lambda x: x), EXAMPLE)
    assert not traced.graph.groups
    assert traced.graph.frozen["a"] == "an output of the network is a statistic of it"


# ------------------------------------------------------------------ how few may stay


def test_a_variance_needs_two_numbers() -> None:
    torch.manual_seed(0)
    traced = trace(NormFree().eval(), EXAMPLE)
    # A kernel of 3 x 3 has nine numbers for every input.
    least = {group.name: group.least for group in traced.graph.groups}
    assert least == {"stem": 2, "first": 1, "grouped": 2}
    with pytest.raises(ValueError, match="Expected at least 2, sorted, distinct units below 12"):
        traced.slice({"stem": torch.tensor([3])})
    assert traced.slice({"stem": torch.tensor([3, 5])})(BATCH).shape == (2, 5)
    assert {group.least for group in trace(PoolFormer().eval(), EXAMPLE).graph.groups} == {1}
    decisions = keep_ratio_decisions(traced.graph, 1, 0.0)
    assert [d.units(d.choices[0]) for d in decisions] == [2, 1, 2]
    stored = json.loads(json.dumps(task_to_json(traced.graph, decisions)))
    assert task_from_json(stored) == (traced.graph, decisions, None)

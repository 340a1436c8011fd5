from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.networks.torture_networks import ResNet20, ViT
from torch import Tensor, nn
from torch.nn.utils import prune

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.errors import InputDataError, UntraceableModelError

EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def groups(traced: TracedModel) -> dict[str, int]:
    return {group.name: group.size for group in traced.graph.groups}


def assert_right(traced: TracedModel, *batch: Tensor) -> None:
    """All groups cut at random, together: the slice equals the mask."""
    for seed in range(3):
        kept = random_cut(groups(traced), torch.Generator().manual_seed(seed), None)
        with torch.no_grad():
            assert difference(traced.slice(kept)(*batch), traced.mask(kept)(*batch)) <= 1e-5


class Net(nn.Module):
    """Two convolutions and a classifier around a function of the test's."""

    def __init__(self, between: object, width: int = 8, after: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, 1, 1)
        self.b = nn.Conv2d(after, 6, 3, 1, 1)
        self.c = nn.Linear(6, classes)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(self.between(self.a(x))))
        return self.c(x.mean((2, 3)))


# ------------------------------------------------------------------ groups, by hand


def test_option_a_gives_a_group_per_set_of_stages_a_channel_lives_in() -> None:
    traced = trace(ResNet20(width=16).eval(), torch.randn(1, 3, 32, 32))
    second = [f"blocks.{i}.conv2" for i in range(9)]
    by_name = {group.name: group for group in traced.graph.groups}
    assert by_name["conv1"].size == 16
    assert by_name["conv1"].producers == ("conv1", *second)
    assert by_name["blocks.3.conv2"].size == 16
    assert by_name["blocks.3.conv2"].producers == tuple(second[3:])
    assert by_name["blocks.6.conv2"].size == 32
    assert by_name["blocks.6.conv2"].producers == tuple(second[6:])
    assert by_name["blocks.0.conv1"].consumers == ("blocks.0.conv2",)
    assert len(by_name) == 3 + 9


def test_groups_are_in_network_order() -> None:
    traced = trace(ResNet20().eval(), torch.randn(1, 3, 32, 32))
    order = [layer.name for layer in traced.graph.layers]
    places = [order.index(group.name) for group in traced.graph.groups]
    assert places == sorted(places)


def test_kept_coordinates_are_those_of_the_sliced_weights() -> None:
    net = ResNet20().eval()
    traced = trace(net, torch.randn(1, 3, 32, 32))
    kept = random_cut(groups(traced), torch.Generator().manual_seed(0), None)
    small = traced.slice(kept)
    for layer in traced.graph.layers:
        weight = net.get_submodule(layer.name).weight
        rows, columns = traced.kept_outputs(layer.name, kept), traced.kept_inputs(layer.name, kept)
        want = weight.detach()[rows][:, columns]
        assert torch.equal(small.get_submodule(layer.name).weight, want)
    with pytest.raises(ValueError, match="No layer with weights named 'nothing'"):
        traced.kept_outputs("nothing", kept)


def test_unit_slots_name_every_coordinate_of_a_unit() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(7), nn.Flatten(),
        nn.Linear(16, 2),
    ).eval()  # fmt: skip
    slots = trace(net, EXAMPLE).unit_slots("0")
    found = {(s.module, s.tensor, s.axis, s.role): s.coordinates for s in slots}
    assert {key[:2] for key in found} == {
        ("0", "weight"), ("0", "bias"), ("1", "weight"), ("1", "bias"), ("1", "running_mean"),
        ("1", "running_var"), ("5", "weight"),
    }  # fmt: skip
    assert torch.equal(found["0", "weight", 0, "producer"], torch.arange(4).view(4, 1))
    assert torch.equal(found["0", "bias", 0, "producer"], torch.arange(4).view(4, 1))
    assert torch.equal(found["1", "weight", 0, "per_channel"], torch.arange(4).view(4, 1))
    # The linear layer reads 2 x 2 pixels of every channel.
    assert torch.equal(found["5", "weight", 1, "consumer"], torch.arange(16).view(4, 4))


def test_one_unit_of_attention_is_one_head_of_all_three_projections() -> None:
    traced = trace(ViT().eval(), torch.randn(1, 3, 32, 32))
    slot = next(s for s in traced.unit_slots("blocks.0.attn.qkv") if s.tensor == "weight")
    head = torch.arange(6)
    assert torch.equal(slot.coordinates[1], torch.cat([head + 6, head + 30, head + 54]))


def test_a_depthwise_multiplier_ties_several_outputs_to_one_input() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    traced = trace(net, EXAMPLE)
    assert groups(traced) == {"0": 4}
    assert traced.kept_outputs("1", {"0": torch.tensor([2])}).tolist() == [4, 5]
    assert_right(traced, EXAMPLE)


@pytest.mark.parametrize(
    ("name", "between", "width", "after"),
    [
        ("roll of channels", lambda x: torch.roll(x, 3, 1), 8, 8),
        ("flip of channels", lambda x: x.flip(1), 8, 8),
        ("fixed index", lambda x: x[:, [3, 1, 0, 6]], 8, 4),
        ("fixed slice", lambda x: x[:, 2:7], 8, 5),
        ("strided slice", lambda x: x[:, ::2], 8, 4),
        ("split", lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1), 8, 8),
        ("gated linear unit", lambda x: torch.sigmoid(x[:, :4]) * x[:, 4:], 8, 4),
        ("glu", lambda x: F.glu(x, 1), 8, 4),
        ("pixel shuffle", lambda x: F.pixel_shuffle(x, 2), 8, 2),
        ("pixel unshuffle", lambda x: F.pixel_unshuffle(x, 2), 2, 8),
        ("channel shuffle", lambda x: F.channel_shuffle(x, 4), 8, 8),
        ("twice side by side", lambda x: torch.cat((x, x.relu()), 1), 8, 16),
        ("repeat", lambda x: x.repeat(1, 2, 1, 1), 8, 16),
        ("repeat interleave", lambda x: x.repeat_interleave(2, 1), 8, 16),
        ("stack and flatten", lambda x: torch.stack((x, -x), 2).flatten(1, 2), 8, 16),
        ("maxout", lambda x: x.view(x.shape[0], 4, 2, *x.shape[2:]).amax(2), 8, 4),
        ("padding with ones", lambda x: F.pad(x, (0, 0, 0, 0, 0, 2), value=1.0), 8, 10),
        ("concatenated zeros", lambda x: torch.cat((x, torch.zeros_like(x)), 1), 8, 16),
        ("in-place sum", lambda x: x.add_(x.sigmoid()), 8, 8),
        ("spatial attention", lambda x: x * x.mean(1, keepdim=True).sigmoid(), 8, 8),
        ("softmax over channels", lambda x: x.softmax(1), 8, 8),
        ("transposed space", lambda x: x.transpose(2, 3).contiguous(), 8, 8),
        ("interpolate", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 8, 8),
        ("reflection pad", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 8, 8),
        ("gram matrix", lambda x: (x.flatten(2) @ x.flatten(2).mT).unsqueeze(1), 8, 1),
        ("sort over channels", lambda x: x.sort(1).values, 8, 8),
        ("norm over channels", lambda x: F.normalize(x, dim=1), 8, 8),
        ("cumulative sum", lambda x: x.cumsum(1), 8, 8),
        ("einsum", lambda x: torch.einsum("nchw,nchw->nch", x, x).unsqueeze(3), 8, 8),
        ("fast fourier", lambda x: torch.fft.rfft(x).real, 8, 8),
        ("write into slices", lambda x: _written(x), 8, 8),
    ],
)  # fmt: skip
def test_whatever_happens_between_two_layers_no_cut_is_wrong(
    name: str, between: object, width: int, after: int
) -> None:
    torch.manual_seed(0)
    traced = trace(Net(between, width, after).eval(), EXAMPLE)
    assert groups(traced)["b"] == 6
    assert "a" in traced.graph.frozen or any(n.startswith("a") for n in groups(traced))
    assert_right(traced, torch.randn(2, 3, 16, 16))


def _written(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[:, ::2] = x[:, 1::2]
    out[:, 1::2] = x[:, ::2]
    return out


@pytest.mark.parametrize(
    ("between", "size"),
    [
        (lambda x: x.flip(1), 8),
        (lambda x: x[:, [3, 1, 0, 6]].repeat(1, 2, 1, 1), 4),
        (lambda x: F.channel_shuffle(x, 4), 8),
        (lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1), 8),
        (lambda x: F.interpolate(x, scale_factor=2), 8),
        (lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 8),
    ],
)
def test_reordered_channels_stay_free(between: object, size: int) -> None:
    assert sum(n for name, n in groups(trace(Net(between), EXAMPLE)).items() if name != "b") >= size


# ------------------------------------------------------------------ what stays whole


def test_an_operation_that_is_not_understood_freezes_its_input_and_nothing_else() -> None:
    traced = trace(Net(lambda x: torch.fft.rfft(x).real).eval(), EXAMPLE)
    assert "fft" in traced.graph.frozen["a"]
    assert groups(traced) == {"b": 6}


def test_channels_that_meet_the_input_image_stay() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x + self.a(x))

    traced = trace(Skip(), EXAMPLE)
    assert not traced.graph.groups
    assert traced.graph.frozen["a"] == "it is combined with a tensor of fixed width"
    assert traced.graph.frozen["b"] == "it is an output of the network"


def test_names_to_ignore_keep_their_outputs() -> None:
    net = ResNet20().eval()
    traced = trace(net, torch.randn(1, 3, 32, 32), ignore=["conv1", "blocks.0"])
    assert traced.graph.frozen["conv1"] == "it is ignored on request"
    assert {"conv1", "blocks.0.conv1"}.isdisjoint(groups(traced))
    assert "blocks.1.conv1" in groups(traced)
    with pytest.raises(ValueError, match="Expected names of modules to ignore, got 'conv7'"):
        trace(net, torch.randn(1, 3, 32, 32), ignore=["conv7"])


def test_a_proof_is_not_blind_where_all_channels_are_equal() -> None:
    """A residual branch that starts at zero hides every mistake from its own weights."""

    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x / x.shape[1])  # the width changes the value

    traced = trace(Wrong(), EXAMPLE)
    assert not traced.graph.groups
    assert "changes the output" in traced.graph.frozen["a"]


def test_computed_weights_stay_whole() -> None:
    class Ordered(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight.sort(0).values, self.bias)

    net = nn.Sequential(
        Ordered(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 7, 3), nn.Conv2d(7, 2, 1),
    )  # fmt: skip
    traced = trace(net, EXAMPLE)
    assert groups(traced) == {"1": 6, "2": 7}
    assert "computed" in traced.graph.frozen["0"]
    assert_right(traced, EXAMPLE)


def test_embeddings_stay_whole() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.rnn = nn.LSTM(8, 6, batch_first=True)
            self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(F.relu(self.fc1(self.rnn(self.embed(x))[0][:, -1])))

    words = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(0))
    traced = trace(Words(), words)
    assert groups(traced) == {"rnn.weight_ih_l0": 6, "fc1": 12}
    assert_right(traced, words)


def test_tied_weights_are_cut_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(F.relu(self.second(F.relu(self.first(self.enter(x))))))

    traced = trace(Tied(), torch.randn(1, 4))
    assert groups(traced) == {"enter": 6}
    small = traced.slice({"enter": torch.tensor([0, 4])})
    assert small.second.weight is small.first.weight
    assert_right(traced, torch.randn(3, 4))


def test_outputs_in_objects_of_the_user_are_outputs() -> None:
    @dataclass
    class Answer:
        logits: Tensor

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.b(F.relu(self.a(x))))

    traced = trace(Packed(), torch.randn(1, 4))
    assert groups(traced) == {"a": 6}
    assert traced.graph.frozen == {"b": "it is an output of the network"}


def test_several_inputs_and_weights_in_half_precision() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(F.relu(self.a(x) + self.b(y)))

    traced = trace(Two().bfloat16(), (torch.randn(2, 4).bfloat16(), torch.randn(2, 3).bfloat16()))
    assert groups(traced) == {"a": 6}
    small = traced.slice({"a": torch.tensor([1, 2])})
    assert small.a.weight.dtype == torch.bfloat16
    assert small.b.weight.shape == (2, 3)


def test_the_same_network_gives_the_same_groups() -> None:
    net = ResNet20().eval()
    first, second = (trace(net, torch.randn(1, 3, 32, 32)).graph for _ in range(2))
    assert first == second


# ------------------------------------------------------------------ bad input


def test_weights_that_are_not_numbers_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].bias.data[0] = float("nan")
    with pytest.raises(InputDataError, match=r"'1\.bias' holds NaN"):
        trace(net, torch.randn(1, 4))
    net[1].bias.data[0] = float("inf")
    with pytest.raises(InputDataError, match=r"'1\.bias' holds infinite numbers; load"):
        trace(net, torch.randn(1, 4))


def test_an_input_of_another_shape_is_rejected_with_what_was_given() -> None:
    with pytest.raises(InputDataError, match=r"example input \(\(1, 4, 16, 16\) torch.float32\)"):
        trace(Net(nn.ReLU()), torch.randn(1, 4, 16, 16))


def test_pruning_masks_of_torch_are_resolved_in_a_copy() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    prune.l1_unstructured(net[0], "weight", 0.5)
    traced = trace(net, torch.randn(1, 4))
    assert groups(traced) == {"0": 4}
    assert traced.notes == (
        "pruning mask resolved in 0: its present value is the weight from here on",
    )
    assert torch.equal(traced.slice({})[0].weight, net[0].weight)
    assert prune.is_pruned(net)


def test_a_network_without_shapes_or_tensors_is_rejected() -> None:
    lazy = nn.LazyLinear(3)
    with pytest.raises(UntraceableModelError, match="has no shape yet"):
        trace(lazy, torch.randn(1, 4))

    class Number(nn.Linear):
        def forward(self, x: Tensor) -> float:  # type: ignore[override]
            return float(super().forward(x).sum())

    with pytest.raises(UntraceableModelError, match="returns tensors, got float"):
        trace(Number(4, 3), torch.randn(1, 4))


def test_an_exported_program_is_rejected_with_a_sentence() -> None:
    program = torch.export.export(nn.Linear(4, 3), (torch.randn(1, 4),))
    with pytest.raises(UntraceableModelError, match="the module itself rather than an exported"):
        trace(program.module(), torch.randn(1, 4))

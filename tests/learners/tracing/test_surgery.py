from __future__ import annotations

import copy
import io
import pickle
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from support.networks.torture_networks import NETWORKS, ConvFlattenLinear, ResNet20
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.surgery import Surgeon
from amc_compress.learners.tracing.traced_model import TracedModel, trace

EXAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
BATCH = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
REWRITTEN = ["resnet20_option_a", "shufflenet", "conv_flatten_linear", "vit"]


@cache
def halved(name: str) -> tuple[TracedModel, dict[str, Tensor]]:
    torch.manual_seed(0)
    traced = trace(NETWORKS[name]().eval(), EXAMPLE)
    sizes = {group.name: group.size for group in traced.graph.groups}
    return traced, random_cut(sizes, torch.Generator().manual_seed(3), None)


def test_a_slice_of_a_linear_chain_is_the_hand_cut_one() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    keep = torch.tensor([0, 2, 5])
    small = trace(net, EXAMPLE).slice({"0": keep})
    assert torch.equal(small[0].weight, net[0].weight[keep])
    assert torch.equal(small[0].bias, net[0].bias[keep])
    assert torch.equal(small[1].running_var, net[1].running_var[keep])
    assert torch.equal(small[3].weight, net[3].weight[:, keep])
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels) == (3, 3, 3)


def test_a_slice_reads_the_weights_of_the_moment() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    traced = trace(net, EXAMPLE)
    with torch.no_grad():
        net[0].weight.fill_(3.0)
    assert bool((traced.slice({"0": torch.tensor([1])})[0].weight == 3.0).all())


def test_an_empty_plan_is_the_same_network_in_other_memory() -> None:
    for name in REWRITTEN:
        traced, _ = halved(name)
        same = traced.slice({})
        with torch.no_grad():
            assert difference(same(BATCH), traced.model(BATCH)) <= 1e-6
        shared = {p.data_ptr() for p in traced.model.parameters()}
        assert not shared & {p.data_ptr() for p in same.parameters()}


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_slice_can_be_copied_pickled_and_saved(name: str) -> None:
    traced, kept = halved(name)
    small = traced.slice(kept)
    again = pickle.loads(pickle.dumps(small))
    with torch.no_grad():
        want = small(BATCH)
        assert torch.equal(copy.deepcopy(small)(BATCH), want)
        assert torch.equal(again(BATCH), want)
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)
    buffer.seek(0)
    other = traced.slice(kept)
    other.load_state_dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_slice_learns_and_keeps_its_two_modes(name: str) -> None:
    traced, kept = halved(name)
    small = traced.slice(kept).train()
    before = copy.deepcopy(small.state_dict())
    small(BATCH).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    for key, value in small.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert int(value) == int(before[key]) + 1


def test_dropout_by_the_training_flag_survives_a_rewritten_forward() -> None:
    small = trace(ConvFlattenLinear(), EXAMPLE).slice({"conv2": torch.arange(5)})
    assert type(small).forward is not ConvFlattenLinear.forward
    small.train()
    torch.manual_seed(0)
    assert not torch.equal(small(BATCH), small(BATCH))
    small.eval()
    assert torch.equal(small(BATCH), small(BATCH))


def test_gradients_stay_off_where_they_were_off() -> None:
    net = ResNet20().requires_grad_(False)
    small = trace(net, EXAMPLE).slice({"conv1": torch.tensor([0, 1])})
    assert not any(p.requires_grad for p in small.parameters())
    assert small.conv1.out_channels == 2


def test_groups_of_norms_and_convolutions_follow_their_widths() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16, affine=False), nn.Conv2d(16, 16, 3, groups=4),
        nn.InstanceNorm2d(16), nn.Conv2d(16, 32, 3, groups=16), nn.Conv2d(32, 5, 1),
    ).eval()  # fmt: skip
    traced = trace(net, EXAMPLE)
    sizes = {group.name: group.size for group in traced.graph.groups}
    assert sizes == {"2": 4}  # the norm's groups and the convolution's positions tie all of "0"
    small = traced.slice({"2": torch.tensor([0, 3])})
    assert (small[2].groups, small[2].out_channels) == (4, 8)
    assert (small[3].num_features, small[4].groups, small[4].out_channels) == (8, 8, 16)


def test_a_mask_leaks_nothing_of_a_cut_channel() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    nn.init.constant_(net[1].bias, 5.0)  # a shift that a zeroed convolution alone would let through
    traced = trace(net, EXAMPLE)
    masked = traced.mask({"0": torch.tensor([1])})
    assert bool((masked[3].weight[:, [0, 2, 3, 4, 5]] == 0).all())
    assert torch.equal(masked[3].weight[:, 1], net[3].weight[:, 1])


@pytest.mark.parametrize("kept", [[], [3, 1], [1, 1], [-1, 2], [6], [[0, 1]]])
def test_indices_that_are_no_units_are_rejected(kept: list[int]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    traced = trace(net, EXAMPLE)
    with pytest.raises(ValueError, match="Expected at least one, sorted, distinct units below 6"):
        traced.slice({"0": torch.tensor(kept, dtype=torch.int64)})
    with pytest.raises(ValueError, match="No channel group named 'conv9'"):
        traced.slice({"conv9": torch.tensor([0])})


def test_a_slice_of_resnet20_is_built_in_milliseconds() -> None:
    traced = trace(ResNet20(width=16).eval(), EXAMPLE)
    sizes = {group.name: group.size for group in traced.graph.groups}
    kept = random_cut(sizes, torch.Generator().manual_seed(3))
    seconds = []
    for _ in range(7):
        start = time.process_time()
        traced.slice(kept)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05  # about 0.006 on an idle machine


def test_the_surgeon_never_copies_large_tensors_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 8))
    traced = trace(net, torch.randn(2, 8))
    copied: list[Tensor] = []
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self))
    traced.slice({"0": torch.arange(4)})
    assert not copied
    assert isinstance(traced._surgeon, Surgeon)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("name", REWRITTEN)
def test_a_slice_exports_to_onnx_with_any_batch_size(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    traced, kept = halved(name)
    small = traced.slice(kept)
    path = tmp_path / "small.onnx"
    torch.onnx.export(
        small, (BATCH[:2],), path, dynamo=True, verbose=False, input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = small(BATCH)
    (got,) = session.run(None, {"images": BATCH.numpy()})
    assert difference(torch.from_numpy(got), want) <= 1e-5


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_traced_network_with_rewritten_forwards_survives_pickling(name: str) -> None:
    traced, kept = halved(name)
    again = pickle.loads(pickle.dumps(traced))
    assert torch.equal(again.slice(kept)(BATCH), traced.slice(kept)(BATCH))

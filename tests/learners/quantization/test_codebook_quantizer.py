"""Codebooks: nearest centroids, exact round trips, gradients of Deep Compression."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.selection import examples

from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_env.errors import InputDataError

GRANULARITIES = ("tensor", "channel", "split")


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def buckets_of(x: torch.Tensor, granularity: str, size: int) -> list[torch.Tensor]:
    flat = x.reshape(-1)
    if granularity == "tensor":
        return [flat]
    return list(flat.split(x[0].numel() if granularity == "channel" else size))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_number_goes_to_the_nearest_centroid_of_its_bucket(granularity, bits):
    x = weights(6, 5, 3, 3)
    quantizer = CodebookQuantizer.fit(x, bits, granularity=granularity, bucket_size=64)
    found = buckets_of(quantizer(x).detach(), granularity, 64)
    assert (
        len(found)
        == len(quantizer.codebook)
        == {"tensor": 1, "channel": 6, "split": 5}[granularity]
    )
    for values, numbers, centroids in zip(
        found, buckets_of(x, granularity, 64), quantizer.codebook.detach(), strict=True
    ):
        distances = (numbers[:, None] - centroids[None]).abs()
        assert torch.allclose((values - numbers).abs(), distances.min(1).values, atol=1e-7)
        assert set(values.tolist()) <= set(centroids.tolist())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_centroids_need_not_be_sorted(granularity):
    x = weights(4, 40)
    quantizer = CodebookQuantizer.fit(x, 3, granularity=granularity, bucket_size=50)
    shuffled = copy.deepcopy(quantizer)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled.codebook.data = quantizer.codebook.data[:, order]
    assert torch.equal(shuffled(x), quantizer(x))
    assert torch.equal(shuffled.decode(shuffled.encode(x)), quantizer(x))
    assert torch.equal(order[shuffled.encode(x).long()], quantizer.encode(x).long())


@examples(60)
@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    granularity=st.sampled_from(GRANULARITIES),
    kind=st.sampled_from(["normal", "few", "tiny", "close", "repeated"]),
    scales=st.booleans(),
)
def test_round_trips_are_exact(seed, bits, granularity, kind, scales):
    x = weights(5, 33, seed=seed)
    x = {
        "normal": x,
        "few": x.round(),
        "tiny": x * 1e-44,  # denormal
        "close": 1.0 + x.round() * 2.0**-23,  # neighbours in float32
        "repeated": x[:1].expand(5, -1).contiguous(),
    }[kind]
    quantizer = CodebookQuantizer.fit(
        x, bits, granularity=granularity, bucket_size=32, channel_scales=scales
    )
    if seed % 2:  # any centroids at all, equal ones included
        chosen = torch.randint(0, x.numel(), quantizer.codebook.shape)
        quantizer.codebook.data = x.reshape(-1)[chosen]
    codes = quantizer.encode(x)
    values = quantizer.decode(codes)
    assert codes.dtype == torch.uint8
    assert codes.shape == x.shape
    assert int(codes.max()) < 2**bits
    assert torch.equal(values, quantizer(x))
    assert torch.equal(values.view(torch.int32), quantizer(x).detach().view(torch.int32))
    assert torch.equal(quantizer.encode(values), codes)
    assert torch.equal(quantizer(values), values)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_are_those_of_deep_compression_by_a_slow_loop(granularity):
    x = weights(3, 7, 2).requires_grad_()
    quantizer = CodebookQuantizer.fit(x, 2, granularity=granularity, bucket_size=16)
    upstream = weights(3, 7, 2, seed=1)
    quantizer(x).backward(upstream)
    assert torch.equal(x.grad, upstream)  # straight through
    expected = torch.zeros_like(quantizer.codebook)
    codes = buckets_of(quantizer.encode(x), granularity, 16)
    gradients = buckets_of(upstream, granularity, 16)
    for bucket, (its_codes, its_gradients) in enumerate(zip(codes, gradients, strict=True)):
        for k, gradient in zip(its_codes.tolist(), its_gradients.tolist(), strict=True):
            expected[bucket, k] += gradient
    assert torch.allclose(quantizer.codebook.grad, expected, atol=1e-6)


def test_gradients_equal_those_of_a_dense_formula():
    """``q = onehot(codes) @ codebook``, differentiated by autograd."""
    x = weights(4, 50)
    quantizer = CodebookQuantizer.fit(x, 4)
    quantizer(x).square().sin().sum().backward()
    centroids = quantizer.codebook.detach().clone().requires_grad_()
    chosen = torch.nn.functional.one_hot(quantizer.encode(x).long(), 16).float()
    (chosen @ centroids[0]).square().sin().sum().backward()
    assert torch.allclose(quantizer.codebook.grad, centroids.grad, atol=1e-5)


def test_fixed_assignments_stay_where_centroids_move():
    x = weights(4, 30)
    quantizer = CodebookQuantizer.fit(x, 3)
    quantizer.fix_assignments(x)
    codes = quantizer.encode(x)
    quantizer.codebook.data = quantizer.codebook.data.roll(1, dims=1)
    assert torch.equal(quantizer.encode(x), codes)
    assert torch.equal(quantizer(x), quantizer.decode(codes))
    assert torch.equal(quantizer(x), quantizer.codebook[0].detach()[codes.long()])
    free = copy.deepcopy(quantizer)
    free.fix_assignments(None)
    assert not torch.equal(free.encode(x), codes)
    # Values are centroids, so the values alone are enough to find the same codes again.
    assert torch.equal(free.encode(quantizer(x)), codes)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_description_and_a_state_rebuild_it(granularity):
    x = weights(4, 30)
    quantizer = CodebookQuantizer.fit(x, 3, granularity=granularity, bucket_size=50)
    description = json.loads(json.dumps(quantizer.describe()))
    twin = Quantizer.from_description(description)
    twin.load_state_dict(quantizer.state_dict())
    assert torch.equal(twin(x), quantizer(x))
    assert twin.describe() == quantizer.describe()


def test_channels_can_be_rescaled_and_tensors_cannot():
    x = weights(4, 30)
    factor = torch.tensor([1.0, 2.0, 0.5, 4.0])
    by_channel = CodebookQuantizer.fit(x, 3, granularity="channel")
    before = by_channel(x).detach()
    assert by_channel.rescale(factor)
    assert torch.equal(by_channel(x * factor[:, None]), before * factor[:, None])
    whole = CodebookQuantizer.fit(x, 3)
    before = whole.codebook.detach().clone()
    assert not whole.rescale(factor)
    assert torch.equal(whole.codebook, before)


def test_a_diverged_weight_shows_in_training():
    x = weights(4, 30)
    quantizer = CodebookQuantizer.fit(x, 3)
    x[1, 2] = float("nan")
    assert quantizer(x).isnan().sum() == 1
    with pytest.raises(InputDataError, match="finite"):
        quantizer.encode(x)


def test_mistakes_are_named():
    x = weights(4, 30)
    for bits in (1, 9, 2.5):
        with pytest.raises(ValueError, match="2 to 8 bits"):
            CodebookQuantizer.fit(x, bits)
    with pytest.raises(ValueError, match="granularity"):
        CodebookQuantizer.fit(x, 3, granularity="layer")
    with pytest.raises(ValueError, match="bucket"):
        CodebookQuantizer.fit(x, 3, granularity="split", bucket_size=0)
    with pytest.raises(ValueError, match="shape"):
        CodebookQuantizer(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="one codebook"):
        CodebookQuantizer(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="finite centroids"):
        CodebookQuantizer(torch.full((1, 8), float("nan")))
    with pytest.raises(InputDataError, match="finite weights"):
        CodebookQuantizer.fit(x * float("nan"), 3)

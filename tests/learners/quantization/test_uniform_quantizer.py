"""The uniform quantizer against torch's fake quantization, numpy, and Esser et al.'s formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.selection import examples

from amc_compress.learners.quantization import Quantizer, UniformQuantizer
from amc_compress.learners.quantization.uniform.quantizer import (
    affine_parameters,
    integer_range,
    split_buckets,
)
from amc_compress.learners.quantization.uniform.scales import weight_scales


def numbers(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2
    x.view(-1)[:7] = torch.tensor([0.0, -0.0, 0.25, 0.75, -1.25, 1e4, -1e4])  # ties and outliers
    return x


def per_tensor(bits, symmetric, scale=0.5, zero=3, **options):
    point = None if symmetric else torch.tensor([min(zero, 2**bits - 1)])
    return UniformQuantizer(bits, torch.tensor([scale]), point, symmetric=symmetric, **options)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale", [0.5, 0.037, 3.1])
def test_per_tensor_is_torchs_fake_quantization_and_its_gradient(bits, symmetric, scale):
    quantizer = per_tensor(bits, symmetric, scale)
    mine, theirs = (numbers(4, 5, 6).requires_grad_() for _ in range(2))
    weights = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    found = quantizer(mine)
    expected = torch.fake_quantize_per_tensor_affine(
        theirs,
        float(quantizer.scale),
        int(quantizer.zero_point),
        quantizer.quant_min,
        quantizer.quant_max,
    )
    assert torch.equal(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(mine.grad, theirs.grad)
    assert bool((mine.grad == 0).any())
    assert bool((mine.grad != 0).any())
    with torch.no_grad():
        assert torch.equal(quantizer(mine), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_per_channel_is_torchs_fake_quantization_and_its_gradient(bits, symmetric):
    scale = torch.rand(4, generator=torch.Generator().manual_seed(2)) * 0.5 + 0.01
    zero = torch.zeros(4, dtype=torch.int32)
    if not symmetric:
        zero = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    quantizer = UniformQuantizer(bits, scale, zero, symmetric=symmetric, granularity="channel")
    mine, theirs = (numbers(4, 3, 2, 2).requires_grad_() for _ in range(2))
    found = quantizer(mine)
    expected = torch.fake_quantize_per_channel_affine(
        theirs, scale, zero, 0, quantizer.quant_min, quantizer.quant_max
    )
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("symmetric", [True, False])
def test_numpy_rounds_half_to_even_to_the_same_integers(symmetric):
    quantizer = per_tensor(4, symmetric, 0.25)
    x = torch.arange(-40, 40) * 0.125  # every second one is a tie
    low, high = quantizer.quant_min, quantizer.quant_max
    zero = int(quantizer.zero_point)
    integers = np.clip(np.rint(x.numpy() / np.float32(0.25)) + zero, low, high)
    assert (quantizer.encode(x).numpy() == integers - low).all()
    assert (quantizer(x).numpy() == (integers - zero) * np.float32(0.25)).all()


def test_onnx_runtime_finds_the_same_numbers():
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    helper = onnx.helper
    quantizer = per_tensor(8, False, 0.0625, 17)  # a power of two: x / s equals x * (1 / s)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    kinds = onnx.TensorProto
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", kinds.FLOAT, [None])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, [None])],
        [
            helper.make_tensor("s", kinds.FLOAT, [], [0.0625]),
            helper.make_tensor("z", kinds.UINT8, [], [17]),
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10
    ).SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = torch.cat([numbers(1000), torch.arange(-600, 600) * 0.03125])
    assert (session.run(None, {"x": x.numpy()})[0] == quantizer(x).numpy()).all()


@examples(40)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel", "split", "group"]),
    seed=st.integers(0, 1000),
    learned=st.booleans(),
)
def test_decoding_codes_gives_the_forward_pass(bits, symmetric, granularity, seed, learned):
    x = numbers(5, 3, 3, seed=seed)
    rows = {
        "tensor": x.reshape(1, -1),
        "channel": x.reshape(5, -1),
        "split": split_buckets(x, 7),
        "group": split_buckets(x, 7, 5),
    }
    low, high = rows[granularity].amin(1), rows[granularity].amax(1)
    scale, zero = affine_parameters(low * 0.3, high * 0.3, bits, symmetric)
    quantizer = UniformQuantizer(
        bits,
        scale,
        zero,
        symmetric=symmetric,
        granularity=granularity,
        bucket_size=7,
        learned=learned,
    )
    codes = quantizer.encode(x)
    assert codes.dtype == torch.uint8
    assert codes.shape == x.shape
    assert int(codes.max()) <= 2**bits - 1
    assert torch.equal(quantizer.decode(codes), quantizer(x))
    assert torch.equal(quantizer(quantizer(x)), quantizer(x))
    assert torch.equal(quantizer(torch.zeros(5, 3, 3)), torch.zeros(5, 3, 3))
    rebuilt = Quantizer.from_description(quantizer.describe())
    rebuilt.load_state_dict(quantizer.state_dict())
    assert torch.equal(rebuilt(x), quantizer(x))


def test_split_buckets_are_contiguous_and_the_last_is_filled_up():
    x = torch.arange(10.0).view(2, 5)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert split_buckets(x, 4).tolist() == expected
    scale = torch.tensor([1.0, 2.0, 4.0])
    quantizer = UniformQuantizer(8, scale, granularity="split", bucket_size=4)
    # 5 / 2 and 6 / 4 are ties: to the even neighbour.
    assert quantizer(x).flatten().tolist() == [0, 1, 2, 3, 4, 4, 6, 8, 8, 8]


@pytest.mark.parametrize("axis", [0, 1])
def test_groups_end_with_their_row_and_where_rows_are_whole_groups_they_are_buckets(axis):
    """Group by group as the field writes it: ``group_size`` consecutive inputs of one output."""
    weight = numbers(4, 10, 2, seed=3)
    shared = {"symmetric": False, "granularity": "group", "bucket_size": 6, "axis": axis}
    scale, zero = weight_scales(weight, 3, "minmax", **shared)
    found = UniformQuantizer(3, scale, zero, **shared)(weight)
    expected, lines = torch.empty_like(weight), weight.movedim(axis, 0)
    for row, line in enumerate(lines):
        pieces = []
        for piece in line.flatten().split(6):
            low, high = min(float(piece.min()), 0.0), max(float(piece.max()), 0.0)
            step = (high - low) / 7
            point = round(-low / step)
            pieces.append(((piece / step).round() + point).clamp(0, 7).sub(point) * step)
        expected.movedim(axis, 0)[row] = torch.cat(pieces).view(line.shape)
    torch.testing.assert_close(found, expected)
    if axis == 0:
        shared["bucket_size"] = 10  # two to a row
        split = {**shared, "granularity": "split"}
        steps = weight_scales(weight, 3, "minmax", **shared)
        assert torch.equal(
            UniformQuantizer(3, *steps, **shared)(weight),
            UniformQuantizer(3, *weight_scales(weight, 3, "minmax", **split), **split)(weight),
        )


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_gradient_of_a_learned_step_is_that_of_the_paper(granularity):
    """Esser et al. 2020, Eq. 3 and 5, number by number."""
    x = torch.tensor([[0.3, -0.26, 0.9, -2.0], [0.1, 0.6, 0.74, 0.0]])
    scale = [0.25] if granularity == "tensor" else [0.25, 0.19]
    quantizer = UniformQuantizer(3, torch.tensor(scale), granularity=granularity, learned=True)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    x.requires_grad_()
    (quantizer(x) * upstream).sum().backward()
    q_max, numbers_ = 3, x.tolist()
    expected = [0.0] * len(scale)
    for row in range(2):
        for column in range(4):
            which = row if len(scale) == 2 else 0
            ratio = numbers_[row][column] / scale[which]
            if ratio <= -q_max:
                slope = -q_max
            elif ratio >= q_max:
                slope = q_max
            else:
                slope = round(ratio) - ratio
            expected[which] += float(upstream[row, column]) * slope
            inside = -q_max < ratio < q_max
            assert float(x.grad[row, column]) == (float(upstream[row, column]) if inside else 0.0)
    factor = 1 / math.sqrt(8 / len(scale) * q_max)
    expected = torch.tensor(expected) * factor
    torch.testing.assert_close(quantizer.scale.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", [0.2, 2.0])
def test_a_learned_step_finds_the_best_step(start):
    x = numbers(64, 32)[1:]

    def error(quantizer):
        return (quantizer(x) - x).square().mean()

    quantizer = UniformQuantizer(3, torch.tensor([start]), learned=True)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=20.0)
    for _ in range(300):
        optimizer.zero_grad()
        error(quantizer).backward()
        optimizer.step()
    grid = [float(error(UniformQuantizer(3, torch.tensor([s / 100])))) for s in range(10, 300)]
    with torch.no_grad():
        assert float(error(quantizer)) < 1.02 * min(grid)


def test_a_step_that_training_made_negative_still_gives_numbers():
    quantizer = UniformQuantizer(3, torch.tensor([0.1]), learned=True)
    with torch.no_grad():
        quantizer.scale.neg_()
    x = numbers(9)
    assert quantizer(x).isfinite().all()
    assert torch.equal(quantizer.decode(quantizer.encode(x)), quantizer(x))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("start", [-0.01, 0.0])
def test_a_step_that_training_carried_across_zero_recovers(granularity, start):
    x = numbers(2, 200)[1:].expand(2, -1)
    scale = torch.ones(2 if granularity == "channel" else 1)
    quantizer = UniformQuantizer(4, scale, granularity=granularity, learned=True)
    with torch.no_grad():
        quantizer.scale.fill_(start)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.01)
    for step in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().sum().backward()
        if step == 0:
            assert bool((quantizer.scale.grad < 0).all())  # towards larger steps
        optimizer.step()
    with torch.no_grad():
        assert float((quantizer(x) - x).square().mean()) < 0.1 * float(x.square().mean())


def test_a_finished_network_shows_positive_steps():
    quantizer = UniformQuantizer(3, torch.tensor([0.1]), learned=True)
    with torch.no_grad():
        quantizer.scale.neg_()
    x = numbers(9)
    before = quantizer(x)
    assert quantizer.eval().scale.item() > 0
    assert torch.equal(quantizer(x), before)


def test_autocast_does_not_make_it_coarser():
    quantizer = per_tensor(8, True, 0.037)
    x = numbers(100)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(x)
        rounded = quantizer(x.bfloat16())
    assert found.dtype == rounded.dtype == torch.float32
    assert torch.equal(found, quantizer(x))
    assert torch.equal(rounded, quantizer(x.bfloat16().float()))


def test_only_a_scale_per_channel_can_be_rescaled():
    factor = torch.tensor([0.5, 2.0])
    one = UniformQuantizer(4, torch.tensor([0.1]))
    assert not one.rescale(factor)
    assert float(one.scale) == pytest.approx(0.1)
    two = UniformQuantizer(4, torch.tensor([0.1, 0.2]), granularity="channel")
    x = numbers(2, 20)
    codes = two.encode(x)
    assert two.rescale(factor)
    assert torch.equal(two.encode(x * factor[:, None]), codes)
    six = torch.linspace(0.1, 0.3, 6)  # three to a row
    groups = UniformQuantizer(4, six, granularity="group", bucket_size=8)
    codes = groups.encode(x)
    assert groups.rescale(factor)
    assert torch.equal(groups.encode(x * factor[:, None]), codes)


@pytest.mark.parametrize("bits", [1, 9, 16, 0, 2.5])
def test_other_bits_are_rejected(bits):
    with pytest.raises(ValueError, match="Expected 2 to 8 bits"):
        UniformQuantizer(bits, torch.ones(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "row"}, "Unknown granularity"),
        ({"granularity": "split", "bucket_size": 0}, "bucket_size >= 1"),
        ({"zero_point": torch.ones(1)}, "zero points of 0"),
        ({"scale": torch.ones(2)}, "one scale per tensor"),
        ({"scale": torch.tensor([float("nan")])}, "finite scales"),
    ],
)
def test_bad_arguments_are_rejected(options, message):
    options = {"bits": 4, "scale": torch.ones(1), **options}
    with pytest.raises(ValueError, match=message):
        UniformQuantizer(**options)


def test_unknown_kinds_are_rejected():
    with pytest.raises(ValueError, match="Unknown quantizer 'ternary'"):
        Quantizer.from_description({"kind": "ternary"})


def test_ranges_hold_zero_and_zeros_have_a_scale():
    low, high = torch.tensor([1.0, -3.0, 0.0, -1.0]), torch.tensor([3.0, -1.0, 0.0, 3.0])
    scale, zero = affine_parameters(low, high, 4, symmetric=False)
    assert scale.tolist() == pytest.approx([3 / 15, 3 / 15, 1.0, 4 / 15])
    assert zero.tolist() == [0, 15, 0, 4]  # 3.75 rounds to 4
    scale, zero = affine_parameters(low, high, 4, symmetric=True)
    assert scale.tolist() == pytest.approx([3 / 7, 3 / 7, 1.0, 3 / 7])
    assert not zero.any()
    assert integer_range(4, True) == (-7, 7)
    assert integer_range(4, False) == (0, 15)

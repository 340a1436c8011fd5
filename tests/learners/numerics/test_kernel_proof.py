"""Fast kernels run only where they were proved; a wrong one costs time, never the numbers."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from amc_compress.learners.candidates.inference.fused_conv import FusedConv
from amc_compress.learners.numerics import kernel_proof, proved_operators
from amc_compress.learners.numerics.kernel_proof import TOLERANCES, proofs
from amc_compress.learners.numerics.precision import autocast
from amc_compress.learners.tasks.inputs import Split

NARROW = sorted(itertools.product((1, 2, 4, 8, 16), (1, 2, 4, 5, 8), (8, 40), (3, 5), (3, 64)))


@pytest.fixture(autouse=True)
def _fresh_proofs(monkeypatch):
    monkeypatch.setattr(kernel_proof, "_ledger", kernel_proof._Ledger({}))


def fused_and_exact(conv, x, dtype=torch.bfloat16, activation="none"):
    """The fused convolution, and what it should compute, from operands rounded alike."""
    fused = FusedConv.of(conv, None, activation, dtype)
    weight, bias = (p.detach().to(dtype).float() for p in (conv.weight, conv.bias))
    rounded = x.to(dtype).float()
    exact = F.conv2d(rounded, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return fused, exact


def deviation(found, exact):
    return float((found.float() - exact).abs().max() / exact.abs().max())


def sweep(cases):
    torch.manual_seed(0)
    for width, outputs, inputs, kernel, batch in cases:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        x = torch.randn(batch, inputs, width, width)
        with torch.inference_mode():
            fused, exact = fused_and_exact(conv, x)
            first, second = fused(x), fused(x)
        case = f"width {width}, outputs {outputs}, inputs {inputs}, {kernel=}, {batch=}"
        assert torch.equal(first, second), case
        assert deviation(first, exact) <= TOLERANCES[torch.bfloat16], case


def test_narrow_convolutions_in_bf16_are_near_float32_and_the_same_twice():
    sweep(NARROW[::7])


@pytest.mark.slow
def test_convolutions_of_all_widths_in_bf16_are_near_float32_and_the_same_twice():
    sweep(itertools.product((1, 2, 3, 4, 6, 8, 16), (1, 2, 4, 5, 8, 16), (8, 40), (3, 5), (9, 125)))


def spoiled(kind, wrong_for):
    """The fused operator, but for some strides it is as wrong as ``kind`` says."""
    right = torch.ops.mkldnn._convolution_pointwise
    calls = itertools.count()

    def spoil(y, stride):
        if not wrong_for(stride):
            return y
        if kind == "garbage":
            return torch.zeros_like(y)
        if kind == "differs":
            return y * (1 + next(calls) / 64)
        if kind == "uninitialised":
            # Of many blocks: which of them were filled is up to the allocator.
            return y + torch.stack([torch.empty_like(y) for _ in range(64)]).sum(0)
        spoilt = y.clone()
        spoilt[-1, -1] += 10  # of the last image only
        return spoilt

    def operator(x, weight, bias, padding, stride, *rest):
        if kind == "raises" and wrong_for(stride):
            raise RuntimeError("could not create a primitive")
        return spoil(right(x, weight, bias, padding, stride, *rest), stride)

    def binary(x, other, weight, bias, padding, stride, *rest):
        return spoil(right.binary(x, other, weight, bias, padding, stride, *rest), stride)

    operator.binary = binary
    return operator


@pytest.mark.parametrize("kind", ["garbage", "differs", "uninitialised", "last image", "raises"])
@pytest.mark.parametrize("bundled_only", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_kernel_is_found_and_the_plain_path_taken(kind, bundled_only, dtype, monkeypatch):
    wrong = (lambda stride: stride[-1] > 1) if bundled_only else (lambda stride: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", spoiled(kind, wrong))
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 4, 3, padding=1), torch.randn(10, 6, 8, 8)
    other = torch.randn(10, 4, 8, 8)
    with torch.inference_mode():
        fused, exact = fused_and_exact(conv, x, dtype)
        first, second = fused(x), fused(x)
        added = fused(x, other)
    assert torch.equal(first, second)
    assert deviation(first, exact) <= TOLERANCES[dtype]
    assert deviation(added, exact + other) <= TOLERANCES[dtype]
    assert proofs().failed > 0


def test_a_shape_is_proved_once_and_another_batch_again(monkeypatch):
    conv = nn.Conv2d(6, 4, 3, padding=1)
    with torch.inference_mode():
        for x in (torch.randn(10, 6, 8, 8),) * 2:
            FusedConv.of(conv, None, "relu", torch.bfloat16)(x)
        once = proofs().tried
        FusedConv.of(nn.Conv2d(6, 4, 3, padding=1), None, "relu", torch.bfloat16)(x)
        assert proofs().tried == once
        FusedConv.of(conv, None, "relu", torch.bfloat16)(x[:7])
    assert proofs().tried > once


def test_a_proof_depends_on_the_shape_alone_and_leaves_the_generator(monkeypatch):
    state = torch.get_rng_state()
    seen = []
    inner = kernel_proof.right_twice

    def watch(run, expected, *rest):
        seen.append(expected[0].clone())
        return inner(run, expected, *rest)

    monkeypatch.setattr("amc_compress.learners.candidates.inference.fused_conv.right_twice", watch)
    with torch.inference_mode():
        for scale in (1.0, 1e3):
            kernel_proof.forget()
            conv = nn.Conv2d(6, 4, 3, padding=1)
            torch.set_rng_state(state)
            FusedConv.of(conv, None, "relu", torch.bfloat16)(torch.ones(5, 6, 8, 8) * scale)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seen[0], seen[len(seen) // 2])


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(3, 4, 3)
        self.two = nn.Conv2d(1, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        y = self.up(self.two(self.one(x)[:, None]))
        y = y @ y.transpose(-1, -2)
        return self.head(y.mean((2, 3)))


def outputs_and_gradients(net, x, dtype):
    net.zero_grad()
    with autocast(dtype, "cpu"):
        y = net(x)
    y.float().square().sum().backward()
    return [y.detach().float(), *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("wrong", [None, "conv2d", "linear", "conv_transpose2d", "backward"])
def test_pytorchs_own_operators_are_proved_forwards_and_backwards(wrong, monkeypatch):
    torch.manual_seed(0)
    net, x = Everything(), torch.randn(7, 3, 12)
    exact = outputs_and_gradients(net, x, torch.float32)

    class Backwards(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, g):
            return g * 3 if g.dtype == torch.bfloat16 else g

    inner = proved_operators.run_proved

    @functools.cache
    def spoiled_operator(func):
        def operator(*args, **kwargs):
            y = func(*args, **kwargs)
            if wrong == "backward":
                return Backwards.apply(y)
            return y * 2 if y.dtype == torch.bfloat16 else y

        return operator

    def spoil(func, args, kwargs):
        hit = func.__name__ == ("conv2d" if wrong == "backward" else wrong)
        return inner(spoiled_operator(func) if hit else func, args, kwargs)

    monkeypatch.setattr(proved_operators, "run_proved", spoil)
    found = outputs_and_gradients(net, x, torch.bfloat16)
    again = outputs_and_gradients(net, x, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    for a, b in zip(found, exact, strict=True):
        assert deviation(a, b) <= 0.05
    assert proofs().tried >= 5
    assert proofs().failed == (0 if wrong is None else 1)


def test_fp32_and_other_devices_are_left_to_pytorch():
    net, x = Everything(), torch.randn(7, 3, 12)
    with torch.no_grad(), autocast(torch.float32, "cpu"):
        assert torch.equal(net(x), net(x))
    assert proofs() == kernel_proof.Proofs(0, 0, 0.0)


def test_results_are_of_the_type_that_the_fast_operator_would_give():
    kernel_proof._ledger = ledger = kernel_proof._Ledger({})
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    with torch.no_grad(), autocast(torch.bfloat16, "cpu"):
        fast = layer(x)
        ledger.verdicts = dict.fromkeys(ledger.verdicts, False)
        slow = layer(x)
    assert fast.dtype == slow.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(slow, F.linear(x, layer.weight, layer.bias).bfloat16())


def test_batches_of_an_evaluator_are_of_one_size_and_none_is_counted_twice():
    from amc_compress.learners.candidates.inference.held_samples import HeldSamples

    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    for n, size in ((10, 4), (9, 3), (1, 5), (7, 6)):
        x, labels = torch.randn(n, 3, 2, 2), torch.randint(0, 3, (n,))
        evaluator = HeldSamples(
            [Split(x, labels)],
            dtype=torch.float32,
            device=torch.device("cpu"),
            batch_size=size,
            fused=False,
        )
        with torch.no_grad():
            torch.testing.assert_close(evaluator.logits(net), net(x))
        assert len({part.inputs.shape for part in evaluator._batches}) == 1


def test_a_channel_that_only_rounding_would_move_is_evaluated_in_float32():
    from amc_compress.learners.candidates.inference.held_samples import HeldSamples
    from amc_compress.learners.numerics.precision import hides_in_rounding

    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=False)
    net = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x, labels = torch.randn(40, 3, 6, 6) * 1e-3 + 1, torch.zeros(40, dtype=torch.int64)
    evaluators = [
        HeldSamples([Split(x, labels)], dtype=dtype, device=torch.device("cpu"), fused=True)
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert not hides_in_rounding(net)
    with torch.no_grad():
        y = conv(x)
        net[1].running_mean.copy_(y.mean((0, 2, 3)))
        net[1].running_var.copy_(y.var((0, 2, 3)))
        net[1].eps = 1e-8
    assert hides_in_rounding(net)
    rounded = evaluators[1].logits(net)
    # Its images are rounded still: what is compared is what the network makes of them.
    evaluators[1]._batches = [
        part._replace(inputs=part.inputs.bfloat16().float()) for part in evaluators[1]._batches
    ]
    assert torch.equal(evaluators[0].logits(net), evaluators[1].logits(net))
    assert rounded.isfinite().all()


def test_a_learner_whose_network_bf16_gets_wrong_is_prepared_in_float32():
    from amc_compress.learners.candidates.inference.held_samples import settled_dtype

    class Unstable(nn.Module):
        def forward(self, x):
            return (x.mean((2, 3)).float() - 1) * 1e6

    net = nn.Sequential(Unstable()).eval()
    x = torch.randn(8, 3, 6, 6) * 1e-3 + 1
    for fused in (True, False):
        assert settled_dtype([net], x, torch.bfloat16, fused=fused) == torch.float32
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    assert settled_dtype([conv], x, torch.bfloat16, fused=True) == torch.bfloat16
    assert settled_dtype([conv, net], x, torch.bfloat16, fused=True) == torch.float32


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_much_work_is_proved_and_computed_in_parts_of_its_batch(
    stride, monkeypatch
):
    kernel_proof.forget()
    layer = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
    x = torch.randn(70, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), autocast(torch.bfloat16, "cpu"):
        whole = layer(x)
        monkeypatch.setattr(proved_operators, "_IMAGES_OF_A_PART", 30)
        monkeypatch.setattr(proved_operators, "_PRODUCTS_OF_A_CALL", 4 * 27 * 36 / stride**2 * 69)
        parts = layer(x)
        assert proofs().tried == 2  # 70 and twice 35
        layer(x[:69])  # little enough for one call
        assert proofs().tried == 3
    assert parts.stride() == whole.stride()
    torch.testing.assert_close(parts, whole)
    with autocast(torch.bfloat16, "cpu"):
        layer(x)  # gradients of weights are sums over the batch
    assert proofs().tried == 4


@pytest.mark.parametrize("need_weights", [False, True])
def test_products_inside_of_attention_are_proved_in_rows_without_gaps(need_weights, monkeypatch):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 16)
    run, seen = proved_operators._run, []

    def watched(func, args, kwargs):
        seen.append((func, func is not F.linear or args[0].is_contiguous()))
        return run(func, args, kwargs)

    monkeypatch.setattr(proved_operators, "_run", watched)
    with torch.inference_mode():
        expected, _ = attention(x, x, x, need_weights=need_weights)
        with autocast(torch.bfloat16, x.device):
            found, _ = attention(x, x, x, need_weights=need_weights)
    assert [func for func, _ in seen].count(F.linear) == 2  # into the heads, and out of them
    assert all(contiguous for _, contiguous in seen)
    assert (found.float() - expected).norm() <= 0.02 * expected.norm()
    assert found.dtype == torch.bfloat16

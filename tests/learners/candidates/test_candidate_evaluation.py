"""The fused evaluator says what the plain network says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from amc_compress.learners.candidates.inference.batch_sizes import in_cache
from amc_compress.learners.candidates.inference.fused_conv import FusedConv
from amc_compress.learners.candidates.inference.fusion import fuse
from amc_compress.learners.candidates.inference.held_samples import HeldSamples, fusion_works
from amc_compress.learners.layers.finalise import without_identities
from amc_compress.learners.layers.following_norms import following_norms
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import Split
from amc_compress.learners.training.data_checks import collect
from amc_env.errors import InputDataError, TrainingDivergedError
from amc_env.support.threads import limited_threads

CPU = torch.device("cpu")


class Residual(nn.Module):
    """Everything the fusion knows, and what it must leave alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.down = nn.Conv2d(8, 12, 1, stride=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.bn3 = nn.BatchNorm2d(12)
        self.reflect = nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect")
        self.bias = nn.Parameter(torch.randn(1, 12, 1, 1))
        self.same = nn.Conv2d(12, 12, 3, padding="same")
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        x = torch.relu(y)
        x = x + self.conv2(x)  # second call of a module, no norm this time
        x = self.down(x)
        z = F.relu6(self.bn3(self.depthwise(x)))
        z = self.reflect(z) + self.bias  # broadcasts
        w = self.depthwise(z)
        x = w + F.relu(w)  # two readers
        x = self.same(x).mul(2)
        return self.head(x.mean((2, 3)))


class ReadLater(nn.Module):
    """``x += conv(y)``: somebody reads the changed ``x`` under its old name."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.a(x) * 1.0
        kept = x
        x.add_(self.b(x))
        return self.head((x + kept).mean((2, 3)))


class Untraceable(nn.Module):
    """Branches on its data."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        y = self.conv(x)
        if y.mean() > 1000:
            y = y * 0
        return self.head(y.mean((2, 3)))


class Overtaken(nn.Module):
    """The input of a convolution changes in place between it and the sum it is fused with."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.a(x) * 1.0
        y = self.b(x)
        F.relu_(x)
        return self.head((y + x.sin()).mean((2, 3)))


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def images(n=20):
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("network", [Residual, ReadLater])
def test_fused_network_equals_the_plain_one_in_float32(network):
    torch.manual_seed(0)
    model = randomised(network())
    with torch.no_grad():
        expected = model(images())
        before = {k: v.clone() for k, v in model.state_dict().items()}
        found = fuse(model, torch.float32)(images())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_convolution_norm_sum_and_activation_become_one_call():
    fused = fuse(randomised(Residual()), torch.float32)
    calls = [m for m in fused.children() if isinstance(m, FusedConv)]
    assert sum(m.activation == "relu" for m in calls) == 3
    assert sum(m.activation == "relu6" for m in calls) == 1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


@pytest.mark.parametrize("native", [True, False])
def test_public_operators_and_onednn_agree(native, monkeypatch):
    from amc_compress.learners.candidates.inference import fused_conv

    monkeypatch.setattr(fused_conv, "onednn_available", lambda: native)
    model = randomised(Residual())
    with torch.no_grad():
        found = fuse(model, torch.float32)(images())
        torch.testing.assert_close(found, model(images()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 9, 16])
@pytest.mark.parametrize("width", [5, 6, 8])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 5), (2, 4)])
def test_narrow_convolutions_compute_pixels_together_and_agree(channels, width, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, channels, kernel, padding=(1, 2))
    fused = FusedConv.of(conv, None, "relu", torch.float32)
    x = torch.randn(3, 6, 7, width)
    with torch.no_grad():
        expected = conv(x)
        other = torch.randn_like(expected)
        torch.testing.assert_close(fused(x), expected.relu(), atol=1e-5, rtol=1e-4)
        total = fused(x, other)
        torch.testing.assert_close(total, (expected + other).relu(), atol=1e-5, rtol=1e-4)
        fused.overwrites = True
        written = fused(x, other.contiguous(memory_format=torch.channels_last).clone())
        assert torch.equal(written, total)
    assert total.is_contiguous(memory_format=torch.channels_last)


def test_bf16_agrees_on_the_class_of_nearly_all_images():
    model = randomised(Residual())
    x = images(400)
    labels = torch.zeros(400, dtype=torch.int64)
    exact = HeldSamples([Split(x, labels)], dtype=torch.float32, device=CPU).logits(model)
    for fused in (True, False):
        rounded = HeldSamples([Split(x, labels)], dtype=torch.bfloat16, device=CPU, fused=fused)
        agreement = (rounded.logits(model).argmax(1) == exact.argmax(1)).float().mean()
        assert agreement >= 0.97


def score_of(evaluator, model):
    meter = evaluator.task.meter()
    evaluator.measure(model, meter)
    return evaluator.task.score(meter.compute())


def test_accuracy_is_the_share_of_right_answers():
    model = randomised(Residual())
    x = images(30)
    answers = model(x).argmax(1)
    labels = answers.clone()
    labels[:12] = (labels[:12] + 1) % 5
    for fused in (True, False):
        evaluator = HeldSamples(
            [Split(x, labels)], dtype=torch.float32, device=CPU, batch_size=7, fused=fused
        )
        assert score_of(evaluator, model) == 18 / 30


def test_only_a_norm_that_one_convolution_feeds_belongs_to_it():
    # conv2 is called twice, the stem has a norm of its own, the depthwise layer is called twice.
    assert following_norms(Residual().eval()) == {"stem.0": "stem.1", "conv1": "bn1"}
    assert following_norms(Untraceable().eval()) == {}


class OptionalMask(nn.Module):
    """As detectors and transformers have it: usually there is no mask."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.nothing = nn.Identity()
        self.head = nn.Linear(8, 5)

    def forward(self, x, mask=None, *, scale=1.0):
        x = self.nothing(self.norm(self.conv(x)))
        if mask is not None:
            x = x * mask
        return self.head(torch.relu(x).mean((2, 3))) * scale


def test_arguments_that_have_a_default_keep_it_in_a_fused_network(capsys):
    model = randomised(OptionalMask())
    with torch.no_grad():
        want = model(images())
        assert torch.allclose(fuse(model, torch.float32)(images()), want, atol=1e-5)
        bare = without_identities(model)
        assert torch.equal(bare(images()), want)
    assert "nothing" not in {str(node.target) for node in bare.graph.nodes}
    assert following_norms(model) == {"conv": "norm"}
    assert fusion_works(model, images(), torch.float32)
    assert capsys.readouterr().err == ""


class Rereading(nn.Module):
    """Summands that somebody still needs after the sum, directly or through a view."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(7))
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        a, b, c, d, e, f, g = self.convs
        first = a(x)
        second = b(first) + first  # read again at the end
        third = c(second)
        view = third[:, :, ::2]
        fourth = d(third) + third  # a view of it is read again
        fifth = e(fourth) + x  # the input itself
        sixth = g(f(fifth)) + fifth  # free to be overwritten
        return self.head((first + sixth).mean((2, 3)) + view.mean((2, 3)))


def test_sums_are_written_over_their_summand_only_if_nothing_needs_it():
    torch.manual_seed(0)
    model, x = Rereading().eval(), images(8)
    expected, before = model(x), x.clone()
    with torch.no_grad():
        fused = fuse(model, torch.float32)
        torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(x, before)
    flags = [m.overwrites for m in fused.children() if isinstance(m, FusedConv)]
    assert flags == [False, False, False, False, False, False, True]


def test_networks_that_cannot_be_fused_right_are_found_out():
    torch.manual_seed(0)
    assert fusion_works(randomised(Residual()), images(4), torch.bfloat16)
    assert not fusion_works(Untraceable().eval(), images(4), torch.float32)
    assert not fusion_works(Overtaken().eval(), images(4), torch.float32)


def test_nan_outputs_are_an_error_not_an_accuracy():
    model = randomised(Residual())
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    evaluator = HeldSamples(
        [Split(images(), torch.zeros(20, dtype=torch.int64))], dtype=torch.float32, device=CPU
    )
    with pytest.raises(TrainingDivergedError, match="finite network outputs"):
        score_of(evaluator, model)


def test_threads_are_put_back_even_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def fail():
        with limited_threads(1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == before


def batches(n, size=4, **changes):
    x = torch.zeros(size, 3, 8, 8)
    y = torch.zeros(size, dtype=torch.int64)
    return [(changes.get("x", x), changes.get("y", y))] * n


def test_collect_stops_at_the_limit():
    example = torch.zeros(1, 3, 8, 8)
    ((x, y),) = collect(batches(5), 10, "calibration", example, task=CLASSIFICATION)
    assert x.shape == (10, 3, 8, 8)
    assert y.shape == (10,)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "at least one batch of validation images"),
        (batches(1, x=torch.zeros(4, 3, 9, 9)), r"shape \(3, 8, 8\).*got \(3, 9, 9\)"),
        (batches(1, x=torch.full((4, 3, 8, 8), float("nan"))), "NaN or infinite pixels"),
        (batches(1, y=torch.zeros(4)), "one integer label per validation image"),
        (batches(1, y=torch.zeros(3, dtype=torch.int64)), "one integer label"),
        ([torch.zeros(4, 3, 8, 8)], "got inputs alone"),
    ],
)
def test_data_the_network_does_not_expect_is_rejected(data, sentence):
    with pytest.raises(InputDataError, match=sentence):
        collect(data, None, "validation", torch.zeros(1, 3, 8, 8), task=CLASSIFICATION)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_outside_the_classes_are_rejected(label):
    with pytest.raises(InputDataError, match="labels from 0 to 9"):
        CLASSIFICATION.check_range(torch.zeros(2, 10), torch.tensor([0, label]), "validation ")


class NormsFirst(nn.Module):
    """Convolutions behind their norms, one of which is read twice."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.relu = nn.ReLU()

    def forward(self, x):
        x = torch.cat([x, self.convs[0](F.relu(self.norms[0](x)))], 1)[:, 4:12]
        x = x + self.convs[1](self.relu(self.norms[1](x)))
        y = self.norms[2](x)
        return self.convs[2](F.relu(y)).mean((2, 3)) + y.mean((2, 3))


def test_an_activation_is_written_over_a_norm_that_nothing_else_reads():
    torch.manual_seed(0)
    net, x = NormsFirst(), torch.randn(6, 8, 5, 5)
    net.train()(x)
    kept = x.clone()
    with torch.inference_mode():
        function = fuse(net.eval(), torch.float32)
        torch.testing.assert_close(function(x), net(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(x, kept)
    assert sum(node.target is torch.relu_ for node in function.graph.nodes) == 2


def test_batches_are_small_where_layers_are_wide():
    narrow = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3)).eval()
    wide = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 4, 3)).eval()
    huge = nn.Sequential(nn.Conv2d(3, 512, 3, padding=1), nn.Conv2d(512, 4, 3)).eval()
    images = torch.randn(2, 3, 32, 32)
    assert [in_cache(net, images, 125) for net in (narrow, wide, huge)] == [125, 32, 16]
    assert in_cache(wide, images, 20) == 20

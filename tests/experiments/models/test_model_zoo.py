"""The zoo: sizes against published or hand-made numbers, factories, rejections."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from amc_compress.models import MODELS, make_model
from amc_env.errors import InputDataError


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, channels: int, size: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, channels, size, size))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def densenet40_parameters() -> int:
    total, width = 3 * 16 * 9, 16
    for block in range(3):
        for _ in range(12):
            total += 2 * width + width * 12 * 9
            width += 12
        if block < 2:
            total += 2 * width + width * width
    return total + 2 * width + width * 10 + 10


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("lenet", 10, 61_706),  # 156 + 2,416 + 48,120 + 10,164 + 850
        ("plain20", 10, 269_722),
        ("resnet20", 10, 269_722),  # He et al.: 0.27 M; the public repository's table
        ("resnet32", 10, 464_154),
        ("resnet56", 10, 853_018),
        ("mobilenet_v1", 1000, 4_231_976),  # paper: 4.2 M
        ("mobilenet_v2", 1000, 3_504_872),  # torchvision's documentation
        ("vgg16_bn", 10, 14_728_266),
        ("densenet40", 10, densenet40_parameters()),  # paper: 1.0 M
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, expected: int) -> None:
    channels = 1 if name == "lenet" else 3
    assert parameters(make_model(name, n_classes=classes, in_channels=channels)) == expected


def resnet_macs(blocks: int) -> int:
    # Every 3 x 3 convolution inside a stage costs the same: half the side, double the width.
    inside = 32 * 32 * 16 * 16 * 9
    per_stage = 2 * blocks * inside
    down = 2 * (inside - inside // 2)  # the first of stages 2 and 3 reads half the channels
    return 32 * 32 * 3 * 16 * 9 + 3 * per_stage - down + 64 * 10


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 3), ("plain20", 3), ("resnet56", 9)])
def test_resnet_macs_equal_the_hand_sum(name: str, blocks: int) -> None:
    assert macs(make_model(name), 3, 32) == resnet_macs(blocks)


def test_resnet20_has_the_known_macs() -> None:
    # 40.81 M is the count with 1x1-convolution shortcuts; option A saves the two of 131,072 each.
    assert resnet_macs(3) == 40_813_184 - 2 * 131_072


def test_mobilenet_v1_has_the_papers_macs() -> None:
    # 112 x 112 without the stem's stride is 224 x 224 with it (paper: 569 M).
    sides = [112, 112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7]
    widths = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    total = 112 * 112 * 27 * 32 + 1024 * 1000
    for i in range(13):
        total += sides[i + 1] ** 2 * widths[i] * (9 + widths[i + 1])
    assert round(total / 1e6) == 569
    assert macs(make_model("mobilenet_v1", n_classes=1000), 3, 112) == total


def test_mobilenet_v2_macs_equal_the_hand_sum() -> None:
    total, side, width = 32 * 32 * 27 * 32, 32, 32
    for t, c, n, s in [
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for i in range(n):
            hidden = t * width
            if t > 1:
                total += side * side * width * hidden
            side //= s if i == 0 else 1
            total += side * side * hidden * (9 + c)
            width = c
    total += side * side * 320 * 1280 + 1280 * 10
    assert macs(make_model("mobilenet_v2"), 3, 32) == total


def test_digitsnet_costs_between_one_and_three_million_macs() -> None:
    assert 1_000_000 <= macs(make_model("digitsnet", in_channels=1), 1, 8) <= 3_000_000


def test_resnet_keys_are_those_of_the_public_repository() -> None:
    expected = {"conv1.weight", "linear.weight", "linear.bias"}
    norms = ["bn1"]
    for layer, block in [(layer, block) for layer in (1, 2, 3) for block in range(3)]:
        expected |= {f"layer{layer}.{block}.conv{i}.weight" for i in (1, 2)}
        norms += [f"layer{layer}.{block}.bn{i}" for i in (1, 2)]
    for norm in norms:
        fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        expected |= {f"{norm}.{name}" for name in fields}
    assert set(make_model("resnet20").state_dict()) == expected


def test_option_a_shortcut_subsamples_and_pads_both_sides() -> None:
    model = make_model("resnet20")
    x = torch.randn(2, 16, 32, 32)
    shortcut = model.get_submodule("layer2.0.shortcut")
    expected = torch.zeros(2, 32, 16, 16)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(shortcut(x), expected)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"unet_small", "fcos_small"}))
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_every_network_takes_any_channels_and_classes(name: str, channels: int, size: int) -> None:
    model = make_model(name, n_classes=7, in_channels=channels, image_size=size).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["lenet", "resnet20", "mobilenet_v2", "vgg16_bn", "digitsnet"])
def test_networks_take_digits(name: str) -> None:
    model = make_model(name, in_channels=1, image_size=8).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_lenet_rejects_images_too_small_for_it() -> None:
    with pytest.raises(InputDataError, match="at least 4 x 4"):
        make_model("lenet", in_channels=1, image_size=3)


def test_unknown_model_lists_the_names_and_the_nearest() -> None:
    with pytest.raises(
        InputDataError, match=r"Unknown model 'resnet_20'; did you mean 'resnet20'.*densenet40"
    ):
        make_model("resnet_20")


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    source = """
        from torch import nn
        def two(n_classes, in_channels): return nn.Linear(in_channels, n_classes)
        def torchvision_style(num_classes=3): return nn.Linear(2, num_classes)
        def fixed(): return nn.Linear(2, 2)
        def needs_more(width): return nn.Linear(width, 2)
        def no_network(): return 3
        constant = 3
    """
    (tmp_path / "user_nets_for_test.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "user_nets_for_test"


def test_a_users_factory_gets_the_keywords_it_names(user_module: str) -> None:
    two = make_model(f"{user_module}:two", n_classes=5, in_channels=4)
    assert (two.in_features, two.out_features) == (4, 5)
    assert make_model(f"{user_module}:torchvision_style", n_classes=5).out_features == 5
    assert make_model(f"{user_module}:fixed", n_classes=5).out_features == 2


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("needs_more", "cannot be called.*width.*default values"),
        ("no_network", "must return a torch.nn.Module, got int"),
        ("constant", "to be a function or a class.*got int"),
        ("missing", "has no 'missing'"),
    ],
)
def test_a_users_factory_that_is_none_is_rejected(
    user_module: str, attribute: str, message: str
) -> None:
    with pytest.raises(InputDataError, match=message):
        make_model(f"{user_module}:{attribute}")


def test_a_module_that_is_not_there_is_rejected() -> None:
    with pytest.raises(InputDataError, match=r"'no_such_package_x' .* cannot be imported"):
        make_model("no_such_package_x:net")

"""What an optimiser step is made of: parts of batches, batches of one, and types of numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.shared_training import ONE_EPOCH, Net
from support.small_training import batches, equal, network, weights
from torch import Tensor, nn

from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.feature_matching import FeatureMatching
from amc_compress.learners.training.loop import train
from amc_env.errors import InputDataError


def trained(
    model: nn.Module, loader: Any, config: TrainingConfig, **more: Any
) -> dict[str, Tensor]:
    train(model, loader, batches(48, seed=1), config, **more)
    return weights(model)


def halved(loader: Any) -> list[Any]:
    return [
        half for x, y in loader for half in zip(x.tensor_split(2), y.tensor_split(2), strict=True)
    ]


def test_accumulated_batches_are_one_batch() -> None:
    more = {"teacher": Net(wide=12).eval(), "hooks": [FeatureMatching(weight=10.0)]}
    whole = trained(Net(), batches(69), ONE_EPOCH, **more)  # the last ones have 3 and 2 samples
    parts = trained(Net(), halved(batches(69)), replace(ONE_EPOCH, accumulate=2), **more)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=1e-6)


def test_accumulated_masks_count_by_their_pixels() -> None:
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images)

    (images, labels), *_ = batches(32)
    masks = labels[:, None, None].expand(32, 6, 6).clone()
    masks[:16, 1:] = 255  # ignored: half of the samples have a sixth of the others' pixels
    loader = [(images, masks)]
    found = []
    for parts, accumulate in ((loader, 1), (halved(loader), 2)):
        model = Masks()
        train(model, parts, loader, replace(ONE_EPOCH, accumulate=accumulate), task="segmentation")
        found.append(model.conv.weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def pooled() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip


def test_a_last_batch_of_one_that_norms_cannot_train_on_is_left_out() -> None:
    without = trained(pooled(), batches(65)[:2], replace(ONE_EPOCH, schedule="constant"))
    found = trained(pooled(), batches(65), replace(ONE_EPOCH, schedule="constant"))
    assert equal(without, found)
    # A norm over 6 x 6 places has a variance of one sample too.
    assert not equal(
        trained(network(), batches(65)[:2], ONE_EPOCH), trained(network(), batches(65), ONE_EPOCH)
    )


def test_batches_of_one_alone_are_rejected_where_norms_train() -> None:
    with pytest.raises(InputDataError, match=r"batches of at least 2 samples.* larger batch size"):
        trained(pooled(), [(x[:1], y[:1]) for x, y in batches(64)], ONE_EPOCH)


def test_a_training_in_float16_scales_its_losses_and_resumes(tmp_path: Path) -> None:
    config = replace(ONE_EPOCH, epochs=3, precision="fp16", gradient_clip=1.0, snapshot_steps=2)
    straight = network()
    result = train(straight, batches(), batches(48, seed=1), config, checkpoint_dir=tmp_path)
    assert result.history[-1].train_loss < result.history[0].train_loss
    state = torch.load(tmp_path / "last.pt", weights_only=True)["stepper"]["scaler"]
    assert state["scale"] >= 1.0
    again = train(
        network(), batches(), batches(48, seed=1), config, checkpoint_dir=tmp_path, resume=True
    )
    assert again.final_score == result.final_score


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_compiled_network_and_a_fused_step_train_alike(optimizer: str) -> None:
    plain = replace(ONE_EPOCH, optimizer=optimizer, learning_rate=0.01)
    expected = trained(network(), batches(70), plain)
    found = trained(network(), batches(70), replace(plain, compile=True, fused_optimizer=True))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)

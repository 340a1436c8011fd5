"""Checkpoints that this project did not train, on the images they were trained for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from amc_compress.data import DataSplits, load_data
from amc_compress.learners.training.loop import evaluate
from amc_compress.models import load_weights, make_model

ROOT = Path(os.environ.get("AMC_TEST_DATA", Path(__file__).resolve().parents[3].parent / "shared"))

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not ((ROOT / "data/cifar10").is_dir() and (ROOT / "checkpoints").is_dir()),
        reason="set AMC_TEST_DATA to a folder with data/cifar10 and checkpoints",
    ),
]


@pytest.fixture(scope="module")
def cifar() -> DataSplits:
    return load_data(ROOT / "data/cifar10", validation_size=5000, validation_split="tail")


def test_cifar_is_cut_as_asked(cifar: DataSplits) -> None:
    parts = (cifar.train, cifar.calibration, cifar.validation, cifar.test)
    assert [part.n_images for part in parts] == [45_000, 1000, 5000, 10_000]
    assert cifar.class_names[:3] == ("airplane", "automobile", "bird")
    assert cifar.image_shape == (3, 32, 32)


@pytest.mark.parametrize(("name", "published"), [("resnet20", 0.8844), ("resnet56", 0.8988)])
def test_checkpoints_score_as_published(cifar: DataSplits, name: str, published: float) -> None:
    model = make_model(name)
    load_weights(model, ROOT / f"checkpoints/{name}_cifar10.safetensors")
    images, labels = cifar.test.images[:1000], cifar.test.labels[:1000]
    batches = list(zip(images.split(250), labels.split(250), strict=True))
    # Standard error on 1,000 images: 1.0 point.
    assert evaluate(model, batches, precision="fp32") == pytest.approx(published, abs=0.025)
    bf16 = evaluate(model, batches, precision="bf16")
    assert bf16 == pytest.approx(evaluate(model, batches, precision="fp32"), abs=0.006)


@pytest.mark.slow
def test_resnet20_scores_as_published_on_all_images(cifar: DataSplits) -> None:
    model = make_model("resnet20")
    load_weights(model, ROOT / "checkpoints/resnet20_cifar10.safetensors")
    torch.set_num_threads(1)
    assert evaluate(model, cifar.test, precision="fp32") == pytest.approx(0.8844, abs=0.001)
    assert evaluate(model, cifar.validation, precision="fp32") == pytest.approx(0.9186, abs=0.001)

"""Batches: augmentation against a slow loop, seeds, coverage."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from amc_compress.data import Augmentation, Normalisation, RandomResizedCrop, TensorLoader
from amc_compress.data.augmenting.parts import augment
from amc_compress.data.streaming.pixels import centre
from amc_compress.learners.training.distributed.ranks import Ranks
from amc_env.errors import InputDataError

PLAIN = Normalisation(1.0, (0.0,), (1.0,))


def pixels(n: int, channels: int = 3, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def loader(n: int = 10, seed: int = 0, **options: object) -> TensorLoader:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    return TensorLoader(images, torch.arange(n), PLAIN, seed=seed, **options)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_augmentation_equals_a_loop_over_images(flip: bool, pad: int) -> None:
    images = pixels(50)
    got = augment(images, Augmentation(pad, flip), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    shifts = torch.randint(0, 2 * pad + 1, (2, 50), generator=generator)
    flips = torch.rand(50, generator=generator) < 0.5
    for n in range(50):
        canvas = torch.zeros(3, 8 + 2 * pad, 8 + 2 * pad, dtype=torch.uint8)
        canvas[:, pad : pad + 8, pad : pad + 8] = images[n]
        dy, dx = shifts[:, n].tolist()
        crop = canvas[:, dy : dy + 8, dx : dx + 8]
        assert torch.equal(got[n], crop.flip(2) if flip and flips[n] else crop)
    assert flips.any()
    assert not flips.all()


@pytest.mark.parametrize("flip", [True, False])
def test_resized_crops_are_parts_of_the_image_at_the_size_asked_for(flip: bool) -> None:
    # A ramp tells where a column came from: its ends and its direction say which part was cut.
    ramp = torch.arange(0, 160, 4, dtype=torch.uint8).expand(200, 1, 40, 40).contiguous()
    crop = RandomResizedCrop(32, flip)
    got = augment(ramp, crop, torch.Generator().manual_seed(3))
    assert got.shape == (200, 1, 32, 32)
    assert got.dtype == torch.uint8
    first, last = got[:, 0, :, 0].int(), got[:, 0, :, -1].int()
    mirrored = (first > last).all(1)
    assert ((first < last).all(1) | mirrored).all()
    assert (0.35 < mirrored.float().mean() < 0.65) if flip else not mirrored.any()
    widths = (last - first).abs()[:, 0] / 4 + 1  # in columns of the image, up to rounding
    assert widths.max() <= 41
    assert widths.min() >= 40 * (0.08 * 3 / 4) ** 0.5 - 2
    assert widths.float().std() > 5
    again = augment(ramp, crop, torch.Generator().manual_seed(3))
    assert torch.equal(got, again)


def test_a_crop_of_everything_is_the_scaled_image() -> None:
    images = pixels(5, size=16)
    whole = RandomResizedCrop(16, flip=False, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert torch.equal(augment(images, whole, torch.Generator()), images)


def test_the_centre_is_read_where_nothing_is_augmented() -> None:
    images = pixels(10, size=9)
    data = TensorLoader(images, torch.arange(10), PLAIN, batch_size=4, size=5)
    expected = images[:, :, 2:7, 2:7].float()
    assert torch.equal(torch.cat([batch for batch, _ in data]), expected)
    assert torch.equal(data.images, expected)
    assert centre(images, None) is images
    trained = TensorLoader(
        images, torch.arange(10), PLAIN, size=5, augmentation=RandomResizedCrop(5)
    )
    assert next(iter(trained))[0].shape == (10, 3, 5, 5)


def test_normalisation_is_per_channel() -> None:
    normalise = Normalisation(255.0, (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    got = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert got.tolist() == pytest.approx([1.0, 0.75, 0.5])


def test_every_image_comes_once_per_pass() -> None:
    batches = list(loader(10, shuffle=True, batch_size=4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(10))
    for images, labels in batches:
        assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    def epoch(data: TensorLoader, number: int) -> list[int]:
        data.set_epoch(number)
        return torch.cat([labels for _, labels in data]).tolist()

    data = loader(100, shuffle=True)
    first, second = epoch(data, 0), epoch(data, 1)
    assert first != second
    assert epoch(loader(100, shuffle=True), 1) == second
    assert epoch(pickle.loads(pickle.dumps(data)), 0) == first
    assert epoch(loader(100, seed=1, shuffle=True), 0) != first


@pytest.mark.parametrize("augmentation", [None, Augmentation(2), RandomResizedCrop(5)])
def test_shares_of_processes_make_up_the_batches(augmentation: object) -> None:
    whole = TensorLoader(
        pixels(25), torch.arange(25), PLAIN, batch_size=8, shuffle=True, augmentation=augmentation
    )
    whole.set_epoch(3)
    ranks = [whole.shares(Ranks(rank, 3).share) for rank in range(3)]
    for first in (0, 2):
        shares = [list(found.from_batch(first)) for found in ranks if found is not None]
        expected = list(whole.from_batch(first))
        assert len(shares) == 3
        assert {len(share) for share in shares} == {len(expected)}  # a lone last one is left out
        for (images, labels), *own in zip(expected, *shares, strict=True):
            assert all(size == len(labels) for _, size in own)
            assert torch.equal(torch.cat([x for (x, _), _ in own]), images)
            assert torch.equal(torch.cat([y for (_, y), _ in own]), labels)


def test_global_random_numbers_are_not_touched() -> None:
    state = torch.random.get_rng_state()
    list(loader(10, shuffle=True, augmentation=Augmentation(1, True)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_lone_last_training_image_is_left_out_and_counted_so() -> None:
    data = loader(9, shuffle=True, batch_size=4)
    assert len(data) == len(list(data)) == 2
    plain = loader(9, batch_size=4)
    assert len(plain) == len(list(plain)) == 3


def test_images_and_labels_must_be_as_many() -> None:
    with pytest.raises(InputDataError, match="10 images and 9 labels"):
        TensorLoader(pixels(10), torch.zeros(9, dtype=torch.int64), PLAIN)
    with pytest.raises(ValueError, match="batch_size"):
        loader(4, batch_size=0)

"""Pictures: the same images in every mode, depth and format are the same pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support.stored_images import encode, pictures, table, write_parquet

from amc_compress.data import DataSplits, load_data
from amc_env.errors import InputDataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "cache"))


def digits(n: int = 40) -> list[np.ndarray]:
    """The first digits in all of 0 to 255."""
    images = load_digits().images[:n]
    return [np.rint(image * 255 / 16).astype(np.uint8) for image in images]


def loaded(folder: Path, train: list[bytes], test: list[bytes], **options: Any) -> DataSplits:
    for name, images in (("train", train), ("test", test)):
        labels = [i % 2 for i in range(len(images))]
        write_parquet(folder / f"{name}.parquet", table(images, labels))
    return load_data(folder, validation_split="tail", progress=False, **options)


def everything(data: DataSplits) -> torch.Tensor:
    return torch.cat([data.train.pixels, data.validation.pixels, data.test.pixels])


def _words(image: np.ndarray, order: str = "<") -> Image.Image:
    return Image.fromarray((image.astype(np.uint16) * 257).astype(f"{order}u2"))


def _numbers(scale: float, kind: type) -> Callable[[np.ndarray], Image.Image]:
    return lambda image: Image.fromarray((image.astype(np.float64) * scale).astype(kind))


def _converted(mode: str) -> Callable[[np.ndarray], Image.Image]:
    return lambda image: Image.fromarray(image).convert("RGB").convert(mode)


def _palette(image: np.ndarray) -> Image.Image:
    made = Image.fromarray(255 - image).convert("P")
    made.putpalette([255 - i // 3 for i in range(768)])
    return made


STORED: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "L as BMP": (Image.fromarray, "BMP"),
    "L as TIFF": (Image.fromarray, "TIFF"),
    "L as PGM": (Image.fromarray, "PPM"),
    "L as GIF": (Image.fromarray, "GIF"),
    "L as JPEG 2000": (Image.fromarray, "JPEG2000"),
    "LA": (_converted("LA"), "PNG"),
    "P": (_palette, "PNG"),
    "I;16 as PNG": (_words, "PNG"),
    "I;16 as TIFF": (_words, "TIFF"),
    "I;16B as TIFF": (lambda image: _words(image, ">"), "TIFF"),
    "I;16 as JPEG 2000": (_words, "JPEG2000"),
    "I as PGM": (_numbers(257, np.int32), "PPM"),
    "I to 255": (_numbers(1, np.int32), "TIFF"),
    "I to 65535": (_numbers(257, np.int32), "TIFF"),
    "F to 1": (_numbers(1 / 255, np.float32), "TIFF"),
    "F to 255": (_numbers(1, np.float32), "TIFF"),
    "F to 65535": (_numbers(257, np.float32), "TIFF"),
}
COLOURED: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "RGB": (_converted("RGB"), "PNG"),
    "RGBA": (_converted("RGBA"), "PNG"),
    "RGB as WebP": (_converted("RGB"), "WEBP"),
    "CMYK": (_converted("CMYK"), "TIFF"),
    "YCbCr": (_converted("YCbCr"), "TIFF"),
}


@pytest.mark.parametrize("kind", [*STORED, *COLOURED])
def test_the_same_digits_are_the_same_pixels_in_every_mode_and_depth(
    kind: str, tmp_path: Path
) -> None:
    make, format = (STORED | COLOURED)[kind]
    options = {"lossless": True} if format == "WEBP" else {}
    images = digits()
    stored = [encode(make(image), format, **options) for image in images]
    expected = torch.from_numpy(np.stack(images))[:, None]
    got = everything(loaded(tmp_path / "set", stored[:32], stored[32:]))
    assert got.dtype == torch.uint8
    assert got.shape == (40, 1 if kind in STORED else 3, 8, 8)
    difference = (got.int() - expected.int()).abs().max()
    assert difference <= (1 if kind == "YCbCr" else 0)


def test_black_and_white_is_grey(tmp_path: Path) -> None:
    images = [np.where(image > 127, 255, 0).astype(np.uint8) for image in digits(20)]
    stored = [encode(Image.fromarray(image).convert("1", dither=0)) for image in images]
    got = everything(loaded(tmp_path / "set", stored[:16], stored[16:]))
    assert np.array_equal(got[:, 0].numpy(), np.stack(images))


@pytest.mark.parametrize("coloured", ["train", "test"])
def test_one_coloured_image_makes_all_of_them_rgb(coloured: str, tmp_path: Path) -> None:
    grey, red = pictures(20, 1, (6, 6)), pictures(1, 2)[0]
    train, test = [encode(image) for image in grey[:14]], [encode(image) for image in grey[14:]]
    (train if coloured == "train" else test).append(encode(red))
    for _ in range(2):  # decoded, and from the cache
        data = loaded(tmp_path / "set", train, test, validation_size=2)
        assert data.image_shape == (3, 6, 6)
        assert np.array_equal(data.train.pixels[0].numpy(), np.stack([grey[0]] * 3))
        assert np.array_equal(data.test.pixels[1].numpy(), np.stack([grey[15]] * 3))
        last = data.validation if coloured == "train" else data.test
        assert np.array_equal(last.pixels[-1].numpy(), red.transpose(2, 0, 1))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_stand_upright(format: str, tmp_path: Path) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8] = 255  # the top left is white
    turns = {3: 2, 6: 1, 8: 3}  # EXIF orientation -> quarter turns that undo the one it stands for
    stored = []
    for orientation, quarters in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.append(encode(np.rot90(upright, quarters), format, exif=exif))
    data = loaded(tmp_path / "set", [encode(255 - upright), encode(upright)], stored)
    for image in data.test.pixels.int():
        assert (image - torch.from_numpy(upright).permute(2, 0, 1).int()).abs().max() < 32
    assert format == "TIFF" or any("3 images turned" in note for note in data.notes)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L", "I;16"])
def test_what_is_transparent_is_laid_over_white(mode: str, tmp_path: Path) -> None:
    grey = np.array([[0, 0], [0, 200]], np.uint8)
    if mode in ("LA", "RGBA"):
        image = Image.fromarray(grey).convert(mode)
        image.putalpha(Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)))
        expected, options = [[255, 0], [0, 200]], {}
    else:
        image = _words(grey) if mode == "I;16" else Image.fromarray(grey).convert(mode)
        expected, options = [[255, 255], [255, 200]], {"transparency": 0}
    plain = [encode(image) for image in pictures(3, 0, (2, 2))]
    data = loaded(tmp_path / "set", plain, [encode(image, **options)], validation_size=1)
    assert data.test.pixels[0, 0].tolist() == expected
    assert any("1 image with transparent parts" in note for note in data.notes)


def test_the_middle_of_a_scaled_picture_is_as_scaling_and_cropping(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(300), np.arange(500)) * 255 / 800
    image = Image.fromarray(np.stack([smooth] * 3, -1).astype(np.uint8))
    size = 56
    short = image.resize((round(64 * 500 / 300), 64), Image.Resampling.BILINEAR)
    left = round((short.width - size) / 2)
    expected = np.asarray(short)[4 : 4 + size, left : left + size]
    for format, tolerance in (("PNG", 2), ("JPEG", 3)):  # half a pixel of shift, and draft mode
        train = [encode(image, format), encode(image.transpose(1), format)]
        data = loaded(tmp_path / format, train, [train[0]], image_size=size, validation_size=1)
        assert data.image_shape == (3, size, size)
        assert data.train.pixels.shape[1:] == (3, 64, 64)
        got = data.test.pixels[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(got - expected).max() <= tolerance
        images, _ = next(iter(data.train))
        assert images.shape == (1, 3, size, size)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.full((4, 4), 0.2 * k, np.float32) - 1 for k in range(8)], "mode F with values from"),
        ([np.full((4, 4), k, np.float32) for k in range(8)], "from 0 to 5: expected 0 to 1 or"),
        ([np.full((4, 4), k * 100, np.int32) for k in range(8)], r"0 to 500: expected 0 to 255 or"),
        ([np.full((4, 4), np.nan, np.float32)] * 8, "Image 0 .* holds values that are NaN"),
        ([np.full((4, 4), 500 * k, np.uint16) for k in range(8)], "no value above 3500"),
    ],
)
def test_pictures_without_a_known_range_are_rejected(
    images: list[np.ndarray], message: str, tmp_path: Path
) -> None:
    stored = [encode(image, "TIFF") for image in images]
    with pytest.raises(InputDataError, match=message):
        loaded(tmp_path / "set", stored[:6], stored[6:])


def test_floats_of_the_test_split_must_fit_the_range_of_the_training_split(tmp_path: Path) -> None:
    train = [encode(np.full((4, 4), k / 5, np.float32), "TIFF") for k in range(6)]
    for _ in range(2):  # the range is known from the cache, too
        data = loaded(tmp_path / "set", train, [encode(np.full((4, 4), 0.25, np.float32), "TIFF")])
        assert data.test.pixels.unique().tolist() == [64]
        assert any("of floats: 1 is white" in note for note in data.notes)
    with pytest.raises(InputDataError, match=r"Image 0 of the test split has values from 9 to 9"):
        loaded(tmp_path / "set", train, [encode(np.full((4, 4), 9, np.float32), "TIFF")])


def test_modes_without_a_way_to_rgb_are_named(tmp_path: Path) -> None:
    stored = [encode(Image.new("LAB", (4, 4)), "TIFF")] * 3
    with pytest.raises(InputDataError, match="Image 0 of the train split has the mode LAB"):
        loaded(tmp_path / "set", stored, stored)


def _bomb(side: int) -> bytes:
    """A PNG that claims ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_decompression_bombs_are_one_sentence(side: int, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="Image 0 of the train split claims more than"):
        loaded(tmp_path / "set", [_bomb(side)] * 3, [_bomb(side)])


@pytest.mark.parametrize("cut", [20, 45, 60])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damaged_files_of_any_format_are_one_sentence(
    format: str, cut: int, tmp_path: Path
) -> None:
    whole = encode(pictures(1, 0, (32, 32, 3))[0], format)
    with pytest.raises(InputDataError, match="Image 1 of the train split is damaged or not an"):
        loaded(tmp_path / "set", [whole, whole[:cut], whole], [whole])


def test_too_much_for_the_memory_is_said_before_decoding(tmp_path: Path) -> None:
    stored = [encode(image) for image in pictures(4)]
    with pytest.raises(InputDataError, match=r"need .* GB at .* give a smaller --image-size"):
        loaded(tmp_path / "set", stored, stored, image_size=9_000_000)

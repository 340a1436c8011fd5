"""Decodes whole splits to tensors of one size and channel count, through the cache."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amc_compress.data.cache import Decoded, cache_file, read_cache, write_cache
from amc_compress.data.copies import digests_of
from amc_compress.data.pictures import NOTES, Decoder, complaint, no_bombs, numeric_mode, white_of
from amc_compress.data.sources.stored import Picture, StoredSplit
from amc_env.errors import InputDataError
from amc_env.validation.sentences import counted

_LEAST_WORD = 65535 // 4


def decode_splits(
    splits: Mapping[str, StoredSplit], size: int | None, progress: bool | None = None
) -> tuple[dict[str, Decoded], list[str]]:
    """Decodes all splits of a data set; RGB as soon as one image of any of them is.

    Args:
        splits: Name -> what is stored.
        size: Side of the central square of each image; None where all have one size.
        progress: Show a progress bar; None shows it on a terminal.

    Returns:
        Name -> pixels and digests, and what had to be done to the images, as sentences.

    Raises:
        InputDataError: If images are damaged, of several sizes, or of no known range.
    """
    done: dict[str, Decoded] = {}
    decoder = Decoder(size)
    for name in sorted(splits, key=lambda name: name != "train"):  # it tells the range of floats
        done[name] = _decode_split(splits[name], decoder, progress)
    if 0 < decoder.brightest < _LEAST_WORD:
        raise InputDataError(
            f"The images have 16 bits per pixel, but no value above {decoder.brightest}: expected "
            f"them to use 0 to 65535; stretch all images alike to that range, or store 8 bits."
        )
    if len({decoded.pixels.shape[1] for decoded in done.values()}) > 1:
        done = {name: _coloured(decoded) for name, decoded in done.items()}
    notes = [_note(key, decoder) for key in NOTES if decoder.seen[key]]
    return {name: done[name] for name in splits}, notes


def _note(key: str, decoder: Decoder) -> str:
    return NOTES[key].format(counted(decoder.seen[key], "image"), decoder.white.get(key))


def _coloured(decoded: Decoded) -> Decoded:
    if decoded.pixels.shape[1] == 3:
        return decoded
    pixels = decoded.pixels.expand(-1, 3, -1, -1).contiguous()
    return Decoded(pixels, digests_of(pixels), decoded.facts)


def _decode_split(split: StoredSplit, decoder: Decoder, progress: bool | None) -> Decoded:
    """Decodes one split; passes what it found to the decoder, also from the cache."""
    options = [decoder.size, sorted(decoder.white.items())]
    cache = cache_file(split.files, options)
    decoded = read_cache(cache)
    if decoded is not None and len(decoded.pixels) == split.count:
        decoder.seen.update(decoded.facts["seen"])
        decoder.white.update(decoded.facts["white"])
        decoder.brightest = max(decoder.brightest, decoded.facts["brightest"])
        return decoded
    before, decoder.brightest = decoder.brightest, 0
    seen = decoder.seen.copy()
    with no_bombs():
        pixels = _pixels(split, decoder, progress)
    facts: dict[str, Any] = {
        "seen": dict(decoder.seen - seen),
        "white": dict(decoder.white),
        "brightest": decoder.brightest,
    }
    decoder.brightest = max(before, decoder.brightest)
    decoded = Decoded(pixels, digests_of(pixels), facts)
    write_cache(cache, decoded)
    return decoded


def _pixels(split: StoredSplit, decoder: Decoder, progress: bool | None) -> Tensor:
    """Uint8 (N, C, H, W) with one channel until a coloured image comes, and three from then on."""
    disable = None if progress is None else not progress
    bar = tqdm(
        split.images(), f"decode {split.name}", total=split.count, unit="image", disable=disable,
        leave=False,
    )  # fmt: skip
    if decoder.size is not None:
        _check_memory(split, (decoder.size, decoder.size))
    whole: np.ndarray | None = None
    for index, picture in enumerate(bar):
        try:
            image = decoder.decode(picture)
        except KeyError as error:  # a mode of which the range is not known yet
            if error.args[0] not in ("I", "F"):
                raise _unusable(split, index, picture, error) from error
            _learn_white(split, decoder, error.args[0])
            image = _retry(split, decoder, index, picture)
        except Exception as error:  # a damaged file may make its decoder raise anything
            raise _unusable(split, index, picture, error) from error
        if whole is None:
            whole = _room(split, image)
        if image.shape[:2] != whole.shape[2:]:
            raise _of_another_size(_named(split, index, picture), image, whole)
        if image.ndim == 3 and whole.shape[1] == 1:
            grey, whole = whole, _room(split, image)
            whole[:index] = grey[:index]
        whole[index] = image.transpose(2, 0, 1) if image.ndim == 3 else image
    if whole is None:
        raise InputDataError(f"The {split.name} split has no images.")
    return torch.from_numpy(whole)


def _retry(split: StoredSplit, decoder: Decoder, index: int, picture: Picture) -> np.ndarray:
    try:
        return decoder.decode(picture)
    except Exception as error:
        raise _unusable(split, index, picture, error) from error


def _room(split: StoredSplit, image: np.ndarray) -> np.ndarray:
    """Memory for all images, uint8 (N, C, H, W)."""
    _check_memory(split, image.shape)
    channels = 1 if image.ndim == 2 else 3
    return np.empty((split.count, channels, *image.shape[:2]), np.uint8)


def _check_memory(split: StoredSplit, shape: tuple[int, ...]) -> None:
    """Rejects more pixels than the machine can hold; ``shape`` is (H, W) or (H, W, C)."""
    needed = split.count * math.prod(shape)
    memory = _memory()
    if memory is not None and needed > memory:
        raise InputDataError(
            f"The {split.count:,} images of the {split.name} split need {needed / 1e9:.0f} GB at "
            f"{shape[1]} x {shape[0]} pixels, this machine has {memory / 1e9:.0f} GB: give a "
            f"smaller --image-size or fewer images."
        )


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return None


def _learn_white(split: StoredSplit, decoder: Decoder, mode: str) -> None:
    """Finds out what is white in the images of a mode, from all of them in this split."""
    lows, highs = [], []
    for index, picture in enumerate(split.images()):
        try:
            found = numeric_mode(picture)
        except Exception as error:
            raise _unusable(split, index, picture, error) from error
        if found is not None and found[0] == mode:
            lows.append(found[1])
            highs.append(found[2])
    try:
        decoder.white[mode] = white_of(mode, lows, highs)
    except InputDataError as error:
        raise InputDataError(f"The {split.name} split holds {error}.") from error


def _named(split: StoredSplit, index: int, picture: Picture) -> str:
    file = f" ({picture})" if isinstance(picture, Path) else ""
    return f"Image {index} of the {split.name} split{file}"


def _unusable(split: StoredSplit, index: int, picture: Picture, error: Exception) -> InputDataError:
    return InputDataError(f"{_named(split, index, picture)} {complaint(error)}.")


def _of_another_size(name: str, image: np.ndarray, whole: np.ndarray) -> InputDataError:
    return InputDataError(
        f"{name} is {image.shape[1]} x {image.shape[0]} pixels, "
        f"but the first is {whole.shape[3]} x {whole.shape[2]}: give --image-size N to scale and "
        f"crop all of them to N x N."
    )

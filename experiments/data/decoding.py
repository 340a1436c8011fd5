"""Decodes whole splits to tensors of one size and channel count, through the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amc_compress.data.cache import Decoded, cache_file, read_cache, write_cache
from amc_compress.data.copies import digests_of
from amc_compress.data.pictures import NOTES, Decoder, no_bombs, numeric_mode, white_of
from amc_compress.data.raw import Pixels
from amc_compress.data.sources.stored import Picture, StoredSplit
from amc_compress.data.streaming.encoded import lookup_of
from amc_compress.data.streaming.examination import Examined, UnknownRangeError, examined
from amc_compress.data.streaming.memory import Room, TooLargeError, check_few, usual_memory
from amc_compress.data.streaming.pixels import StreamedPixels, named, of_another_size, unusable
from amc_env.errors import InputDataError
from amc_env.validation.sentences import counted

_LEAST_WORD = 65535 // 4


@dataclass(frozen=True)
class Images:
    """The images of a split: uint8 (N, C, H, W), in memory or not, and their digests int64 (N,)."""

    pixels: Pixels
    digests: Tensor


def decode_splits(
    splits: Mapping[str, StoredSplit],
    size: int | None,
    progress: bool | None = None,
    *,
    memory: int | None = None,
    workers: int = 0,
) -> tuple[dict[str, Images], list[str]]:
    """Decodes all splits of a data set; RGB as soon as one image of any of them is.

    Args:
        splits: Name -> what is stored.
        size: Side of the central square of each image; None where all have one size.
        progress: Show a progress bar; None shows it on a terminal.
        memory: Bytes that decoded images may take. Where they need more each of them is looked at
            once, and decoded again when a batch needs it. None for half of the machine's memory.
        workers: Processes that look at them.

    Returns:
        Name -> pixels and digests, and what had to be done to the images, as sentences.

    Raises:
        InputDataError: If images are damaged, of several sizes, or of no known range.
    """
    memory = usual_memory() if memory is None else memory
    room = Room(memory, sum(split.count for split in splits.values()))
    decoder = Decoder(size)
    done: dict[str, Images] | None = None
    notes: list[str] = []
    with contextlib.suppress(TooLargeError):
        done = _decoded(splits, decoder, progress, room)
    if done is None:
        if size is not None:
            check_few(size)
        decoder = Decoder(size)
        done = _streamed(splits, decoder, progress, workers)
        needed = sum(images.pixels.shape.numel() for images in done.values())
        notes = [
            f"{room.n_images:,} images are {needed / 1e9:.3g} GB decoded, twice that while they "
            f"are cut, of at most {memory / 1e9:.3g} GB: streamed"
        ]
    notes += [_note(key, decoder) for key in NOTES if decoder.seen[key]]
    return {name: done[name] for name in splits}, notes


def _in_order(splits: Mapping[str, StoredSplit]) -> list[str]:
    return sorted(splits, key=lambda name: name != "train")  # it tells the range of floats


def _decoded(
    splits: Mapping[str, StoredSplit], decoder: Decoder, progress: bool | None, room: Room
) -> dict[str, Images]:
    done: dict[str, Decoded] = {}
    for name in _in_order(splits):
        done[name] = _decode_split(splits[name], decoder, progress, room)
    _check_words(decoder)
    if len({decoded.pixels.shape[1] for decoded in done.values()}) > 1:
        done = {name: _coloured(decoded) for name, decoded in done.items()}
    return {name: Images(decoded.pixels, decoded.digests) for name, decoded in done.items()}


def _streamed(
    splits: Mapping[str, StoredSplit], decoder: Decoder, progress: bool | None, workers: int
) -> dict[str, Images]:
    done: dict[str, Examined] = {}
    for name in _in_order(splits):
        split, encoded = splits[name], lookup_of(splits[name], progress)
        while name not in done:
            try:
                done[name] = examined(split, encoded, decoder, workers, progress)
            except UnknownRangeError as error:
                _learn_white(split, decoder, error.mode)
    _check_words(decoder)
    channels = 3 if any(found.coloured for found in done.values()) else 1
    return {
        name: Images(
            StreamedPixels(
                found.encoded,
                decoder,
                (channels, *found.size),
                torch.arange(len(found.digests)),
                name,
            ),
            found.digests[:, 0 if channels == 1 else 1].contiguous(),
        )
        for name, found in done.items()
    }


def _check_words(decoder: Decoder) -> None:
    if 0 < decoder.brightest < _LEAST_WORD:
        raise InputDataError(
            f"The images have 16 bits per pixel, but no value above {decoder.brightest}: expected "
            f"them to use 0 to 65535; stretch all images alike to that range, or store 8 bits."
        )


def _note(key: str, decoder: Decoder) -> str:
    return NOTES[key].format(counted(decoder.seen[key], "image"), decoder.white.get(key))


def _coloured(decoded: Decoded) -> Decoded:
    if decoded.pixels.shape[1] == 3:
        return decoded
    pixels = decoded.pixels.expand(-1, 3, -1, -1).contiguous()
    return Decoded(pixels, digests_of(pixels), decoded.facts)


def _decode_split(
    split: StoredSplit, decoder: Decoder, progress: bool | None, room: Room
) -> Decoded:
    """Decodes one split; passes what it found to the decoder, also from the cache."""
    options = [decoder.size, sorted(decoder.white.items())]
    cache = cache_file(split.files, options)
    if cache is not None and cache.is_file() and split.count:
        room.check(cache.stat().st_size // split.count)
    decoded = read_cache(cache)
    if decoded is not None and len(decoded.pixels) == split.count:
        decoder.seen.update(decoded.facts["seen"])
        decoder.white.update(decoded.facts["white"])
        decoder.brightest = max(decoder.brightest, decoded.facts["brightest"])
        return decoded
    before, decoder.brightest = decoder.brightest, 0
    seen = decoder.seen.copy()
    with no_bombs():
        pixels = _pixels(split, decoder, progress, room)
    facts: dict[str, Any] = {
        "seen": dict(decoder.seen - seen),
        "white": dict(decoder.white),
        "brightest": decoder.brightest,
    }
    decoder.brightest = max(before, decoder.brightest)
    decoded = Decoded(pixels, digests_of(pixels), facts)
    write_cache(cache, decoded)
    return decoded


def _pixels(split: StoredSplit, decoder: Decoder, progress: bool | None, room: Room) -> Tensor:
    """Uint8 (N, C, H, W) with one channel until a coloured image comes, and three from then on."""
    disable = None if progress is None else not progress
    bar = tqdm(
        split.images(), f"decode {split.name}", total=split.count, unit="image", disable=disable,
        leave=False,
    )  # fmt: skip
    if decoder.size is not None:
        room.check(decoder.size**2)
    whole: np.ndarray | None = None
    for index, picture in enumerate(bar):
        try:
            image = decoder.decode(picture)
        except KeyError as error:  # a mode of which the range is not known yet
            if error.args[0] not in ("I", "F"):
                raise unusable(index, split.name, picture, error) from error
            _learn_white(split, decoder, error.args[0])
            image = _retry(split, decoder, index, picture)
        except Exception as error:  # a damaged file may make its decoder raise anything
            raise unusable(index, split.name, picture, error) from error
        if whole is None:
            whole = _empty(split, image, room)
        if image.shape[:2] != whole.shape[2:]:
            name = named(index, split.name, picture)
            raise of_another_size(name, image.shape[:2], whole.shape[2:])
        if image.ndim == 3 and whole.shape[1] == 1:
            grey, whole = whole, _empty(split, image, room)
            whole[:index] = grey[:index]
        whole[index] = image.transpose(2, 0, 1) if image.ndim == 3 else image
    if whole is None:
        raise InputDataError(f"The {split.name} split has no images.")
    return torch.from_numpy(whole)


def _retry(split: StoredSplit, decoder: Decoder, index: int, picture: Picture) -> np.ndarray:
    try:
        return decoder.decode(picture)
    except Exception as error:
        raise unusable(index, split.name, picture, error) from error


def _empty(split: StoredSplit, image: np.ndarray, room: Room) -> np.ndarray:
    """Memory for all images, uint8 (N, C, H, W)."""
    room.check(image.size)
    channels = 1 if image.ndim == 2 else 3
    return np.empty((split.count, channels, *image.shape[:2]), np.uint8)


def _learn_white(split: StoredSplit, decoder: Decoder, mode: str) -> None:
    """Finds out what is white in the images of a mode, from all of them in this split."""
    lows, highs = [], []
    for index, picture in enumerate(split.images()):
        try:
            found = numeric_mode(picture)
        except Exception as error:
            raise unusable(index, split.name, picture, error) from error
        if found is not None and found[0] == mode:
            lows.append(found[1])
            highs.append(found[2])
    try:
        decoder.white[mode] = white_of(mode, lows, highs)
    except InputDataError as error:
        raise InputDataError(f"The {split.name} split holds {error}.") from error

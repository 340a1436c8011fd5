"""Every image of a split looked at once, by several processes, and none kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amc_compress.data.cache import Decoded, cache_file, read_cache, write_cache
from amc_compress.data.copies import digests_of
from amc_compress.data.pictures import Decoder, no_bombs
from amc_compress.data.sources.stored import Lookup, StoredSplit
from amc_compress.data.streaming.pixels import channels_first, decode_one, named, of_another_size
from amc_compress.data.streaming.workers import carried_out

_AT_ONCE = 64  # images of one job


@dataclass(frozen=True)
class Examined:
    """What is known of a split without its pixels.

    Args:
        encoded: Its images.
        size: ``(height, width)`` of all of them.
        coloured: Whether one of them is.
        digests: Of each image as it is and as RGB, int64 (N, 2).
        facts: As of :class:`Decoded`.
    """

    encoded: Lookup
    size: tuple[int, int]
    coloured: bool
    digests: Tensor
    facts: dict[str, Any]


class UnknownRangeError(Exception):
    """An image is in a mode whose largest value has to be found out first."""

    def __init__(self, mode: str) -> None:
        super().__init__(mode)
        self.mode = mode


@dataclass(frozen=True)
class _Part:
    digests: np.ndarray
    sizes: list[tuple[int, int]]
    coloured: bool
    unknown: str | None
    seen: Counter[str]
    brightest: int


@dataclass(frozen=True)
class _Examiner:
    """Looks at the images of a range of numbers."""

    encoded: Lookup
    size: int | None
    white: dict[str, int]
    split: str

    def __call__(self, rows: range) -> _Part:
        decoder = Decoder(self.size)
        decoder.white = dict(self.white)
        digests, sizes, coloured = np.zeros((len(rows), 2), np.int64), [], False
        with no_bombs():
            for place, row in enumerate(rows):
                try:
                    image = decode_one(decoder, self.encoded[row], row, self.split)
                except KeyError as error:
                    return _Part(digests, [], False, str(error.args[0]), Counter(), 0)
                sizes.append((image.shape[0], image.shape[1]))
                coloured |= image.ndim == 3
                own = torch.from_numpy(channels_first(image))[None]
                digests[place, 0] = int(digests_of(own))
                digests[place, 1] = int(digests_of(own.expand(-1, 3, -1, -1)))
        return _Part(digests, sizes, coloured, None, decoder.seen, decoder.brightest)


def examined(
    split: StoredSplit, encoded: Lookup, decoder: Decoder, workers: int, progress: bool | None
) -> Examined:
    """Returns what is known of a split; the cache keeps it.

    Args:
        split: What is stored.
        encoded: Its images by their number.
        decoder: What was found is added to what it has seen.
        workers: Processes.
        progress: Show a progress bar; None shows it on a terminal.

    Raises:
        InputDataError: If an image is damaged, or of another size than the first.
        UnknownRangeError: If the largest value of a mode has to be found out first.
    """
    options = ["examined", decoder.size, sorted(decoder.white.items())]
    cache = cache_file(split.files, options)
    found = read_cache(cache)
    if found is None or len(found.digests) != split.count:
        found = _look(split, encoded, decoder, workers, progress)
        write_cache(cache, found)
    facts = found.facts
    decoder.seen.update(facts["seen"])
    decoder.brightest = max(decoder.brightest, facts["brightest"])
    height, width = facts["size"]
    return Examined(encoded, (height, width), facts["coloured"], found.digests, facts)


def _look(
    split: StoredSplit, encoded: Lookup, decoder: Decoder, workers: int, progress: bool | None
) -> Decoded:
    examiner = _Examiner(encoded, decoder.size, decoder.white, split.name)
    starts = range(0, split.count, _AT_ONCE)
    jobs = (range(start, min(start + _AT_ONCE, split.count)) for start in starts)
    digests = np.zeros((split.count, 2), np.int64)
    seen: Counter[str] = Counter()
    coloured, brightest, first = False, 0, None
    disable = None if progress is None else not progress
    with tqdm(desc=f"look at {split.name}", total=split.count, disable=disable, leave=False) as bar:
        for start, part in zip(starts, carried_out(examiner, jobs, workers), strict=True):
            if part.unknown is not None:
                raise UnknownRangeError(part.unknown)
            first = part.sizes[0] if first is None else first
            for place, size in enumerate(part.sizes, start):
                if size != first:
                    name = named(place, split.name, encoded[place])
                    raise of_another_size(name, size, first)
            digests[start : start + len(part.digests)] = part.digests
            coloured, brightest = coloured or part.coloured, max(brightest, part.brightest)
            seen.update(part.seen)
            bar.update(len(part.digests))
    facts = {"seen": dict(seen), "brightest": brightest, "coloured": coloured, "size": first}
    return Decoded(torch.empty(0, dtype=torch.uint8), torch.from_numpy(digests), facts)

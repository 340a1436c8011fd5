"""Batches of images, held in memory or streamed: shuffled, augmented and normalised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc_compress.data.augmenting.library import LibraryAugmentation
from amc_compress.data.augmenting.parts import Parts, RandomResizedCrop, cut_out, drawn
from amc_compress.data.raw import Pixels, Targets
from amc_compress.data.streaming.pixels import StreamedPixels, centre
from amc_compress.data.streaming.workers import carried_out
from amc_compress.learners.networks.normalisation import Normalisation
from amc_env.errors import InputDataError

_SEED = 0x7FFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class _Plan:
    """What a batch is made of: images int64 (N,), what was drawn for them, and a seed for more."""

    chosen: np.ndarray
    draws: np.ndarray | None
    seed: int

    def part(self, rows: slice) -> _Plan:
        """Returns the plan of some images of the batch; of the first one, if there are none."""
        if not len(self.chosen[rows]):
            rows = slice(0, 1)
        draws = None if self.draws is None else self.draws[:, rows]
        return _Plan(self.chosen[rows], draws, self.seed)


@dataclass(frozen=True)
class _Maker:
    """Makes batches of plans, in any process."""

    pixels: Pixels
    labels: Targets
    normalisation: Normalisation
    size: int | None
    parts: Parts | None
    more: LibraryAugmentation | None

    def __call__(self, plan: _Plan) -> tuple[Tensor, Any]:
        chosen = torch.from_numpy(plan.chosen)
        labels = self.labels[chosen]
        pixels = self.pixels[chosen]
        if isinstance(pixels, StreamedPixels):
            pixels = pixels.decoded()
        if not isinstance(self.parts, RandomResizedCrop):
            pixels = centre(pixels, self.size)
        if self.parts is not None and plan.draws is not None:
            pixels = cut_out(pixels, self.parts, plan.draws)
        if self.more is None or not isinstance(labels, Tensor):
            return self.normalisation(pixels), labels
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(plan.seed)  # and that of no GPU
            images = self.normalisation(self.more.of_images(pixels))
            return self.more.of_batch(images, labels)


class TensorLoader:
    """Iterable of ``(images float32 NCHW, labels)`` over pixels held in memory, or streamed.

    Labels are classes int64 (N,), masks int64 (N, H, W), or a list with a dictionary of boxes for
    each image; classes that are mixed are shares float32 (N, classes).

    Order and augmentation are a function of ``(seed, epoch)`` alone: the same epoch gives the same
    batches, whatever was read before, wherever the pixels are and however many processes make
    them. Call :meth:`set_epoch` before each pass; without it every pass is the same.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: Targets,
        normalisation: Normalisation,
        *,
        batch_size: int = 128,
        shuffle: bool = False,
        augmentation: Parts | None = None,
        seed: int = 0,
        size: int | None = None,
        more: LibraryAugmentation | None = None,
        workers: int = 0,
    ) -> None:
        """Hold uint8 ``pixels`` (N, C, H, W) and the ``labels`` of N images.

        ``size`` is the side of the square from the middle that is read where nothing is
        augmented; None reads whole images. ``more`` is done behind ``augmentation``. ``workers``
        processes make the batches where there is more to do than to copy them.
        """
        if len(pixels) != len(labels):
            raise InputDataError(
                f"Expected one label for each image, got {len(pixels)} images and {len(labels)} "
                "labels."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.pixels = pixels
        self.labels = labels
        self.normalisation = normalisation
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augmentation = augmentation
        self.seed = seed
        self.size = size
        self.more = more
        self.workers = workers
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next pass."""
        self.epoch = epoch

    @property
    def images(self) -> Tensor:
        """All images, normalised, neither shuffled nor augmented; computed at each access."""
        return self.first(self.n_images)

    def first(self, count: int) -> Tensor:
        """Returns the first images, normalised, neither shuffled nor augmented."""
        pixels = self.pixels[torch.arange(min(count, self.n_images))]
        pixels = pixels.decoded() if isinstance(pixels, StreamedPixels) else pixels
        return self.normalisation(centre(pixels, self.size))

    @property
    def n_images(self) -> int:
        """Number of images (``len`` counts batches)."""
        return len(self.pixels)

    def __len__(self) -> int:
        full, rest = divmod(self.n_images, self.batch_size)
        # Batch norm cannot train on a single 1 x 1 feature map, so a lone last image is left out.
        skip = self.shuffle and rest == 1 and full > 0
        return full + (rest > 0 and not skip)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[tuple[Tensor, Any]]:
        """Yields the batches of a pass from one of a number on, without making those before."""
        return self.chosen(lambda number: number >= first)

    def chosen(self, wanted: Callable[[int], bool]) -> Iterator[tuple[Tensor, Any]]:
        """Yields the batches of a pass whose numbers are wanted, without making the others."""
        return self._made(self._plans(wanted))

    def shares(self, rows: Callable[[int], slice]) -> LoaderShares | None:
        """Returns what one of several processes reads that train together.

        Args:
            rows: Images of a batch -> its own ones.

        Returns:
            ``None`` where the images of a batch draw from one seed: then it takes all to make one.
        """
        return None if self.more is not None else LoaderShares(self, rows)

    def share_from(
        self, first: int, rows: Callable[[int], slice]
    ) -> Iterator[tuple[tuple[Tensor, Any], int]]:
        """Yields a part of every batch from one of a number on, and the size of the whole one."""
        own = (plan.part(rows(len(plan.chosen))) for plan in self._plans(lambda i: i >= first))
        starts = range(first * self.batch_size, self.n_images, self.batch_size)
        return zip(
            self._made(own),
            (min(self.batch_size, self.n_images - start) for start in starts),
            strict=False,  # a lone last image is left out
        )

    def _made(self, plans: Iterable[_Plan]) -> Iterator[tuple[Tensor, Any]]:
        maker = _Maker(
            self.pixels, self.labels, self.normalisation, self.size, self.augmentation, self.more
        )
        copies = self.augmentation is None and self.more is None and isinstance(self.pixels, Tensor)
        return carried_out(maker, plans, 0 if copies else self.workers)

    def _plans(self, wanted: Callable[[int], bool]) -> Iterator[_Plan]:
        # A SeedSequence mixes (seed, epoch) so that neighbouring pairs share nothing.
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]) & _SEED)
        order = (
            torch.randperm(self.n_images, generator=generator)
            if self.shuffle
            else torch.arange(self.n_images)
        )
        for index in range(len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size].numpy()
            parts, draws, seed = self.augmentation, None, 0
            if parts is not None:
                draws = drawn(parts, len(chosen), generator)
            if self.more is not None:
                words = [self.seed, self.epoch, index]
                seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) & _SEED
            if wanted(index):
                yield _Plan(chosen, draws, seed)


@dataclass(frozen=True)
class LoaderShares:
    """Of every batch of a loader the images of one process, and how many there are in all."""

    loader: TensorLoader
    rows: Callable[[int], slice]

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Any], int]]:
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[tuple[tuple[Tensor, Any], int]]:
        """As that of the loader."""
        return self.loader.share_from(first, self.rows)

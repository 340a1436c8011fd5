"""Validation images: an episode's are held in memory, the rest are streamed.

An episode evaluates ``n_validation`` images, a fixed random subset. They are kept in the type and
layout that candidates compute in. The rest is needed for the last accuracy of a search and for the
best epoch of a fine-tuning; both read it from the user's loader again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from amc_compress.learners.candidates.inference.held_images import EVALUATION_BATCH, HeldImages
from amc_compress.learners.networks.portable import is_portable
from amc_compress.learners.numerics.layout import layout_name, layout_named, owned
from amc_compress.learners.training.data_checks import no_batch, read_batches, seeded
from amc_env.errors import InputDataError

_NAME = "validation"
_REST = 2 * EVALUATION_BATCH  # images that are held at once besides those of an episode


class LoaderBatches:
    """The batches of a loader, read from it again in every pass.

    Args:
        source: The loader; what can be read only once is held.
        shape: Of one image.
        seed: Decides the order of a loader that shuffles, the same in every pass.

    Attributes:
        labels: Of all images, in the order of the loader, int64; empty before the first pass.
    """

    def __init__(
        self, source: Iterable[tuple[Tensor, Tensor]], shape: Sequence[int], seed: int
    ) -> None:
        self._source: Iterable[tuple[Tensor, Tensor]] | None = source
        self._shape = tuple(shape)
        self._seed = seed
        self.labels = torch.empty(0, dtype=torch.int64)
        if isinstance(source, Iterator):
            self.hold()

    def hold(self) -> None:
        """Keeps every batch, as it came."""
        source = self._loader()
        with seeded(source, self._seed):
            self._source = list(source)

    def read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images and labels, whatever came before."""
        return read_batches(self._loader(), _NAME, self._shape, self._seed)

    def expected(self) -> int | None:
        """Returns how many images there should be, or ``None`` where that needs a pass."""
        source = self._source
        if isinstance(source, DataLoader):
            with suppress(TypeError, AttributeError):  # a data set or sampler without a length
                size, of_batch = len(source.sampler), source.batch_size  # type: ignore[arg-type]
                return size - size % of_batch if source.drop_last and of_batch else size
            return None
        if isinstance(source, list | tuple):
            with suppress(TypeError, ValueError, IndexError):  # whatever it holds is said later
                return sum(len(batch[1]) for batch in source)
            return None
        count = getattr(source, "n_images", None)
        return count if isinstance(count, int) else None

    def repeats(self, first: tuple[Tensor, Tensor]) -> bool:
        """Whether another pass begins with the same batch."""
        if isinstance(self._source, list | tuple):
            return True
        again = next(self.read(), None)
        return again is not None and all(map(torch.equal, first, again))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for images, labels in self.read():
            stop = start + len(labels)
            if not torch.equal(labels, self.labels[start:stop]):
                raise _changed()
            start = stop
            yield images, labels
        if start != len(self.labels):
            raise _changed()

    def _loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        if self._source is None:
            raise InputDataError(
                "Expected the loader of the validation images, got a copy of the learner that was "
                "pickled without it, because it cannot be loaded everywhere: evaluate all images "
                "where the learner was prepared, and give finetune validation=loader."
            )
        return self._source

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out a loader that does not pickle: candidates are evaluated without it."""
        source = self._source if is_portable(self._source) else None
        if isinstance(source, list | tuple):
            source = [(owned(x), owned(y)) for x, y in source]
        return vars(self) | {"_source": source}

    def __deepcopy__(self, memo: dict[int, Any]) -> LoaderBatches:
        """Returns itself: the loader is the user's, and nothing else changes."""
        return self


def _changed() -> InputDataError:
    return InputDataError(
        "Expected the same validation images in every pass over their loader, got others than "
        "when the learner was prepared: give a loader whose seed decides the order, or a list of "
        "its batches."
    )


class HeldOut:
    """The validation images of a learner.

    Args:
        batches: ``(images, labels)``, of any kind. All of them are read and checked once.
        example: Example input of the network; images must have its shape.
        n_validation: Images of an episode, a fixed random subset; all if ``None``.
        seed: Draws the subset.
        loader_seed: Decides the order of a loader that shuffles.

    Attributes:
        batches: All images, float32, in the order of the loader; read from it in every pass.
        n_images: How many there are.
        n_held: How many of them an episode evaluates.

    Raises:
        InputDataError: If there is nothing, or it is not what the network expects.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        example: Tensor,
        *,
        n_validation: int | None,
        seed: int,
        loader_seed: int = 0,
    ) -> None:
        self.batches = LoaderBatches(batches, example.shape[1:], loader_seed)
        self._n_validation = n_validation
        self._seed = seed
        images = self._read()
        self._images: Tensor | None = images
        self.n_images = len(self.batches.labels)
        self.n_held = images.shape[0]
        self._evaluators: dict[torch.dtype, HeldImages] = {}
        self._options: tuple[torch.device, bool, str] | None = None

    @property
    def labels(self) -> Tensor:
        """The classes of all images, int64, in the order of the loader."""
        return self.batches.labels

    def first(self, count: int) -> Tensor:
        """Returns the first images of an episode, float32."""
        images = self._held()[:count]
        return images.clone()  # a part of the tensor would keep all of it

    def settle(
        self,
        dtypes: Collection[torch.dtype],
        *,
        device: torch.device,
        fused: bool,
        layout: torch.memory_format,
    ) -> None:
        """Says how candidates are evaluated, and keeps the images in these types only.

        Args:
            dtypes: Types to compute in; images of another one are read again when it is asked for.
            device: Where to compute.
            fused: Whether to fuse candidates, see ``candidates.fusion_works``.
            layout: Of images and weights, see ``amc_compress.learners.numerics.layout``.
        """
        self._options = device, fused, layout_name(layout)
        for dtype in dtypes:
            self._evaluator(dtype)
        self._images = None

    def accuracy(self, network: nn.Module, dtype: torch.dtype, *, full: bool = False) -> float:
        """Returns the share of images classified correctly, in [0, 1].

        Args:
            network: In ``eval`` mode.
            dtype: Type to compute in.
            full: On all images instead of those of an episode.

        Raises:
            InputDataError: If the loader yields other images now.
            TrainingDivergedError: If an output is not finite.
        """
        accuracy = self._evaluator(dtype).accuracy(network)
        if not full or self.n_held == self.n_images:
            return accuracy
        right = round(accuracy * self.n_held)
        for images, labels in self._rest():
            part = self._made(images, labels, dtype)
            right += round(part.accuracy(network) * part.n_images)
        return right / self.n_images

    def _evaluator(self, dtype: torch.dtype) -> HeldImages:
        if dtype not in self._evaluators:
            labels = torch.empty_like(self.labels)
            labels[self._places(self.n_images)] = self.labels
            self._evaluators[dtype] = self._made(self._held(), labels[: self.n_held], dtype)
        return self._evaluators[dtype]

    def _made(self, images: Tensor, labels: Tensor, dtype: torch.dtype) -> HeldImages:
        assert self._options is not None
        device, fused, layout = self._options
        return HeldImages(
            images, labels, dtype=dtype, device=device, fused=fused, layout=layout_named(layout)
        )

    def _held(self) -> Tensor:
        """Returns the images of an episode, float32."""
        if self._images is not None:
            return self._images
        images, _, _ = self._pass(self.n_images, iter(self.batches))
        assert images is not None
        return images

    def _rest(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the images that no episode evaluates, many at a time."""
        images: list[Tensor] = []
        labels: list[Tensor] = []
        is_rest = self._places(self.n_images) >= self.n_held
        start, count = 0, 0
        for x, y in self.batches:
            chosen = is_rest[start : start + len(y)]
            start += len(y)
            images.append(x[chosen])
            labels.append(y[chosen])
            count += len(labels[-1])
            while count >= _REST:
                joined, classes = torch.cat(images), torch.cat(labels)
                yield joined[:_REST], classes[:_REST]
                images, labels = [joined[_REST:]], [classes[_REST:]]
                count -= _REST
        if count:
            yield torch.cat(images), torch.cat(labels)

    def _places(self, n_images: int) -> Tensor:
        """Returns the place of every image in the random order; the first ones are held."""
        order = torch.randperm(n_images, generator=torch.Generator().manual_seed(self._seed))
        places = torch.empty_like(order)
        places[order] = torch.arange(n_images)
        return places

    def _read(self) -> Tensor:
        """Reads and checks all images, and returns those of an episode, float32.

        Once, where the loader knows their number: which ones an episode evaluates depends on it.
        """
        expected = self.batches.expected()
        images, labels, first = self._pass(expected, self.batches.read())
        if expected == len(labels):
            repeats = self.batches.repeats(first)
        else:
            images, again, _ = self._pass(len(labels), self.batches.read())
            repeats = torch.equal(labels, again)
        if not repeats:
            self.batches.hold()
            images, labels, _ = self._pass(self.batches.expected(), self.batches.read())
        assert images is not None
        self.batches.labels = labels
        return images

    def _pass(
        self, n_images: int | None, batches: Iterator[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor | None, Tensor, tuple[Tensor, Tensor]]:
        """Reads all batches.

        Args:
            n_images: How many images there should be; none is kept for ``None``.
            batches: Images and labels.

        Returns:
            The images of an episode in its order, meaningless if their number was another; the
            labels of all; the first batch.
        """
        places = torch.empty(0) if n_images is None else self._places(n_images)
        wanted = places.numel() if self._n_validation is None else self._n_validation
        images: Tensor | None = None
        labels: list[Tensor] = []
        start = 0
        for x, y in batches:
            if not labels:
                first = x.clone(), y
                if n_images is not None:
                    images = x.new_empty(min(wanted, n_images), *x.shape[1:])
            rows = places[start : start + len(y)]
            if images is not None and len(rows) == len(y):
                chosen = rows < wanted
                images[rows[chosen]] = x[chosen]
            labels.append(y)
            start += len(y)
        if not start:
            raise no_batch(_NAME)
        return images, torch.cat(labels), first

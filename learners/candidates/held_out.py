"""Validation samples: an episode's are held in memory, the rest are streamed.

An episode evaluates ``n_validation`` samples, a fixed random subset. They are kept in the type and
layout that candidates compute in. The rest is needed for the last score of a search and for the
best epoch of a fine-tuning; both read it from the user's loader again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from amc_compress.learners.candidates.inference.held_samples import EVALUATION_BATCH, HeldSamples
from amc_compress.learners.candidates.inference.subset import Subset
from amc_compress.learners.networks.portable import is_portable
from amc_compress.learners.numerics.layout import layout_name, layout_named, owned
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.guards import Probed
from amc_compress.learners.tasks.inputs import (
    Inputs,
    Split,
    count,
    mapped,
    merged,
    rows,
    tensors_of,
)
from amc_compress.learners.tasks.task import Meter, Task
from amc_compress.learners.training.data_checks import (
    Batches,
    no_batch,
    read_batches,
    seeded,
)
from amc_env.errors import InputDataError

_NAME = "validation"
_REST = 2 * EVALUATION_BATCH  # samples that are held at once besides those of an episode


class LoaderBatches:
    """The batches of a loader, read from it again in every pass.

    Args:
        source: The loader; what can be read only once is held.
        example: Of what the network takes; inputs must be like it.
        seed: Decides the order of a loader that shuffles, the same in every pass.
        task: What a batch is.

    Attributes:
        digests: Of the targets of every batch, of the inputs where there are none; empty before
            the first pass.
        n_samples: In a whole pass; 0 before the first.
    """

    def __init__(self, source: Batches, example: Inputs, seed: int, task: Task) -> None:
        self._source: Batches | None = source
        self._example = example
        self._seed = seed
        self._task = task
        self.digests: list[str] = []
        self.n_samples = 0
        if isinstance(source, Iterator):
            self.hold()

    def hold(self) -> None:
        """Keeps every batch, as it came."""
        source = self._loader()
        with seeded(source, self._seed):
            self._source = list(source)

    def read(self) -> Iterator[Split]:
        """Yields inputs and targets, whatever came before."""
        return read_batches(self._loader(), _NAME, self._example, self._seed, task=self._task)

    def expected(self) -> int | None:
        """Returns how many samples there should be, or ``None`` where that needs a pass."""
        source = self._source
        if isinstance(source, DataLoader):
            with suppress(TypeError, AttributeError):  # a data set or sampler without a length
                size, of_batch = len(source.sampler), source.batch_size  # type: ignore[arg-type]
                return size - size % of_batch if source.drop_last and of_batch else size
            return None
        if isinstance(source, list | tuple):
            # Whatever it holds is said later.
            with suppress(TypeError, ValueError, IndexError, InputDataError):
                return sum(count(self._task.split(batch)[0]) for batch in source)
            return None
        found = getattr(source, "n_images", None)
        return found if isinstance(found, int) else None

    def repeats(self, first: str) -> bool:
        """Whether another pass begins with the batch of this :func:`digest`."""
        if isinstance(self._source, list | tuple):
            return True
        again = next(self.read(), None)
        return again is not None and digest(again) == first

    def __iter__(self) -> Iterator[Split]:
        place = -1
        for place, batch in enumerate(self.read()):
            if self.digests[place : place + 1] != [digest(_told(batch))]:
                raise _changed()
            yield batch
        if place + 1 != len(self.digests):
            raise _changed()

    def _loader(self) -> Batches:
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
            source = [mapped(owned, batch) for batch in source]
        return vars(self) | {"_source": source}

    def __deepcopy__(self, memo: dict[int, Any]) -> LoaderBatches:
        """Returns itself: the loader is the user's, and nothing else changes."""
        return self


def digest(value: Any) -> str:
    """Returns a digest of the numbers of a structure's tensors, types and shapes included."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors_of(value):
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _told(batch: Split) -> Any:
    """Returns what tells a batch from others at the least cost."""
    inputs, targets = batch
    return inputs if targets is None else targets


def _changed() -> InputDataError:
    return InputDataError(
        "Expected the same validation images in every pass over their loader, got others than "
        "when the learner was prepared: give a loader whose seed decides the order, or a list of "
        "its batches."
    )


class _First:
    """A meter of the first samples that it is given."""

    def __init__(self, meter: Meter, left: int) -> None:
        self.meter = meter
        self._left = left

    def update(self, outputs: Any, targets: Any) -> None:
        """Takes in what is left of the first samples, if anything."""
        if self._left > 0:
            some = slice(0, self._left)
            self._left -= count(targets)
            self.meter.update(rows(outputs, some), rows(targets, some))


class HeldOut:
    """The validation samples of a learner.

    Args:
        batches: Of any kind that the task can split. All of them are read and checked once.
        example: Of what the network takes; inputs must be like it.
        n_validation: Samples of an episode, a fixed random subset; all if ``None``.
        seed: Draws the subset.
        loader_seed: Decides the order of a loader that shuffles.
        task: What the network is for.
        probed: What it answers a few samples, which targets are checked against; ``None`` to leave
            that out.

    Attributes:
        batches: All samples in the order of the loader; read from it in every pass.
        n_samples: How many there are.
        n_held: How many of them an episode evaluates.

    Raises:
        InputDataError: If there is nothing, or it is not what the network expects.
    """

    def __init__(
        self,
        batches: Batches,
        example: Inputs,
        *,
        n_validation: int | None,
        seed: int,
        loader_seed: int = 0,
        task: Task = CLASSIFICATION,
        probed: Probed | None = None,
    ) -> None:
        self.task = task
        self.batches = LoaderBatches(batches, example, loader_seed, task)
        self._n_validation = n_validation
        self._seed = seed
        self._probed = probed
        self._parts: list[Split] | None = self._read()
        self.n_samples = self.batches.n_samples
        self.n_held = sum(map(count, self._parts))
        self._evaluators: dict[torch.dtype, HeldSamples] = {}
        self._options: tuple[torch.device, bool, str, int] | None = None
        self._probed = None

    def first(self, total: int) -> Inputs:
        """Returns the inputs of the first samples of an episode."""
        # A part of a tensor would keep all of it.
        found: Inputs = mapped(torch.clone, rows(self._held()[0][0], slice(0, total)))
        return found

    def settle(
        self,
        dtypes: Collection[torch.dtype],
        *,
        device: torch.device,
        fused: bool,
        layout: torch.memory_format,
        batch_size: int = EVALUATION_BATCH,
    ) -> None:
        """Says how candidates are evaluated, and keeps the samples in these types only.

        Args:
            dtypes: Types to compute in; samples of another one are read again when it is asked for.
            device: Where to compute.
            fused: Whether to fuse candidates, see ``candidates.fusion_works``.
            layout: Of images and weights, see ``amc_compress.learners.numerics.layout``.
            batch_size: Samples per forward pass.
        """
        self._options = device, fused, layout_name(layout), batch_size
        for dtype in dtypes:
            self.held_in(dtype)
        self._parts = None

    def score(self, network: nn.Module, dtype: torch.dtype, *, full: bool = False) -> float:
        """Returns the score of a network, higher is better.

        Args:
            network: In ``eval`` mode.
            dtype: Type to compute in.
            full: On all samples instead of those of an episode.

        Raises:
            InputDataError: If the loader yields other samples now.
            TrainingDivergedError: If an output or the metric is not finite.
        """
        meter = self.task.meter()
        self.held_in(dtype).measure(network, meter)
        if full and self.n_held != self.n_samples:
            for part in self._rest():
                self._made([part], dtype).measure(network, meter)
        return self.task.score(meter.compute())

    def both_scores(
        self, network: nn.Module, dtype: torch.dtype, n_first: int | None
    ) -> tuple[float, float]:
        """Returns the score on the samples of an episode, and on the first ones of them.

        Args:
            network: In ``eval`` mode.
            dtype: Type to compute in.
            n_first: How many are the first; all if ``None``.

        Raises:
            TrainingDivergedError: If an output or the metric is not finite.
        """
        if n_first is None or n_first >= self.n_held:
            score = self.score(network, dtype)
            return score, score
        whole, first = self.task.meter(), _First(self.task.meter(), n_first)

        def take(outputs: Any, targets: Any) -> None:
            whole.update(outputs, targets)
            first.update(outputs, targets)

        self.held_in(dtype).answer(network, take)
        return self.task.score(whole.compute()), self.task.score(first.meter.compute())

    def first_score(self, network: nn.Module, dtype: torch.dtype, n_first: int) -> float:
        """Returns the second of :meth:`both_scores`; the network runs on no others."""
        first = _First(self.task.meter(), n_first)
        self.held_in(dtype).answer(network, first.update, n_first)
        return self.task.score(first.meter.compute())

    def held_in(self, dtype: torch.dtype) -> HeldSamples:
        """Returns the samples of an episode in the type to compute in."""
        if dtype not in self._evaluators:
            self._evaluators[dtype] = self._made(self._held(), dtype)
        return self._evaluators[dtype]

    def _made(self, parts: Sequence[Split], dtype: torch.dtype) -> HeldSamples:
        assert self._options is not None
        device, fused, layout, batch_size = self._options
        return HeldSamples(
            parts,
            self.task,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            fused=fused,
            layout=layout_named(layout),
        )

    def _held(self) -> list[Split]:
        """Returns the samples of an episode."""
        if self._parts is not None:
            return self._parts
        subset = self._subset(self.n_samples)
        for batch in self.batches:
            subset.add(batch)
        return subset.parts()

    def _rest(self) -> Iterator[Split]:
        """Yields the samples that no episode evaluates, many at a time."""
        is_rest = self._places(self.n_samples) >= self.n_held
        waiting: list[Split] = []
        start = total = 0
        for batch in self.batches:
            chosen = is_rest[start : start + count(batch)]
            start += len(chosen)
            if not bool(chosen.any()):
                continue
            waiting.append(rows(batch, chosen))
            total += int(chosen.sum())
            if total >= _REST:
                yield from merged(waiting)
                waiting, total = [], 0
        yield from merged(waiting)

    def _places(self, n_samples: int) -> Tensor:
        """Returns the place of every sample in the random order; the first ones are held."""
        order = torch.randperm(n_samples, generator=torch.Generator().manual_seed(self._seed))
        places = torch.empty_like(order)
        places[order] = torch.arange(n_samples)
        return places

    def _subset(self, n_samples: int) -> Subset:
        wanted = n_samples if self._n_validation is None else min(self._n_validation, n_samples)
        return Subset(self._places(n_samples), wanted)

    def _read(self) -> list[Split]:
        """Reads and checks all samples, and returns those of an episode.

        Once, where the loader knows their number: which ones an episode evaluates depends on it.
        """
        expected = self.batches.expected()
        subset, first = self._pass(expected)
        digests = self.batches.digests
        if expected == self.batches.n_samples:
            repeats = self.batches.repeats(first)
        else:
            subset, _ = self._pass(self.batches.n_samples)
            repeats = digests == self.batches.digests
        if not repeats:
            self.batches.hold()
            subset, _ = self._pass(self.batches.expected())
        assert subset is not None
        return subset.parts()

    def _pass(self, n_samples: int | None) -> tuple[Subset | None, str]:
        """Reads all batches.

        Args:
            n_samples: How many samples there should be; none is kept for ``None``.

        Returns:
            The samples of an episode, meaningless if their number was another; the digest of the
            first batch.
        """
        subset = None if n_samples is None else self._subset(n_samples)
        digests: list[str] = []
        first, total = "", 0
        for batch in self.batches.read():
            first = first or digest(batch)
            if self._probed is not None:
                self._probed.check(batch, f"{_NAME} ")
            digests.append(digest(_told(batch)))
            if subset is not None:
                subset.add(batch)
            total += count(batch)
        if not total:
            raise no_batch(_NAME)
        self.batches.digests, self.batches.n_samples = digests, total
        return subset, first

"""The samples that a learner is prepared with, and those that every candidate sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.candidates.inference.batch_sizes import fitting, handful
from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.proxy import RECALIBRATION_BATCH, sample_batches
from amc_compress.learners.numerics.layout import layout_of, owned
from amc_compress.learners.tasks.conform import settled
from amc_compress.learners.tasks.guards import Probed
from amc_compress.learners.tasks.inputs import (
    Inputs,
    Split,
    count,
    mapped,
    moved,
    pieces,
    rows,
    tensors_of,
    to_inputs,
)
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.data_checks import (
    Batches,
    collect,
    in_layout,
    probe,
    seeded,
)
from amc_env.errors import InputDataError

_STATISTICS_BATCH = 64


@dataclass(frozen=True)
class Samples:
    """What a learner is prepared with.

    Attributes:
        task: What the network is for, bound to it.
        example: One batch as the network takes it.
        calibration: Batches for statistics, in one batch unless their sizes differ.
        n_calibration: Samples for statistics that were given.
        recalibration: Those that every candidate sees, likewise.
        held_out: The validation samples.
        probed: What the network answers a few samples.
        device: Where the network is.
        layout: Of images and weights, see ``learners.numerics.layout``.
    """

    task: Task
    example: Inputs
    calibration: list[Split]
    n_calibration: int
    recalibration: list[Split]
    held_out: HeldOut
    probed: Probed
    device: torch.device
    layout: torch.memory_format

    def batches(self, size: int = _STATISTICS_BATCH) -> Sequence[Split]:
        """Returns the calibration inputs on the device and in their layout, with their targets.

        Each is moved when it is read, and not held.
        """
        parts = [
            piece
            for batch in self.calibration
            for piece in pieces(batch, fitting(batch.inputs, size))
        ]
        return _Placed(parts, self.device, self.layout)

    def inputs(self) -> Sequence[Inputs]:
        """Returns the inputs of :meth:`batches`."""
        return _Inputs(self.batches())

    def limited(self, n_samples: int) -> Samples:
        """Returns the same with the first calibration samples alone, in memory of their own."""
        few = [mapped(owned, batch) for batch in first_of(self.calibration, n_samples)]
        return replace(self, calibration=few, recalibration=[])

    def few(self) -> Inputs:
        """Returns the first two calibration samples on the device."""
        found: Inputs = moved(rows(self.calibration[0][0], slice(0, 2)), self.device)
        return found


class _Placed(Sequence[Split]):
    """Batches whose inputs are moved and laid out when they are read.

    Args:
        parts: Batches wherever they are.
        device: Where to.
        layout: Of images.
    """

    def __init__(
        self, parts: Sequence[Split], device: torch.device, layout: torch.memory_format
    ) -> None:
        self._parts = parts
        self._device = device
        self._layout = layout

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Placed(self._parts[index], self._device, self._layout)
        inputs, targets = self._parts[index]
        return Split(in_layout(moved(inputs, self._device), self._layout), targets)


class _Inputs(Sequence[Inputs]):
    """The inputs of batches, read when they are asked for."""

    def __init__(self, batches: Sequence[Split]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        found = self._batches[index]
        return _Inputs(found) if isinstance(index, slice) else found.inputs


def read_samples(
    network: nn.Module,
    calibration: Batches,
    validation: Batches,
    example: object,
    options: CandidateOptions,
) -> Samples:
    """Reads both kinds of batches and checks them against the network.

    Raises:
        InputDataError: If inputs or targets are not what the network takes.
    """
    device = torch.device(options.device)
    like = settled(network, to_inputs(example), device)
    task = make_task(options.task).bind(network, device)
    total = max(options.n_calibration, options.n_recalibration)
    batches = collect(calibration, total, "calibration", like, options.seed, task=task)
    few = rows(batches[0], slice(0, count(handful(rows(batches[0].inputs, slice(0, 4))))))
    probed = probe(
        network, moved(few.inputs, device), moved(few.targets, device), task, "calibration"
    )
    for batch in batches:
        probed.check(batch, "calibration ")
    held_out = HeldOut(
        validation,
        like,
        n_validation=options.n_validation,
        seed=options.seed,
        loader_seed=options.seed,
        task=task,
        probed=probed,
    )
    return Samples(
        task=task,
        example=like,
        calibration=first_of(batches, options.n_calibration),
        n_calibration=min(options.n_calibration, sum(map(count, batches))),
        recalibration=first_of(batches, options.n_recalibration),
        held_out=held_out,
        probed=probed,
        device=device,
        layout=layout_of(network, moved(rows(few.inputs, slice(0, 1)), device)),
    )


def first_of(batches: Sequence[Split], total: int) -> list[Split]:
    """Returns the first samples of batches."""
    found: list[Split] = []
    for batch in batches:
        if total <= 0:
            break
        found.append(rows(batch, slice(0, total)))
        total -= count(found[-1])
    return found


def check_not_constant(batches: Sequence[Split]) -> None:
    """Checks that calibration inputs are not all the same number.

    Raises:
        InputDataError: If they are.
    """
    numbers = [t for inputs, _ in batches for t in tensors_of(inputs) if t.numel()]
    first = numbers[0].flatten()[0]
    if all(bool((tensor == first).all()) for tensor in numbers):
        raise InputDataError(
            "Expected calibration images that differ, got the same constant everywhere: no "
            "range of activations can be found; pass real training images."
        )


@dataclass
class Preloaded:
    """Batches on the device.

    Args:
        recalibration: Inputs for batch-norm statistics.
        targets: Theirs, for gradients.
        training: Inputs and targets of the SGD steps.
    """

    recalibration: list[Inputs]
    targets: list[Any] = field(default_factory=list)
    training: list[Split] = field(default_factory=list)

    def labelled(self) -> list[Split]:
        """Returns the recalibration inputs with their targets."""
        return list(map(Split, self.recalibration, self.targets))


def preload(
    samples: Samples, options: CandidateOptions, batch_size: int | None = RECALIBRATION_BATCH
) -> Preloaded:
    """Loads what candidates are recalibrated and trained on.

    Args:
        samples: What the learner is prepared with.
        options: Its options; as many training batches are loaded as there are steps at most.
        batch_size: Of the recalibration inputs; ``None`` for all at once.

    Raises:
        InputDataError: If there is no training batch, or one does not fit the network.
    """
    parts = sample_batches(samples.recalibration, batch_size, samples.device, samples.layout)
    inputs, targets = [x for x, _ in parts], [y for _, y in parts]
    return Preloaded(inputs, targets, training_batches(samples, options))


def training_batches(samples: Samples, options: CandidateOptions) -> list[Split]:
    """Loads the batches that every candidate is trained on; see :func:`preload`."""
    if not options.finetune_steps or options.train is None:
        return []
    loaded: list[Split] = []
    with seeded(options.train, options.seed):
        for batch in islice(options.train, options.finetune_steps):
            loaded += training_batch(batch, samples)
    if not loaded:
        raise InputDataError("Expected at least one batch of training images, got none.")
    return loaded


def training_batch(batch: Any, samples: Samples) -> list[Split]:
    """Returns one batch of a training loader, checked, on the device and in the layout."""
    task = samples.task
    found = []
    for inputs, targets in collect([batch], None, "training", samples.example, task=task):
        samples.probed.check(Split(inputs, targets), "training ")
        on_device = moved(inputs, samples.device), moved(targets, samples.device)
        found.append(Split(in_layout(on_device[0], samples.layout), on_device[1]))
    return found

"""Input validation: batches and networks that users pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.numerics.layout import laid_out
from amc_compress.learners.tasks.conform import conform, described, plain_targets, settled
from amc_compress.learners.tasks.guards import Probed, TokenIds, check_order
from amc_compress.learners.tasks.inputs import (
    Inputs,
    Split,
    count,
    mapped,
    merged,
    moved,
    rows,
    runs,
)
from amc_compress.learners.tasks.task import Task
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

Batches: TypeAlias = Iterable[Any]
"""Anything that yields batches as ``Task.split`` takes them, a ``DataLoader`` for one."""


def collect(
    batches: Batches,
    limit: int | None,
    name: str,
    example: Inputs,
    seed: int = 0,
    *,
    task: Task,
) -> list[Split]:
    """Reads a loader's batches, at most ``limit`` samples.

    The global random numbers of PyTorch are left alone.

    Args:
        batches: The loader.
        limit: Stop after that many samples; ``None`` reads all.
        name: What to call the data in messages.
        example: Of what the network takes; inputs must be like it.
        seed: Decides the order of loaders that shuffle.
        task: What a batch is.

    Returns:
        ``(inputs, targets)``; neighbours of the same form are joined: one batch of all samples,
        unless their sizes differ.

    Raises:
        InputDataError: If there is nothing, or it is not what the network expects.
    """
    found: list[Split] = []
    total = 0
    for inputs, targets in read_batches(batches, name, example, seed, task=task):
        found.append(Split(inputs, targets))
        total += count(inputs)
        if limit is not None and total >= limit:
            excess = total - limit
            found[-1] = rows(found[-1], slice(0, count(inputs) - excess))
            break
    if total == 0:
        raise no_batch(name)
    # In the layout that networks are written for, however the loader has stored its batches.
    return [Split(in_layout(x, torch.contiguous_format), y) for x, y in merged(found)]


def in_layout(inputs: Inputs, layout: torch.memory_format) -> Inputs:
    """Returns inputs with their images in a memory layout."""
    found: Inputs = mapped(lambda tensor: laid_out(tensor, layout), inputs)
    return found


def no_batch(name: str) -> InputDataError:
    """Returns the error for data without a batch."""
    return InputDataError(f"Expected at least one batch of {name} images, got none.")


def read_batches(
    batches: Batches, name: str, example: Inputs, seed: int = 0, *, task: Task
) -> Iterator[Split]:
    """Yields the inputs and targets of a loader's batches, on the processor.

    The seed decides the order of loaders that shuffle. The loader's random numbers are its own:
    those that the caller draws between two batches change nothing, nor are they changed.

    Args:
        batches: The loader.
        name: What to call the data in messages.
        example: Of what the network takes; inputs must be like it.
        seed: Decides the order.
        task: What a batch is.

    Raises:
        InputDataError: If a batch is not what the network expects.
    """
    with seeded(batches, seed):
        iterator = iter(batches)
        state = torch.get_rng_state()
    for batch in with_own_numbers(iterator, state):
        yield read_batch(batch, f"{name} ", example, task=task)


def with_own_numbers(iterator: Iterator[Any], state: Tensor) -> Iterator[Any]:
    """Yields what an iterator does, with a stream of random numbers that only it draws from.

    Args:
        iterator: Of a loader's batches.
        state: Of torch's generator, from which on it draws.
    """
    end = object()
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            batch = next(iterator, end)
            state = torch.get_rng_state()
        if batch is end:
            return
        yield batch


def read_batch(
    batch: Any,
    name: str,
    example: Inputs,
    *,
    task: Task,
    strict: bool = True,
    device: str | torch.device = "cpu",
    ids: TokenIds | None = None,
    part: Callable[[Split], Split] | None = None,
) -> Split:
    """Returns inputs like the example and their targets.

    Args:
        batch: As the loader yields it.
        name: What to call the data in messages; it ends in a space.
        example: Of what the network takes.
        task: What a batch is.
        strict: See :func:`amc_compress.learners.tasks.conform.conform`.
        device: Where to put them.
        ids: The token ids that the network knows.
        part: Takes out the samples that are wanted; ``None`` for all.

    Raises:
        InputDataError: If it is not what the network expects.
    """
    given, targets = split_batch(batch, name, task=task)
    if part is not None:
        given, targets = part(Split(given, targets))
    inputs = conform(given, example, name, strict=strict, device=device)
    if ids is not None:
        ids.check(given, name)
    if not isinstance(batch, Split):
        targets = task.complete(inputs, targets)
    if task.keeps_types:
        return Split(inputs, moved(targets, device))
    return Split(inputs, plain_targets(targets, device))


def split_batch(batch: Any, name: str, *, task: Task) -> Split:
    """Returns inputs and targets as the loader has them.

    Raises:
        InputDataError: If they cannot belong together.
    """
    if isinstance(batch, Split):
        return batch
    try:
        inputs, targets = task.split(batch)
    except InputDataError as error:
        raise InputDataError(f"In the {name or 'training '}data: {error}") from error
    task.check_targets(inputs, targets, name)
    return Split(inputs, targets)


def check_weights(model: nn.Module) -> None:
    """Rejects networks with NaN or infinite weights, by name."""
    for name, value in model.state_dict().items():
        # A module may keep anything as its extra state.
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        if is_float and not value.isfinite().all():
            raise InputDataError(
                f"Expected finite weights, got NaN or infinite numbers in {name!r}; "
                f"load another checkpoint."
            )


def probe(network: nn.Module, inputs: Inputs, targets: Any, task: Task, name: str) -> Probed:
    """Returns what a network answers a few samples, checked.

    Args:
        network: In ``eval`` mode.
        inputs: Of a few samples, on its device.
        targets: Theirs.
        task: What the network is for.
        name: What errors call the data.

    Raises:
        InputDataError: If it cannot take them, or its outputs do not go with the targets.
    """

    def outputs_of(some: Inputs) -> Any:
        return task.outputs(task.ask(network, some))

    try:
        ids = TokenIds(network, inputs)
        with torch.no_grad():
            outputs = outputs_of(inputs)
    except InputDataError:
        raise
    except Exception as error:
        raise InputDataError(_cannot_run(inputs, error)) from error
    try:
        task.check(outputs, targets)
    except InputDataError as error:
        raise InputDataError(f"In the {name} data: {error}") from error
    check_order(outputs_of, task, inputs)
    return Probed(task, outputs, ids)


def first_like(
    network: nn.Module, batch: Any, name: str, device: str | torch.device, *, task: Task
) -> tuple[Inputs, TokenIds]:
    """Returns a sample of a first batch as the network takes it, and the ids that it knows.

    Args:
        network: Asked for a sample of integers, if at all, to find out what it takes.
        batch: As the loader yields it.
        name: What errors call the data; it ends in a space.
        device: Of the network.
        task: What a batch is.

    Raises:
        InputDataError: If the batch is no inputs and targets, or its ids are unknown.
    """
    inputs, _ = split_batch(batch, name, task=task)
    example = rows(settled(network, inputs, device), slice(0, 1))
    return example, TokenIds(network, moved(example, device))


class BatchReader:
    """Reads batches as networks take them; what the first one settles holds for all.

    Args:
        network: Asked what it takes.
        name: What errors call the data; it ends in a space.
        device: Of the network.
        settle: One sample -> the memory layout of all.
        task: What a batch is.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        device: str | torch.device,
        settle: Callable[[Inputs], torch.memory_format],
        *,
        task: Task,
    ) -> None:
        self._network = network
        self._name = name
        self._device = device
        self._settle = settle
        self._task = task
        self._example: Inputs | None = None
        self._ids: TokenIds | None = None
        self._layout: torch.memory_format | None = None

    def read(self, batch: Any, part: Callable[[Split], Split] | None = None) -> Split:
        """Returns inputs and targets on the device, the inputs in the layout.

        Args:
            batch: As the loader yields it.
            part: Takes out the samples that are wanted; ``None`` for all.

        Raises:
            InputDataError: If the batch is not what the network expects.
        """
        task, device = self._task, self._device
        if self._example is None:
            self._example, self._ids = first_like(
                self._network, batch, self._name, device, task=task
            )
        inputs, targets = read_batch(
            batch, self._name, self._example, task=task, strict=False, device=device,
            ids=self._ids, part=part,
        )  # fmt: skip
        if self._layout is None:
            self._layout = self._settle(rows(inputs, slice(0, 1)))
        return Split(in_layout(inputs, self._layout), targets)


def _cannot_run(inputs: Inputs, error: Exception) -> str:
    what = described(inputs)
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        what = f"float32 images of shape {tuple(inputs.shape[1:])}"
    return (
        f"Expected a network that runs on {what} "
        f"(inputs of other types are converted to that), got "
        f"{type(error).__name__}: {first_line(error)}; weights are float32 "
        f"here too, so the forward must take them as they are, and where it needs other inputs "
        f"convert them itself, e.g. by x.long()."
    )


def forward(
    model: nn.Module, inputs: Inputs, targets: Any, who: str = "network", *, task: Task
) -> Any:
    """Returns the outputs that count; rejects inputs and targets that do not fit the network.

    Args:
        model: The network.
        inputs: Of the batch, on its device.
        targets: Of the batch, likewise.
        who: What errors call the network.
        task: What the network is for.

    Raises:
        InputDataError: The network cannot take the inputs, or the targets do not fit its outputs.
    """
    try:
        raw = task.ask(model, inputs, targets)
    except InputDataError:
        raise
    except (RuntimeError, ValueError) as error:
        if not any(word in str(error) for word in ("shape", "size", "channels", "dimension")):
            raise
        if model.training and runs(model, inputs):
            raise InputDataError(
                f"The {who} runs in evaluation mode, but not in training mode "
                f"({first_line(error, 150)}): correct what its forward does in training."
            ) from error
        what = described(inputs)
        if isinstance(inputs, Tensor):
            what = f"images of shape {list(inputs.shape[1:])}"
        raise InputDataError(
            f"The {who} cannot take {what} "
            f"({first_line(error, 150)}): use the size and channels it was made for."
        ) from error
    outputs = task.outputs(raw)
    task.check(outputs, targets, who, " in training mode" if model.training else "")
    return outputs


@contextmanager
def seeded(loader: Batches, seed: int, epoch: int = 0) -> Iterator[None]:
    """Read a loader in the block: the seed decides its order, and the caller's numbers stay."""
    # Also a DataLoader that shuffles nothing draws from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_loader(loader, seed, epoch))
        yield


def seed_loader(loader: Batches, seed: int, epoch: int) -> int:
    """Tell the loader which epoch comes, in the ways loaders know; return the epoch's seed."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    value = int(mixed[0]) & 0x7FFF_FFFF_FFFF_FFFF
    for part in (loader, getattr(loader, "sampler", None)):
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(value)
    return value

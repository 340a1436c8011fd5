"""Input validation: images, labels and networks that users pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.networks.training_outputs import runs_in_evaluation
from amc_compress.learners.numerics.layout import laid_out
from amc_compress.learners.tasks.outputs import main_output
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

Batches = Iterable[tuple[Tensor, Tensor]]


def collect(
    batches: Batches,
    limit: int | None,
    name: str,
    example: Tensor,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Reads ``(images, labels)`` batches into two tensors, at most ``limit`` images.

    The global random numbers of PyTorch are left alone.

    Args:
        batches: The loader.
        limit: Stop after that many images; ``None`` reads all.
        name: What to call the data in messages.
        example: Example input of the network; images must have its shape.
        seed: Decides the order of loaders that shuffle.

    Raises:
        InputDataError: If there is nothing, or it is not what the network expects.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for x, y in read_batches(batches, name, example.shape[1:], seed):
        images.append(x)
        labels.append(y)
        count += x.shape[0]
        if limit is not None and count >= limit:
            break
    if count == 0:
        raise no_batch(name)
    # In the layout that networks are written for, however the loader has stored its batches.
    joined = laid_out(torch.cat(images)[:limit], torch.contiguous_format)
    return joined, torch.cat(labels)[:limit]


def no_batch(name: str) -> InputDataError:
    """Returns the error for data without a batch."""
    return InputDataError(f"Expected at least one batch of {name} images, got none.")


def read_batches(
    batches: Batches, name: str, shape: Sequence[int], seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of a loader: images in float32 and labels in int64, on the processor.

    The seed decides the order of loaders that shuffle. The loader's random numbers are its own:
    those that the caller draws between two batches change nothing, nor are they changed.

    Args:
        batches: The loader.
        name: What to call the data in messages.
        shape: Of one image.
        seed: Decides the order.

    Raises:
        InputDataError: If a batch is not what the network expects.
    """
    with seeded(batches, seed):
        iterator = iter(batches)
        state = torch.get_rng_state()
    end = object()
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            batch = next(iterator, end)
            state = torch.get_rng_state()
        if batch is end:
            return
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise InputDataError(
                f"Expected (images, labels) batches in the {name} data, got {type(batch).__name__}."
            )
        x, y = batch
        _check_batch(x, y, name, shape)
        yield x.detach().cpu().float(), y.detach().cpu().long()


def _check_batch(x: Tensor, y: Tensor, name: str, shape: Sequence[int]) -> None:
    _check_pair(x, y, f"{name} ")
    if x.shape[1:] != shape:
        raise InputDataError(
            f"Expected {name} images of shape {tuple(shape)} like the example input, "
            f"got {tuple(x.shape[1:])}; resize them or trace with another example input."
        )
    if not x.isfinite().all():
        raise InputDataError(f"Expected finite {name} images, got NaN or infinite pixels.")


def _check_pair(images: object, labels: object, name: str = "") -> None:
    """Checks that a batch is tensors of images and of their classes; ``name`` ends in a space."""
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise InputDataError(
            f"Expected {name}batches of (images, labels) tensors, got {type(images).__name__} and "
            f"{type(labels).__name__}."
        )
    if labels.ndim != 1 or len(labels) != len(images) or labels.is_floating_point():
        raise InputDataError(
            f"Expected one integer label per {name}image, got images {list(images.shape)} with "
            f"labels {list(labels.shape)} of {labels.dtype}."
        )


def check_labels(labels: Tensor, n_outputs: int, name: str) -> None:
    """Checks that every label is a class of the network.

    Raises:
        InputDataError: If one is not.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_outputs:
        raise InputDataError(
            f"Expected {name} labels from 0 to {n_outputs - 1} (the network has {n_outputs} "
            f"outputs), got {low} to {high}."
        )


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


def count_outputs(model: nn.Module, images: Tensor) -> int:
    """Returns the number of classes the network tells apart."""
    try:
        with torch.no_grad():
            outputs = model(images)
    except Exception as error:
        raise InputDataError(
            f"Expected a network that runs on float32 images of shape {tuple(images.shape[1:])} "
            f"(inputs of other types, integers too, are converted to that), got "
            f"{type(error).__name__}: {first_line(error)}; weights are float32 "
            f"here too, so the forward must take them as they are, and where it needs other inputs "
            f"convert them itself, e.g. by x.long()."
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputDataError(
            f"Expected a network whose output is (images, classes), got {shape}; "
            f"wrap it so that it returns its logits."
        )
    return int(outputs.shape[1])


def check_batch(
    images: Tensor, labels: Tensor, device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """Move a batch to the device; reject what cannot be images and labels."""
    _check_pair(images, labels)
    return images.to(device, non_blocking=True), labels.to(device, torch.int64, non_blocking=True)


def forward(model: nn.Module, images: Tensor, labels: Tensor, who: str = "network") -> Tensor:
    """Return the logits (N, classes); reject images and labels that do not fit the network.

    Args:
        model: The network; in training mode its first output, or ``logits``, is taken.
        images: Of the batch.
        labels: Of the batch.
        who: What errors call the network.

    Raises:
        InputDataError: The network cannot take images of this shape, or a label is not a class.
    """
    try:
        output = model(images)
    except (RuntimeError, ValueError) as error:
        if not any(word in str(error) for word in ("shape", "size", "channels", "dimension")):
            raise
        if model.training and runs_in_evaluation(model, images):
            raise InputDataError(
                f"The {who} runs in evaluation mode, but not in training mode "
                f"({first_line(error, 150)}): correct what its forward does in training."
            ) from error
        raise InputDataError(
            f"The {who} cannot take images of shape {list(images.shape[1:])} "
            f"({first_line(error, 150)}): use the size and channels it was made for."
        ) from error
    logits = main_output(output) if model.training else output
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        mode = " in training mode" if model.training else ""
        raise InputDataError(
            f"Expected the {who} to answer {len(labels)} images with logits of shape "
            f"[{len(labels)}, classes]{mode}, got {got}: return the logits, alone or first."
        )
    low, high = labels.aminmax()
    if int(low) < 0 or int(high) >= logits.shape[1]:
        raise InputDataError(
            f"Labels must lie in 0..{logits.shape[1] - 1}, the classes of the {who}, got "
            f"{int(low) if int(low) < 0 else int(high)}: correct the labels or the number of "
            "classes."
        )
    return logits


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

"""Batches of whatever holds a user's samples: loaders, lists of batches, data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

Batches = Iterable[Any]


class Samples(Protocol):
    """Samples by their number, as ``torch.utils.data.Dataset`` and ``datasets.Dataset`` are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


USUAL_BATCH = 128
_LEAST_BATCH = 8
_STEPS = 50


def fitting_batch(samples: int) -> int:
    """Returns a batch size that leaves 50 steps in an epoch, 8 to 128."""
    return min(USUAL_BATCH, max(_LEAST_BATCH, samples // _STEPS))


def to_batches(
    data: object, name: str, *, batch_size: int | None, shuffle: bool = False, seed: int = 0
) -> Batches:
    """Returns data as batches that can be read again and again.

    Loaders and lists of batches are taken as they are. A ``torch`` data set, or one of the
    ``datasets`` library with a transform, is batched; samples ``(image, {"boxes": ...})``
    become lists of targets, all others what PyTorch's ``default_collate`` makes of them.

    Args:
        data: A ``DataLoader``, a list of batches, a data set, or anything else that is iterable.
        name: What errors call it, e.g. ``"the training data"``.
        batch_size: Samples in a batch of a data set. ``None`` for as many as suit: 128, and where
            they are shuffled, to train on, no more than leave 50 steps in an epoch.
        shuffle: Whether the samples of a data set are shuffled, in each pass anew.
        seed: Of their order.

    Raises:
        InputDataError: If it is none of these, or its samples cannot be batched.
    """
    if not has_samples(data):
        _check_batches(data, name)
        return data  # type: ignore[return-value]
    if len(data) == 0:
        raise InputDataError(f"Expected samples in {name}, got an empty {type(data).__name__}.")
    try:
        collate_samples([data[0]])
    except (TypeError, RuntimeError) as error:
        raise InputDataError(
            f"Expected samples of tensors or numbers in {name}, got some that cannot be batched "
            f"({first_line(error, 120)}): give the data set a transform, or pass a DataLoader with "
            f"a collate_fn."
        ) from error
    if batch_size is None:
        batch_size = fitting_batch(len(data)) if shuffle else USUAL_BATCH
    # Batch norm cannot train on a single sample, so a lone last one is left out.
    lone = shuffle and len(data) > batch_size and len(data) % batch_size == 1
    loader: DataLoader[Any] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_size,
        shuffle=shuffle,
        drop_last=lone,
        collate_fn=collate_samples,
        generator=torch.Generator().manual_seed(seed),
    )
    return loader


def has_samples(data: object) -> TypeGuard[Samples]:
    """Returns whether data are single samples: a map-style data set of torch or ``datasets``."""
    if isinstance(data, IterableDataset):
        return False
    return isinstance(data, Dataset) or (_is_of_datasets(data) and hasattr(data, "__getitem__"))


def _is_of_datasets(data: object) -> bool:
    """Whether data are of the ``datasets`` library, which is optional and slow to import."""
    return "datasets" in {kind.__module__.partition(".")[0] for kind in type(data).__mro__}


def collate_samples(samples: Sequence[Any]) -> Any:
    """Returns samples as one batch, as ``default_collate`` does unless they have boxes.

    Images with boxes become ``(images, list of targets)``, the images stacked where they are of
    one size, a list where they are not.
    """
    if not all(_is_scene(sample) for sample in samples):
        return default_collate(list(samples))
    images = [image for image, _ in samples]
    targets = [target for _, target in samples]
    if len({image.shape for image in images}) == 1:
        return torch.stack(images), targets
    return images, targets


def _is_scene(sample: object) -> bool:
    """Whether a sample is ``(image, {"boxes": ..., "labels": ...})``."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        return False
    image, target = sample
    return isinstance(image, Tensor) and isinstance(target, Mapping) and "boxes" in target


def _check_batches(data: object, name: str) -> None:
    """Rejects what is no loader; whether it can be read twice is seen when it is read."""
    if isinstance(data, Tensor | str | bytes | Mapping) or not isinstance(data, Iterable):
        raise InputDataError(
            f"Expected {name} as a DataLoader, a list of batches or a data set, got "
            f"{type(data).__name__}: wrap it, e.g. in torch.utils.data.DataLoader."
        )
    if _is_of_datasets(data):
        raise InputDataError(
            f"Expected batches in {name}, got a data set that is streamed, sample by sample: wrap "
            f"it in torch.utils.data.DataLoader, which makes batches."
        )
    if iter(data) is data:
        raise InputDataError(
            f"Expected {name} as a loader that can be read again and again, got a "
            f"{type(data).__name__}, which is read once: pass list(...) of its batches."
        )

"""Data of the user's own, named as ``package.module:factory``: a function that makes loaders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc_compress.data.batches import USUAL_BATCH, Batches, has_samples, to_batches
from amc_compress.data.sources.stored import split_of_name
from amc_env.errors import InputDataError
from amc_env.validation.references import resolve
from amc_env.validation.sentences import some

_FORM = "(train, validation), (train, validation, test), or a dictionary with these keys"
_TITLES = {
    "train": "the training data",
    "validation": "the validation data",
    "test": "the test data",
    "calibration": "the calibration data",
}


@dataclass(frozen=True)
class OwnLoaders:
    """Batches that a user's factory made; ``test`` and ``calibration`` may be missing.

    Args:
        train: To train on.
        validation: Candidates are evaluated on them.
        test: For the figures at the end.
        calibration: For statistics, in a fixed order; the training data themselves if None.
        notes: What was left out, as sentences.
    """

    train: Batches
    validation: Batches
    test: Batches | None = None
    calibration: Batches | None = None
    notes: tuple[str, ...] = ()


def own_loaders(
    reference: str,
    *,
    batch_size: int | None,
    seed: int,
    workers: int = 0,
    named: Mapping[str, Any] | None = None,
) -> OwnLoaders:
    """Calls a user's factory, and makes batches of what it returns.

    It is given ``batch_size`` and ``seed`` if it names such parameters; a ``batch_size`` that
    is not given only if it has no default.

    Args:
        reference: ``"package.module:factory"``; the current directory is searched too.
        batch_size: Samples in a batch, where it returns data sets; ``None`` for as many as suit,
            see :func:`amc_compress.data.batches.to_batches`.
        seed: Of their order.
        workers: Processes that read data sets.
        named: What else the factory is given, where it names such a parameter.

    Raises:
        InputDataError: If there is no such factory, it cannot be called so, or returns something
            else than loaders.
    """
    factory = resolve(reference, "data")
    if not callable(factory):
        raise InputDataError(
            f"Expected the data {reference!r} to be a function that returns {_FORM}, got "
            f"{type(factory).__name__}."
        )
    given = _call(factory, reference, {"batch_size": batch_size, "seed": seed, **(named or {})})
    notes: list[str] = []
    found = _parts(given, reference, notes)
    made = {
        key: to_batches(
            data,
            f"{_TITLES[key]} of {reference}",
            batch_size=batch_size,
            shuffle=key == "train",
            seed=seed,
            workers=workers,
        )
        for key, data in found.items()
    }
    if "calibration" not in made and has_samples(found["train"]):
        made["calibration"] = to_batches(found["train"], "", batch_size=batch_size, workers=workers)
    return OwnLoaders(**made, notes=tuple(notes))


def _call(factory: Any, reference: str, known: Mapping[str, Any]) -> object:
    """Calls a factory with what it asks for by name."""
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # some builtins have no signature
        return factory()
    keywords = {}
    for key, value in known.items():
        if key not in signature.parameters:
            continue
        if value is not None:
            keywords[key] = value
        elif signature.parameters[key].default is inspect.Parameter.empty:
            keywords[key] = USUAL_BATCH
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise InputDataError(
            f"The data factory {reference!r} cannot be called with "
            f"{', '.join(keywords) or 'no keywords'}: {error}; give its other parameters default "
            f"values."
        ) from error
    return factory(**keywords)  # what it raises is the user's to see


def _parts(given: object, reference: str, notes: list[str]) -> dict[str, object]:
    """What a factory returned, by split."""
    if isinstance(given, Mapping):
        found = _named(given, reference, notes)
    elif isinstance(given, tuple | list) and len(given) in (2, 3):
        found = dict(zip(("train", "validation", "test"), given, strict=False))
    else:
        size = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise InputDataError(
            f"Expected the data factory {reference!r} to return {_FORM}, got "
            f"{type(given).__name__}{size}."
        )
    if missing := [key for key in ("train", "validation") if found.get(key) is None]:
        raise InputDataError(
            f"Expected the data factory {reference!r} to return {_FORM}, got no "
            f"{' and no '.join(missing)} data."
        )
    return {key: data for key, data in found.items() if data is not None}


def _named(given: Mapping[Any, object], reference: str, notes: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    left = []
    for key, data in given.items():
        split = "calibration" if key == "calibration" else split_of_name(str(key))
        if split is None:
            left.append(repr(key))
        elif split in found:
            raise InputDataError(
                f"Expected each split once from the data factory {reference!r}, got two of "
                f"{split}: {some(map(repr, given), 6)}."
            )
        else:
            found[split] = data
    if left:
        notes.append(f"splits of other names are left out: {some(left, 6)}")
    return found

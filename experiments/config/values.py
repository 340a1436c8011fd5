"""Allowed values of options: names, and checks of more than one option."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from amc_compress.config.option import flag
from amc_env.costs.costs import COSTS, FURTHER_COSTS
from amc_env.errors import InputDataError
from amc_env.validation.checks import SEED_LIMIT, check_known
from amc_env.validation.references import is_reference

CHANNEL_LEARNERS = ("channels", "group-lasso", "remastered", "discrimination")
"""Learners that cut channels, each with a way of its own to select them."""

ONNX_BYTES = "onnx_bytes"
"""The cost that the network is exported for: the size of its ONNX file."""

ONNX = "onnx"
TRANSFORMERS = "transformers"
LLAMA_CPP = "llama.cpp"
COMPRESSED_TENSORS = "compressed-tensors"
BIT_FORMATS = (COMPRESSED_TENSORS, "auto-round", "torchao", "gptqmodel", LLAMA_CPP)
"""Libraries that are told the bits of each layer."""

FORMATS = (ONNX, TRANSFORMERS, *BIT_FORMATS)
"""What a compressed network is exported to."""

QUANTIZERS = ("uniform", "codebook")
PROTOCOLS = ("searched", "uniform", "heuristic", "global", "normalised")
"""What distributes the density of a sparse network over its layers: an agent, or a rule."""

OPTIMIZERS = ("sgd", "adamw")
"""What trains a network."""

OWN_TEACHERS = ("original", "none")
"""What ``--teacher`` may be besides the name of a network."""

SEEDS = ("seed", "first_seed")
_MOST, _DIGITS = 2**31 - 1, 30
_PATTERN = re.compile(r"unstructured|block[1-9]\d*|([1-9]\d*):([1-9]\d*)")


def own_cost_references(texts: Sequence[str]) -> dict[str, str]:
    """Returns cost name -> ``package.module:Class`` of ``--cost``; nothing is imported.

    Raises:
        ValueError: If a text has another form, or a name is taken.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, reference = (part.strip() for part in text.partition("="))
        if not name.isidentifier() or not is_reference(reference):
            raise ValueError(
                f"Expected --cost as NAME=package.module:Class, e.g. energy=costs:Energy, got "
                f"{text!r}."
            )
        if name in (*COSTS, *FURTHER_COSTS, ONNX_BYTES) or name in found:
            raise ValueError(
                f"Expected --cost with a name that is free, got {name!r} "
                f"{'twice' if name in found else ', which is counted already'}; choose another."
            )
        found[name] = reference
    return found


def of_how_many(pattern: str) -> tuple[int, int] | None:
    """Returns ``(2, 4)`` for the pattern ``"2:4"``; None for one that is no N:M.

    Raises:
        ValueError: If there is no such pattern.
    """
    match = _PATTERN.fullmatch(pattern)
    if match is None or (match[1] and not int(match[1]) < int(match[2])):
        raise ValueError(
            f"Expected --pattern as unstructured, block4 (squares of 4 x 4 weights; any number), "
            f"or 2:4 (2 of 4 weights stay; any N:M with N < M), got {pattern!r}."
        )
    return (int(match[1]), int(match[2])) if match[1] else None


AUGMENTATIONS = ("standard", "none", "crop", "flip", "randaugment", "mixup", "cutmix")
"""The words of ``--augment``."""
_ALONE = ("standard", "none")


def check_augmentations(words: Sequence[str]) -> None:
    """Checks the words of ``--augment`` together.

    Raises:
        ValueError: If there is none, one is unknown, or some exclude each other.
    """
    for word in words:
        check_known("--augment", word, AUGMENTATIONS)
    clashing = [word for word in words if word in (*_ALONE, "crop", "flip")]
    if not words or ("none" in words and len(words) > 1):
        raise ValueError(f"Expected --augment none alone, or others, got {','.join(words)!r}.")
    if "standard" in clashing and len(clashing) > 1:
        raise ValueError(
            f"Expected --augment standard, or crop and flip in its place, got {','.join(words)}."
        )


def check_size(name: str, value: object) -> None:
    """Rejects numbers that no option can mean: NaN, infinite ones, and whole ones beyond 32 bits.

    Args:
        name: Of the option, as in Python.
        value: What it was given; what is no number passes.

    Raises:
        ValueError: With the range.
    """
    most = SEED_LIMIT - 1 if name in SEEDS else _MOST
    if isinstance(value, int) and not isinstance(value, bool) and not -most <= value <= most:
        raise ValueError(f"Expected {flag(name)} <= {most}, got {shown_number(value)}.")
    if name in ("mean", "std") and isinstance(value, tuple):
        numbers = [x for x in value if isinstance(x, float)]
        check_normalisation(**{"mean": None, "std": None, name: numbers})
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"Expected {flag(name)} as a finite number, got {value}.")


def shown_number(value: int) -> str:
    """Returns a whole number; one of very many digits as how many it has."""
    if abs(value) < 10**_DIGITS:
        return str(value)
    return f"a number of {int(math.log10(abs(value))) + 1} digits"


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Rejects means and deviations that no pixels between 0 and 1 have; None is not looked at.

    Raises:
        InputDataError: With the range.
    """
    for name, values in (("mean", mean), ("std", std)):
        for value in values or ():
            fits = 0.0 <= value <= 1.0 and (name == "mean" or value > 0.0)  # NaN fits nowhere
            if not fits:
                raise InputDataError(
                    f"Expected --{name} as {'a positive std' if name == 'std' else 'a number'} "
                    f"for each channel, at most 1: pixels are divided by their largest value, "
                    f"usually 255, first; got {value:g}."
                )

"""Text, read by a tokenizer: blocks of tokens one after the other, or lines."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from amc_compress.config.texts import TEXTS
from amc_compress.data.batches import to_batches
from amc_compress.data.factories import OwnLoaders
from amc_compress.data.sources.stored import split_of_name
from amc_env.errors import InputDataError
from amc_env.validation.sentences import counted, first_line

_SHARE = 10  # one sample in so many validates, and as many test
_SPLITS = ("train", "validation", "test")


class TokenSamples(Dataset[dict[str, Tensor]]):
    """Samples of token ids, and of masks where there are some.

    Args:
        columns: Name of an input -> int64, shape (samples, tokens).
    """

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def part(self, start: int, stop: int) -> TokenSamples:
        """Returns some of the samples."""
        return TokenSamples({name: column[start:stop] for name, column in self.columns.items()})


def text_loaders(
    path: str | Path,
    tokenizer: Any,
    *,
    length: int,
    lines: bool,
    validation_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    vocabulary_size: int | None = None,
) -> OwnLoaders:
    """Returns batches of token ids.

    Files of a folder are split by their names (``train.txt``, ``validation-1.txt``, ``test.md``).
    What has no split of its own is cut: of blocks the last tenth is tested on, and the tenth before
    validated, so that they lie apart; lines are drawn.

    Args:
        path: A file, or a folder of which files that end in one of :data:`TEXTS` are read.
        tokenizer: Of ``transformers``.
        length: Tokens of a sample.
        lines: Whether a sample is a line, cut off or filled up; else all text is joined, with an
            end token between files, and cut into blocks.
        validation_size: Samples cut from the training data to validate on; a tenth if None.
        batch_size: Samples of a batch; as many as suit if None.
        seed: Of the order of the training samples.
        vocabulary_size: Tokens that the network has embeddings of, if known.

    Raises:
        InputDataError: If the text is too short, no text, cannot be padded, or has tokens that the
            network has no embedding of.
    """
    files = _files(Path(path))
    samples = _line_samples if lines else _block_samples
    found = {split: samples(texts, tokenizer, length) for split, texts in files.items()}
    if vocabulary_size is not None:
        _check_vocabulary(found.values(), vocabulary_size)
    parts = _cut(found, validation_size, f"{path}", f"of {counted(length, 'token')}", lines)
    batches = {
        split: to_batches(
            part, f"the {split} text", batch_size=batch_size, shuffle=split == "train", seed=seed
        )
        for split, part in parts.items()
    }
    calibration = to_batches(parts["train"], "the training text", batch_size=batch_size)
    return OwnLoaders(batches["train"], batches["validation"], batches["test"], calibration)


def _check_vocabulary(found: Iterable[TokenSamples], size: int) -> None:
    largest = max((int(p.columns["input_ids"].max()) for p in found if len(p)), default=0)
    if largest >= size:
        raise InputDataError(
            f"Expected token ids below {size}, as many as the network has embeddings of, got "
            f"{largest} from the tokenizer in its folder; put the tokenizer there that the network "
            f"was trained with."
        )


def _files(path: Path) -> dict[str, list[str]]:
    """Returns split -> texts; in a fixed random order, as the names of neighbours are alike."""
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _is_text(p))
    random.Random(0).shuffle(paths)
    found: dict[str, list[str]] = {}
    for file in paths:
        split = "train" if path.is_file() else split_of_name(file.stem) or "train"
        try:
            found.setdefault(split, []).append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputDataError(
                f"Expected text in UTF-8 in {file}, got {first_line(error)}; convert it."
            ) from error
    return found


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in TEXTS and path.is_file()


def _block_samples(texts: Sequence[str], tokenizer: Any, length: int) -> TokenSamples:
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for tokens in _read(tokenizer, texts, add_special_tokens=False)["input_ids"]:
        ids += [*tokens, *ends]
    count = len(ids) // length
    return TokenSamples({"input_ids": torch.tensor(ids[: count * length]).view(count, length)})


def _line_samples(texts: Sequence[str], tokenizer: Any, length: int) -> TokenSamples:
    lines = sorted({line.strip() for text in texts for line in text.splitlines()} - {""})
    random.Random(0).shuffle(lines)
    if not lines:
        return TokenSamples({"input_ids": torch.zeros(0, length, dtype=torch.int64)})
    columns = _read(tokenizer, lines, truncation=True, padding="max_length", max_length=length)
    return TokenSamples({name: torch.tensor(column) for name, column in columns.items()})


def _read(tokenizer: Any, texts: Sequence[str], **options: Any) -> Mapping[str, list[list[int]]]:
    try:
        found: Mapping[str, list[list[int]]] = tokenizer(list(texts), verbose=False, **options)
    except (ValueError, TypeError) as error:
        raise InputDataError(
            f"Expected a tokenizer that fills lines up to one length, got {first_line(error)}; "
            f"give it a pad_token."
        ) from error
    return found


def _cut(
    found: dict[str, TokenSamples], validation_size: int | None, place: str, of: str, lines: bool
) -> dict[str, TokenSamples]:
    """Returns all three splits, the missing ones cut from the end of the training samples."""
    train = found.get("train", TokenSamples({"input_ids": torch.zeros(0, 1)}))
    total = stop = len(train)
    parts = {split: part for split, part in found.items() if split != "train"}
    sizes = {"test": -(-total // _SHARE), "validation": validation_size or -(-total // _SHARE)}
    for split in ("test", "validation"):
        if split not in parts:
            parts[split] = train.part(max(0, stop - sizes[split]), stop)
            stop -= sizes[split]
    parts["train"] = train.part(0, max(0, stop))
    if short := [split for split in _SPLITS if not len(parts[split])]:
        unit = "line" if lines else "block"
        raise InputDataError(
            f"Expected text of at least three {unit}s {of} in {place}, one each to train, validate "
            f"and test on, got {counted(total, unit)} and none for {short[0]}; give more text, or "
            f"fewer --tokens."
        )
    return parts

"""What the benchmarks share: how they start, what they load, rows in a file, and tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import nn

from amc_compress.data import DataSplits, load_data
from amc_compress.tasks import trained_network
from amc_env.files import JsonLines

Row = Mapping[str, Any]


def start(main: Callable[..., None]) -> None:
    """Runs a script's command on one thread, so that processor seconds can be compared."""
    torch.set_num_threads(1)
    typer.run(main)


def load(
    model: str, data: str, weights: Path | None, **options: Any
) -> tuple[nn.Module, DataSplits]:
    """Returns a trained network and its data; ``options`` are those of ``load_data``."""
    splits = load_data(data, **options)
    return trained_network(model, data, str(weights) if weights else None, splits), splits


# ---- rows in a file


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """Returns the rows made so far; a last line that was cut short is not one of them.

    Args:
        path: The file. None, or a file that does not exist, holds no rows.

    Raises:
        RunFolderError: If a line is damaged.
    """
    return [] if path is None else _lines(path).rows(_fields)


def append_rows(path: Path | None, rows: Iterable[Row]) -> None:
    """Writes rows all at once, in place of a last line that was cut short; None writes nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _lines(path).append(*rows)


def _lines(path: Path) -> JsonLines:
    return JsonLines(path, remedy="remove the line, or choose another --out")


def _fields(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"expected a row, got {type(row).__name__}")
    return row


def find(row: Row, rows: Iterable[Row], but: Sequence[str] = ()) -> Row | None:
    """Returns the row as it was made, or None; what it says about ``but`` does not matter."""
    wanted = [(k, v) for k, v in row.items() if k not in but]
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted)), None)


class KeptRows:
    """Rows of some settings in a file that may hold rows of other settings, which stay there.

    Args:
        path: The file; None keeps nothing.
        settings: All that a row depends on but what it says itself.
    """

    def __init__(self, path: Path | None, settings: Row) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(dict(settings)))  # as they come back from the file
        found = ((row.pop("settings", None), row) for row in read_rows(path))
        self.rows = [row for theirs, row in found if theirs == self._settings]

    def add(self, rows: Iterable[Row]) -> None:
        """Appends rows, here and in the file."""
        new = [dict(row) for row in rows]
        append_rows(self._path, (row | {"settings": self._settings} for row in new))
        self.rows += new


# ---- tables


def spread(numbers: Sequence[float], digits: int | None = None) -> str:
    """Returns mean and sample standard deviation; the mean alone of one number, or of equal ones.

    Args:
        numbers: An empty cell where there are none.
        digits: After the point; None chooses by size.
    """
    if not numbers:
        return ""
    mean = float(np.mean(numbers))
    is_large = abs(mean) >= 1000
    form = f".{digits}f" if digits is not None else ",.0f" if is_large else ".4g"
    if len(numbers) == 1 or np.ptp(numbers) == 0:
        return f"{mean:{form}}"
    return f"{mean:{form}} ± {np.std(numbers, ddof=1):{'.2g' if form == '.4g' else form}}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def table(
    rows: Iterable[Row],
    names: Sequence[str],
    columns: Sequence[str],
    order: Callable[[tuple[Any, ...]], Any] = str,
) -> str:
    """Returns mean and sample standard deviation over seeds, one line per kind of row.

    Args:
        rows: All of them.
        names: What makes rows of one kind.
        columns: The numbers; a row may lack some.
        order: Of the kinds.
    """
    kinds: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        kinds[tuple(row[name] for name in names)].append(row)
    lines = [
        [*kind, len(kinds[kind]), *(spread([r[c] for r in kinds[kind] if c in r]) for c in columns)]
        for kind in sorted(kinds, key=order)
    ]
    return markdown([*names, "seeds", *columns], lines)

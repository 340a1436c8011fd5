"""TensorBoard event files of a run."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@contextlib.contextmanager
def open_writer(directory: Path) -> Iterator[SummaryWriter]:
    """Opens event files in a folder and closes them whatever happens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own use of deprecated protobuf calls
        from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(directory))
    try:
        yield writer
    finally:
        writer.close()

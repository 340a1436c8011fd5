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
def open_writer(directory: Path, *, suffix: str = "") -> Iterator[SummaryWriter]:
    """Opens event files in a folder and closes them whatever happens.

    Args:
        directory: The folder; made if it is missing.
        suffix: Ends the name of the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own use of deprecated protobuf calls
        from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(directory), filename_suffix=suffix)
    try:
        yield writer
    finally:
        writer.close()

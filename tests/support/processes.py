"""Functions run in several processes that ``torch.distributed`` joins; what runs still."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def in_processes(function: Callable[..., Any], *args: Any, size: int = 2) -> list[Any]:
    """What a function of a module under ``support`` returns in each process of a gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_joined, (size, folder, function, args), nprocs=size)
        paths = [Path(folder) / f"{rank}.pt" for rank in range(size)]
        return [torch.load(path, weights_only=False) for path in paths]


def _joined(
    rank: int, size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    place = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=size)
    try:
        torch.save(function(*args), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()
    # Threads of gloo that have not ended yet abort an interpreter that goes at the same time.
    os._exit(0)


def is_there(process: int) -> bool:
    """Whether a process is running; of the negative of a group's number, one of the group."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True

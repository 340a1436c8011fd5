"""One command in several processes: ``--devices``, or what ``torchrun`` has started.

Every process carries the command out, and ``learners.training`` joins their trainings. The first
one works in the run folder and prints; the others do the same in a copy that is thrown away.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import re
import shutil
import signal
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import typer
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from amc_compress.interruptions import LAUNCHED, TerminatedError, signal_of
from amc_compress.temporary import TemporaryFolder
from amc_env.errors import CompressionError

_PATIENCE = datetime.timedelta(days=1)
"""With the first process, which alone writes and prints; one that has died is noticed at once."""

_UNUSED = (".lock", "tensorboard", "*.onnx", "*.html")

_STAGE = re.compile(rf"{LAUNCHED}(\w+)-\w+")
"""The ID of processes that carry out one stage."""

Work = Callable[[Path, bool], None]


def on_devices(count: int | None, device: str, folder: Path, work: Work) -> None:
    """Carries a command out in as many processes as were asked for, or were started.

    Args:
        count: Asked for; ``None`` for one, or as many as ``torchrun`` has started.
        device: ``cpu``, or ``cuda``, of which each process takes its own.
        folder: That it works in.
        work: The command: of the folder to work in, and whether to be quiet.

    Raises:
        ValueError: If the processes cannot be had.
    """
    _check_count(count)
    if distributed.is_torchelastic_launched():
        started = int(os.environ["WORLD_SIZE"])
        if count not in (None, started):
            raise ValueError(
                f"Expected --devices {started}, as many processes as torchrun has started, got "
                f"{count}: leave --devices out."
            )
        _join(device, folder, work)
    elif count is None or count == 1:
        work(folder, False)
    else:
        _check_devices(device, count)
        _launch(count)


def by_devices(count: int | None, device: str) -> Callable[[str], None] | None:
    """Returns what carries out a stage of this process's command in several ones.

    Each begins with the same command, resumed, and :func:`stage_to_join` tells it which stage is
    wanted; so what comes before and after is done by one process.

    Args:
        count: Of processes; ``None`` for one.
        device: As for :func:`on_devices`.

    Returns:
        None for one process.

    Raises:
        ValueError: If the processes cannot be had.
    """
    _check_count(count)
    if count is None or count == 1:
        return None
    _check_devices(device, count)
    return functools.partial(_launch, count)


def stage_to_join() -> str | None:
    """Returns the stage that this process was started for by :func:`by_devices`, if it was."""
    match = _STAGE.fullmatch(os.environ.get("TORCHELASTIC_RUN_ID", ""))
    return match[1] if match is not None else None


def _check_count(count: int | None) -> None:
    if count is not None and count < 1:
        raise ValueError(f"Expected --devices >= 1, got {count}.")


def _check_devices(device: str, count: int) -> None:
    """Checks that there is a device for each process of this machine."""
    if torch.device(device).type != "cuda":
        return
    if torch.device(device).index is not None:
        raise ValueError(
            f"Expected --device cuda for {count} processes, each with a GPU of its own, got "
            f"{device}: choose the GPUs by CUDA_VISIBLE_DEVICES."
        )
    if (there := torch.cuda.device_count()) < count:
        raise ValueError(
            f"Expected at most {there} processes on this machine, one for each GPU, got {count}: "
            f"give a smaller --devices."
        )


def _launch(count: int, stage: str = "") -> None:
    """Starts the command of this process in several ones, and waits for them.

    Args:
        count: Of processes.
        stage: What alone they do of it, see :func:`by_devices`; all if empty.
    """
    _silence_launcher()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what could be faster, of each process
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"{LAUNCHED}{stage}-{uuid.uuid4().hex}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        with _handlers_kept():
            more = ("--resume",) if stage else ()
            elastic_launch(config, sys.executable)("-m", "amc_compress", *sys.argv[1:], *more)
    except ChildFailedError as error:
        codes = sorted((rank, failure.exitcode) for rank, failure in error.failures.items())
        for _, code in codes:
            if not signal_of(code):  # of a process that has said what is wrong
                raise typer.Exit(code) from None
        rank, code = codes[0]
        raise CompressionError(
            f"Process {rank} of {count} was ended by {signal_of(code)}; nothing that was saved is "
            f"lost: repeat the command with --resume."
        ) from None
    except SignalException as error:
        raise TerminatedError(error.sigval) from None


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Hears signals as before when the launcher has ended, which leaves handlers of its own."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _silence_launcher() -> None:
    """Keeps what the launcher logs off the terminal; each of its modules has a level of its own."""
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _join(device: str, folder: Path, work: Work) -> None:
    """Carries a command out together with the other processes that were started."""
    local = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.device(device).type == "cuda":
        _check_devices(device, int(os.environ["LOCAL_WORLD_SIZE"]))
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        if distributed.get_rank() == 0:
            distributed.barrier()  # until the others have their copies
            work(folder, False)
        else:
            with _in_the_background(), _copy_of(folder) as own:
                distributed.barrier()
                work(own, True)
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _copy_of(folder: Path) -> Iterator[Path]:
    with TemporaryFolder("copy") as made:
        own = made.path / "run"
        if folder.is_dir():
            shutil.copytree(folder, own, ignore=shutil.ignore_patterns(*_UNUSED))
        yield own


@contextlib.contextmanager
def _in_the_background() -> Iterator[None]:
    """Says nothing in the block."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nothing,
        contextlib.redirect_stdout(nothing),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield

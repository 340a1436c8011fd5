r"""Data of ImageNet's shape larger than the memory: what streaming takes, and what a kill loses.

    python -m amc_compress.benchmarks.speed.streaming
    python -m amc_compress.benchmarks.speed.streaming --images 10000 --workers 0,2

Makes tar shards of JPEGs, no two alike, of 1,000 classes, and prints two Markdown tables:

* to load the data set the first time, when every image is looked at once, and again; then training
  batches of random parts and mirrored, streamed by each number of worker processes and from memory:
  images a second, and the largest resident memory of the process and of each worker. Every row is
  a process of its own;
* a training of one epoch that is killed by SIGKILL inside it and resumed, against one that is not:
  steps that were repeated, and whether the weights have the same bits.
"""

from __future__ import annotations

import io
import os
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.torch
import torch
import typer
from PIL import Image
from torch import nn

from amc_compress.benchmarks.bench import markdown, start
from amc_compress.benchmarks.memory import peak_memory, peak_of_workers
from amc_compress.data import DataSplits, load_data
from amc_compress.learners.training.checkpoints import INSIDE
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import train

_DISTINCT = 400  # textures; each image is one of them, moved and tinted by its number
_SHARD = 1000  # images
_SNAPSHOTS = 12  # in the epoch


@dataclass(frozen=True)
class Shape:
    """What is measured.

    Args:
        folder: Holds the shards.
        memory: Bytes that decoded images may take.
        size: Side of the images that are trained on.
        batch: Images in a batch.
    """

    folder: Path
    memory: int
    size: int
    batch: int

    def load(self, workers: int) -> DataSplits:
        """Returns the data set."""
        return load_data(
            self.folder,
            image_size=self.size,
            batch_size=self.batch,
            memory=self.memory,
            workers=workers,
            progress=False,
        )


@dataclass(frozen=True)
class Row:
    """Images, what they took, and the largest resident memory in MB of a process and its workers.

    ``cpu`` are the processor seconds of all processes together.
    """

    images: int
    seconds: float
    cpu: float
    process: float
    worker: float


def make_shards(folder: Path, images: int, classes: int, side: int) -> int:
    """Writes ``train-*.tar`` and a twentieth as many test images; returns the bytes.

    Args:
        folder: Where to.
        images: To train on; every class has some where there are enough.
        classes: Their number.
        side: Of the images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for split, count, first in (("train", images, 0), ("test", max(classes, images // 20), images)):
        made = _jpegs(first, count, side)
        for number in range(-(-count // _SHARD)):
            path = folder / f"{split}-{number:06}.tar"
            with tarfile.open(path, "w") as tar:
                for row in range(number * _SHARD, min((number + 1) * _SHARD, count)):
                    _add(tar, f"{row:08}.jpg", next(made))
                    _add(tar, f"{row:08}.cls", str(row % classes).encode())
            total += path.stat().st_size
    return total


def _jpegs(first: int, count: int, side: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (_DISTINCT, 6, 6, 3), dtype=np.uint8)
    textures = [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        for image in coarse
    ]
    for number in range(first, first + count):
        texture, moved = number % _DISTINCT, number // _DISTINCT
        image = np.roll(textures[texture], (moved % side, moved // side), (0, 1))
        tint = 8 * np.array(np.unravel_index(number % 343, (7, 7, 7)), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image + tint).save(buffer, "JPEG", quality=85)
        yield buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def loading(shape: Shape, workers: int) -> Row:
    """Loads the data set; every image is looked at the first time."""
    before = _times()
    data = shape.load(workers)
    count = sum(part.n_images for part in (data.train, data.validation, data.test))
    return _row(count, before)


def batches(shape: Shape, workers: int, limit: int) -> Row:
    """Reads training batches of up to so many images."""
    data = shape.load(workers)
    data.train.set_epoch(1)
    before, count = _times(), 0
    for images, _ in data.train:
        count += len(images)
        if count >= limit:
            break
    return _row(count, before)


def _times() -> tuple[float, float]:
    """Seconds of the clock and of the processor, those of workers that have ended included."""
    spent = os.times()
    return time.perf_counter(), sum(spent[:4])


def _row(images: int, before: tuple[float, float]) -> Row:
    seconds, cpu = (now - then for now, then in zip(_times(), before, strict=True))
    return Row(images, seconds, cpu, peak_memory(), peak_of_workers())


def trained(shape: Shape, workers: int, folder: Path) -> None:
    """Trains a small network for an epoch, from where it was killed; writes its weights."""
    torch.set_num_threads(1)
    data = shape.load(workers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 5, 4),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(128, data.n_classes),
        )
    config = TrainingConfig(
        epochs=1,
        learning_rate=0.02,
        precision="fp32",
        snapshot_steps=max(1, len(data.train) // _SNAPSHOTS),
    )
    train(network, data.train, data.validation, config, checkpoint_dir=folder, resume=True)
    safetensors.torch.save_file(network.state_dict(), folder / "end.safetensors")


def position(folder: Path) -> int:
    """Returns the steps of the epoch that the last checkpoint holds."""
    try:
        state = torch.load(folder / "last.pt", weights_only=True)
    except OSError:
        return 0
    return int(state.get(INSIDE, {"batches": 0})["batches"])


def killed_and_resumed(shape: Shape, workers: int, place: Path) -> tuple[int, int, bool]:
    """Kills a training inside its epoch and resumes it.

    Returns:
        The step of the last snapshot, the steps of the epoch, and whether the weights are those of
        a training that nothing stopped.
    """
    context = get_context("spawn")
    broken, whole = place / "broken", place / "whole"
    process = context.Process(target=trained, args=(shape, workers, broken))
    process.start()
    while process.is_alive() and not position(broken):
        time.sleep(0.02)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    reached = position(broken)
    for folder in (broken, whole):
        again = context.Process(target=trained, args=(shape, workers, folder))
        again.start()
        again.join()
        if again.exitcode:
            raise RuntimeError(f"The training in {folder} ended with code {again.exitcode}.")
    first, second = (
        safetensors.torch.load_file(folder / "end.safetensors") for folder in (broken, whole)
    )
    return reached, len(shape.load(0).train), all(torch.equal(first[k], second[k]) for k in first)


def _alone(function: Callable[..., Row], *arguments: Any) -> Row:
    """Calls a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def rows(shape: Shape, workers: list[int], limit: int) -> Iterator[tuple[str, Row]]:
    """Measures; yields what and how much."""
    most = max(workers)
    yield f"look at every image, {most} workers", _alone(loading, shape, most)
    yield "load again", _alone(loading, shape, most)
    for count in workers:
        yield f"streamed, {count} workers", _alone(batches, shape, count, limit)
    held = Shape(shape.folder, 10**15, shape.size, shape.batch)
    yield "in memory", _alone(batches, held, 0, limit)


def main(
    images: Annotated[int, typer.Option(min=100)] = 100_000,
    classes: Annotated[int, typer.Option(min=2)] = 1000,
    side: Annotated[int, typer.Option(help="Of the JPEGs, in pixels.")] = 80,
    size: Annotated[int, typer.Option(help="Of what is trained on.")] = 64,
    batch: int = 256,
    memory: Annotated[int, typer.Option(help="MB of decoded images.")] = 200,
    workers: Annotated[str, typer.Option(help="Numbers of processes.")] = "0,1,2",
    limit: Annotated[int, typer.Option(help="Images of a measured pass.")] = 25_600,
    folder: Annotated[Path | None, typer.Option(help="Keep the shards here.")] = None,
    kill: Annotated[bool, typer.Option(help="Measure a killed training too.")] = True,
) -> None:
    """Measures, and prints the tables."""
    numbers = [int(word) for word in workers.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["AMC_CACHE_DIR"] = f"{temporary}/cache"
        place = Path(temporary) / "data" if folder is None else folder
        if not list(place.glob("train-*.tar")):
            size_of_all = make_shards(place, images, classes, side)
            print(f"{images:,} training images of {classes:,} classes, {size_of_all / 1e6:.0f} MB")
        shape = Shape(place, memory * 10**6, size, batch)
        table = [
            [what, f"{row.images / row.seconds:,.0f}", f"{row.images / row.cpu:,.0f}",
             f"{row.process:.0f}", f"{row.worker:.0f}"]
            for what, row in rows(shape, numbers, limit)
        ]  # fmt: skip
        head = ["", "images/s", "images/CPU-second", "process, MB", "each worker, MB"]
        print(markdown(head, table))
        if kill:
            reached, steps, same = killed_and_resumed(shape, max(numbers), Path(temporary))
            print(
                f"\nkilled inside an epoch of {steps} steps behind the snapshot of step {reached}, "
                f"resumed from there: {'the same' if same else 'OTHER'} weights, bit for bit"
            )


if __name__ == "__main__":
    start(main)

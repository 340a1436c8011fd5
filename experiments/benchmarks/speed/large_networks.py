"""What networks of ImageNet's size cost: to trace, to prepare for pruning, to evaluate one plan.

Each measurement is a process of its own on one thread, so that its peak of memory counts for it
alone. Weights are random with batch norms that are not, pictures are synthetic. Besides, the
tracing of Torch-Pruning (its dependency graph, which nothing is proved of) and the evaluation of
ModelOpt's FastNAS (batch norms measured again, then the score) on the same pictures, each where it
is installed.

    python -m amc_compress.benchmarks.speed.large_networks
    python -m amc_compress.benchmarks.speed.large_networks --network resnet50 --images 64
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import torch.nn.functional as F  # noqa: N812
import typer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

from amc_compress.benchmarks.bench import markdown, start
from amc_compress.benchmarks.memory import peak_memory
from amc_compress.learners import ChannelPruning
from amc_compress.learners.tracing import trace
from amc_env import CompressionPlan

NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "vit_s_16",
)  # fmt: skip
SIDE = 224
N_RECALIBRATION = 192
_VIT_S = {"num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}
_HEADER = (
    "network", "GMACs", "decisions", "trace", "prepare", "evaluate: first", "evaluate: next",
    "peak MB", "Torch-Pruning: graph", "FastNAS: convert", "FastNAS: evaluate", "FastNAS: peak MB",
)  # fmt: skip

Row = dict[str, Any]


def network(name: str) -> nn.Module:
    """Returns a network of torchvision with random weights, and batch norms that have seen data."""
    from torchvision import models

    torch.manual_seed(0)
    if name == "vit_s_16":
        made: nn.Module = models.VisionTransformer(image_size=SIDE, patch_size=16, **_VIT_S)
    else:
        made = models.get_model(name, weights=None)
    for module in made.modules():
        if isinstance(module, _BatchNorm):
            for statistic, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                if statistic is not None:
                    statistic.uniform_(low, low + 1.0)
    return made.eval()


class Pictures(Dataset[tuple[Tensor, int]]):
    """Blurred noise, held in bytes as files are.

    Args:
        n: How many.
        seed: Of the noise.
    """

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(n, 3, 16, 16, generator=generator)
        self._images = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8)
        for image, x in zip(self._images, coarse, strict=True):
            fine = F.interpolate(x[None], size=(SIDE, SIDE), mode="bilinear")[0]
            image.copy_((64 * fine + 128).clamp(0, 255))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (self._images[index].float() - 128) / 64, index % 1000


@contextmanager
def timed(row: Row, name: str) -> Iterator[None]:
    """Notes the CPU-seconds of the block."""
    before = time.process_time()
    yield
    row[name] = round(time.process_time() - before, 1)


def ours(name: str, n_images: int, memory: int | None) -> Row:
    """Measures this package."""
    row: Row = {}
    model, example = network(name), torch.randn(1, 3, SIDE, SIDE)
    loaders = [DataLoader(Pictures(n_images, seed), batch_size=32) for seed in (1, 2)]
    given: Row = {
        "n_calibration": n_images, "n_validation": n_images, "n_recalibration": N_RECALIBRATION,
        "memory": memory,
    }  # fmt: skip
    with timed(row, "prepare"):
        learner = ChannelPruning(model, example, *loaders, **given)
    for column, kept in (("evaluate: first", 0.5), ("evaluate: next", 0.6)):
        plan = CompressionPlan({d.key: d.nearest(kept) for d in learner.decisions})
        with timed(row, column):
            learner.evaluate(plan)
    full = learner.graph.full()
    row["decisions"] = len(learner.decisions)
    row["GMACs"] = round(sum(layer.macs(full) for layer in learner.graph.layers) / 1e9, 2)
    return row


def tracing(name: str, n_images: int, memory: int | None) -> Row:
    """Measures the tracing of this package alone."""
    row: Row = {}
    model, example = network(name), torch.randn(1, 3, SIDE, SIDE)
    with timed(row, "trace"):
        trace(model, example)
    return row


def torch_pruning(name: str, n_images: int, memory: int | None) -> Row:
    """Measures the dependency graph of Torch-Pruning."""
    import torch_pruning as tp

    row: Row = {}
    model, example = network(name), torch.randn(1, 3, SIDE, SIDE)
    with timed(row, "Torch-Pruning: graph"):
        tp.DependencyGraph().build_dependency(model, example)
    return row


def fastnas(name: str, n_images: int, memory: int | None) -> Row:
    """Measures a subnet of FastNAS: its search calibrates batch norms and asks for the score."""
    # By name: nothing else here needs it, so no extra installs it (pip install nvidia-modelopt).
    mtn = importlib.import_module("modelopt.torch.nas")
    sample = importlib.import_module("modelopt.torch.nas.utils").sample
    row: Row = {}
    model = network(name)
    loader = DataLoader(Pictures(n_images, 1), batch_size=32)
    with timed(row, "FastNAS: convert"):
        model = mtn.convert(model, mode="fastnas")
    with torch.no_grad():
        model.train()
        for images, _ in loader:  # its search fills a queue of batches in this way, once
            model(images[:N_RECALIBRATION])
        with timed(row, "FastNAS: evaluate"):
            sample(model, sample_func=lambda choices: sorted(choices)[len(choices) // 2])
            model.train()
            model.eval()  # calibrates
            found = [(model(x).argmax(1) == y).float() for x, y in DataLoader(
                Pictures(n_images, 2), batch_size=32
            )]  # fmt: skip
            torch.cat(found).mean()
    return row


PARTS: dict[str, Callable[[str, int, int | None], Row]] = {
    "ours": ours, "tracing": tracing, "torch_pruning": torch_pruning, "fastnas": fastnas,
}  # fmt: skip


def measured(name: str, part: str, n_images: int, memory: int | None) -> Row:
    """Returns what a process of its own finds; the last line of its complaint if it fails."""
    command = [sys.executable, "-m", "amc_compress.benchmarks.speed.large_networks"]
    told = ["--network", name, "--images", str(n_images), "--only", part]
    told += [] if memory is None else ["--memory", str(memory)]
    done = subprocess.run([*command, *told], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        print(f"{name}, {part}: {lines[-1]}", file=sys.stderr)
        return {}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main(
    network: Annotated[list[str] | None, typer.Option(help="Of torchvision, or vit_s_16.")] = None,
    images: Annotated[int, typer.Option(help="For calibration, and for an evaluation.")] = 256,
    memory: Annotated[int | None, typer.Option(help="Bytes that our moments may take.")] = None,
    only: Annotated[str | None, typer.Option(help="Measure one part here, and print it.")] = None,
) -> None:
    """Prints the table."""
    names = network or list(NETWORKS)
    if only is not None:
        row = PARTS[only](names[0], images, memory)
        peak = round(peak_memory())
        kind = {"ours": "peak MB", "fastnas": "FastNAS: peak MB"}.get(only, "peak")
        print(json.dumps(row | {kind: peak}))
        return
    cells = []
    for name in names:
        found: Row = {"network": name}
        for part in PARTS:
            found |= measured(name, part, images, memory)
        cells.append([found.get(column, "") for column in _HEADER])
        print(json.dumps(found), file=sys.stderr, flush=True)
    print(markdown(_HEADER, cells))


if __name__ == "__main__":
    start(main)

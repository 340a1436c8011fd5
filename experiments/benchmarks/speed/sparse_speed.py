r"""Latency of sparse networks against dense ones in several runtimes.

    python -m amc_compress.benchmarks.speed.sparse_speed
    python -m amc_compress.benchmarks.speed.sparse_speed --weights resnet20.safetensors --seconds 10

Prints a Markdown table: ResNet-20 and one linear layer of 1024 x 1024, dense, with 50 to 95% of
all weights zero (the smallest of each layer), and with two of every four (2:4);

* in ONNX Runtime on the CPU, as exported by ``amc export``: its kernels are dense;
* the linear layer in PyTorch on the CPU, dense and in the CSR format of ``torch.sparse``;
* the linear layer in PyTorch's semi-structured format (2:4), which needs an NVIDIA GPU of compute
  capability 8.0 or higher; without one, the table says what PyTorch answers.

One thread; the networks take turns, and the median counts. ``times faster`` is dense / sparse:
above 1 the zeros pay, below 1 they cost.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812
import typer
from torch import Tensor, nn

from amc_compress.benchmarks.bench import start
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.export.runtime import BATCH_SIZES, time_in_turns, time_onnx
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.masked import sparse_layer
from amc_compress.learners.layers.structure import replace_module
from amc_compress.learners.sparsification.patterns import Pattern
from amc_compress.models import load_weights, make_model

DENSE = "dense"
ZEROS: tuple[tuple[str, str, float], ...] = (
    ("50%", "unstructured", 0.5),
    ("75%", "unstructured", 0.25),
    ("90%", "unstructured", 0.1),
    ("95%", "unstructured", 0.05),
    ("2:4", "2:4", 0.5),
)
"""What the table calls it, pattern, density."""

_WIDTH = 1024
_GPU_WIDTHS = (1024, 4096)
_GPU_BATCH = 2048


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        network: What was run.
        runtime: Where, and in which format.
        zeros: Which weights are zero.
        milliseconds: Batch size -> median of a call, for those that were measured.
        dense: Batch size -> the same without zeros, in the same runtime's dense format.
        note: Why there is no measurement.
    """

    network: str
    runtime: str
    zeros: str
    milliseconds: Mapping[int, float]
    dense: Mapping[int, float]
    note: str = ""


def with_zeros(network: nn.Module, pattern: str, density: float) -> nn.Module:
    """Masks the smallest weights of all layers that can have the pattern, in place.

    Args:
        network: The network.
        pattern: As ``amc_compress.learners.sparsification.patterns.Pattern`` reads it.
        density: Share of the weights of a layer that stays.
    """
    shape = Pattern.parse(pattern)
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.Conv2d | nn.Linear) or shape.rejection(layer.weight.shape):
            continue
        mask = shape.mask(layer.weight.detach(), round(density * layer.weight.numel()))
        replace_module(network, name, sparse_layer(layer, mask))
    return network


def one_layer() -> nn.Module:
    """Returns a network of one linear layer with the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(_WIDTH, _WIDTH))


def onnx_rows(
    name: str, make: Callable[[], nn.Module], shape: Sequence[int], seconds: float
) -> list[Row]:
    """Measures a network in ONNX Runtime, dense and with every kind of zeros.

    Args:
        name: What the table calls it.
        make: Returns the dense network, the same at every call.
        shape: Of one input.
        seconds: Of timing per batch size.
    """
    example = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        paths = {DENSE: Path(folder) / "dense.onnx"}
        export_onnx(make(), example, paths[DENSE])
        for index, (zeros, pattern, density) in enumerate(ZEROS):
            paths[zeros] = Path(folder) / f"{index}.onnx"
            export_onnx(with_zeros(make(), pattern, density), example, paths[zeros])
        times = time_onnx(paths, shape, seconds=seconds)
    by_size = {k: {int(size): ms for size, ms in row.items()} for k, row in times.items()}
    return [
        Row(name, "ONNX Runtime, CPU", zeros, found, by_size[DENSE])
        for zeros, found in by_size.items()
    ]


@torch.no_grad()
def csr_rows(seconds: float, batch_sizes: Sequence[int] = BATCH_SIZES) -> list[Row]:
    """Measures the linear layer in PyTorch on the CPU, dense and as ``torch.sparse`` CSR.

    Args:
        seconds: Of timing per batch size.
        batch_sizes: Inputs per call.
    """
    weight = _linear_weight(one_layer())
    sparse: dict[str, Tensor] = {}
    for zeros, pattern, density in ZEROS:
        masked = _linear_weight(with_zeros(one_layer(), pattern, density))
        with warnings.catch_warnings():  # its CSR tensors are in beta, it says
            warnings.simplefilter("ignore")
            sparse[zeros] = masked.to_sparse_csr()
    found: dict[str, dict[int, float]] = {name: {} for name in (DENSE, *sparse)}
    for size in batch_sizes:
        x = torch.randn(size, _WIDTH, generator=torch.Generator().manual_seed(0))
        columns = x.T.contiguous()
        calls: dict[str, Callable[[], object]] = {DENSE: partial(F.linear, x, weight)}
        calls |= {zeros: partial(torch.sparse.mm, m, columns) for zeros, m in sparse.items()}
        for name, times in zip(calls, time_in_turns([*calls.values()], seconds), strict=True):
            found[name][size] = statistics.median(times)
    return [
        Row(
            _LINEAR, "PyTorch CPU, dense" if n == DENSE else "PyTorch CPU, CSR", n, ms, found[DENSE]
        )
        for n, ms in found.items()
    ]


_LINEAR = f"linear {_WIDTH}x{_WIDTH}"


def _linear_weight(network: nn.Module) -> Tensor:
    """Returns the weights of the one layer, zeros in place."""
    weight: Tensor = finalise(network, quantized=True).get_submodule("0").get_parameter("weight")
    return weight.detach()


def semi_structured_rows(seconds: float) -> list[Row]:
    """Measures 2:4 weights in PyTorch's semi-structured format, in half precision on a GPU.

    Without a GPU, or where PyTorch raises, the row holds its message instead of a number.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.cuda.get_device_name() if device.type == "cuda" else "no CUDA GPU here"
    runtime = f"PyTorch semi-structured, fp16 ({place})"
    rows = []
    for width in _GPU_WIDTHS if device.type == "cuda" else (_WIDTH,):
        name = f"linear {width}x{width}"
        try:
            dense, sparse = _time_semi_structured(width, device, seconds)
        except (RuntimeError, NotImplementedError) as error:
            answer = " ".join(str(error).split())
            rows.append(Row(name, runtime, "2:4", {}, {}, f"not measured; PyTorch: {answer}"))
            continue
        rows.append(Row(name, runtime, "2:4", {_GPU_BATCH: sparse}, {_GPU_BATCH: dense}))
    return rows


@torch.no_grad()
def _time_semi_structured(width: int, device: torch.device, seconds: float) -> tuple[float, float]:
    """Returns milliseconds dense and sparse.

    Raises:
        RuntimeError: If PyTorch cannot do it on that device.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=generator)
    mask = Pattern.parse("2:4").mask(weight, weight.numel() // 2)
    dense = (weight * mask).to(device, torch.float16)
    with warnings.catch_warnings():  # in beta, it says
        warnings.simplefilter("ignore")
        sparse = torch.sparse.to_sparse_semi_structured(dense)
    x = torch.randn(_GPU_BATCH, width, generator=generator).to(device, torch.float16)

    def waiting(matrix: Tensor) -> Callable[[], object]:
        def call() -> None:
            F.linear(x, matrix)
            torch.cuda.synchronize()

        return call

    calls = [waiting(dense), waiting(sparse)]
    times = time_in_turns(calls, seconds, clock=time.perf_counter)
    return statistics.median(times[0]), statistics.median(times[1])


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table."""
    lines = [
        "| network | runtime | zeros | batch | ms | times faster than dense |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| {row.network} | {row.runtime} | {row.zeros} |"
        if row.note:
            lines.append(f"{start} | {row.note} | |")
        for size, ms in row.milliseconds.items():
            lines.append(f"{start} {size} | {ms:.4g} | {row.dense[size] / ms:.2f} |")
    return "\n".join(lines)


def main(
    weights: Annotated[
        Path | None, typer.Option(help="Trained weights of ResNet-20; random ones without.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of timing per runtime and batch size.")] = 5.0,
    linear_only: Annotated[
        bool, typer.Option("--linear-only", help="Leave ResNet-20 out, which takes longest.")
    ] = False,
) -> None:
    """Prints what zeros in the weights give ONNX Runtime and PyTorch, as a Markdown table.

    One thread; dense and sparse networks take turns, the median of their calls counts. "times
    faster" is dense / sparse: above 1 the zeros pay. 2:4 means two zeros in every four weights,
    which NVIDIA GPUs of compute capability 8.0 and higher skip; without one the table says so.
    Leave the machine alone while it runs, about two minutes.
    """

    def resnet20() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = make_model("resnet20").eval()
        if weights is not None:
            load_weights(network, weights)
        return network

    rows = [] if linear_only else onnx_rows("ResNet-20", resnet20, (3, 32, 32), seconds)
    rows += onnx_rows(_LINEAR, one_layer, (_WIDTH,), seconds)
    rows += csr_rows(seconds)
    rows += semi_structured_rows(seconds)
    print(markdown(rows))


if __name__ == "__main__":
    start(main)

r"""8-bit ONNX files against the float file: accuracy, agreement, milliseconds, bytes.

Prints one JSON line per file: ``float``, ``ptq`` (ONNX Runtime's quantizer on the float network),
``calibrated`` (the 8-bit network of the uniform learner), ``qat`` (the same, fine-tuned). All files
are timed in turns, on one thread::

    python -m amc_compress.benchmarks.speed.int8 --model resnet20 --data DIR --weights FILE
    python -m amc_compress.benchmarks.speed.int8 \
        --model mobilenet_v2_fast --data DIR --weights FILE \
        --qat-epochs 1 --test

``agreement`` compares with the torch network that the file was written from, on validation images.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from amc_compress.benchmarks.bench import load, start
from amc_compress.data import DataSplits
from amc_compress.learners import UniformQuantization
from amc_compress.learners.export.integers.onnx_quantized import (
    QuantizedExport,
    export_quantized,
    onnx_accuracy,
    post_training_int8,
)
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.export.runtime import time_onnx
from amc_compress.tasks import SplitKind


def write_files(
    network: nn.Module,
    splits: DataSplits,
    folder: Path,
    *,
    weight_bits: int = 8,
    qat_epochs: int = 0,
    n_images: int = 2000,
    method: str = "minmax",
    shortcuts: str = "shared",
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Writes all files.

    Args:
        network: The trained float network.
        splits: Its data.
        folder: Where to write.
        weight_bits: Of the learner's network; activations have 8.
        qat_epochs: Epochs of fine-tuning; 0 for no such file.
        n_images: Validation images to compare with torch.
        method: How missing ranges are found.
        shortcuts: ``"shared"`` or ``"own"``, see :func:`export_quantized`.
        progress: Whether to show progress bars.

    Returns:
        Name -> path and what the export found out.
    """
    example = torch.zeros(1, *splits.image_shape)
    calibration: Tensor = splits.calibration.images[:512]
    options: dict[str, Any] = {
        "calibration": calibration,
        "images": splits.validation.images[:n_images],
        "method": method,
    }
    checked = export_onnx(network, example, folder / "float.onnx", images=options["images"])
    found: dict[str, dict[str, Any]] = {
        "float": {"path": checked.path, "agreement": checked.agreement}
    }
    found["ptq"] = _facts(post_training_int8(network, example, folder / "ptq.onnx", **options))
    learner = UniformQuantization(
        network, example, splits.calibration, splits.validation, weight_bits=weight_bits
    )
    small = learner.compress(learner.fixed_plan(weight_bits))
    for name, epochs in (("calibrated", 0), ("qat", qat_epochs)):
        if epochs:
            learner.finetune(small, splits.train, epochs=epochs, progress=progress)
        if epochs or name == "calibrated":
            path = folder / f"{name}.onnx"
            result = export_quantized(small, example, path, shortcuts=shortcuts, **options)
            found[name] = _facts(result)
    return found


def _facts(result: QuantizedExport) -> dict[str, Any]:
    return {
        "path": result.path,
        "agreement": result.agreement,
        "max_difference": result.max_difference,
        "n_int8_layers": result.n_int8_layers,
        "n_float_layers": result.n_float_layers,
    }


def main(
    model: Annotated[str, typer.Option(help="Name in the zoo or package.module:factory.")] = (
        "resnet20"
    ),
    data: Annotated[str, typer.Option(help="digits, or a parquet folder.")] = "digits",
    weights: Annotated[Path | None, typer.Option(help="safetensors or state_dict.")] = None,
    qat_epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning; 0 for no qat.")] = 0,
    weight_bits: Annotated[int, typer.Option(help="Of the learner's network.")] = 8,
    images: Annotated[int, typer.Option(help="Validation images to compare with torch.")] = 2000,
    method: Annotated[str, typer.Option(help="minmax, percentile or entropy.")] = "minmax",
    shortcuts: Annotated[str, typer.Option(help="shared or own ranges.")] = "shared",
    seconds: Annotated[float, typer.Option(help="Of timing per batch size.")] = 5.0,
    validation_split: Annotated[SplitKind, typer.Option(help="Which images validate.")] = "tail",
    test: Annotated[bool, typer.Option("--test", help="Measure test accuracy as well.")] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the files in this folder.")] = None,
) -> None:
    """Prints a JSON line per file."""
    network, splits = load(model, data, weights, validation_split=validation_split)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        found = write_files(
            network,
            splits,
            folder,
            weight_bits=weight_bits,
            qat_epochs=qat_epochs,
            n_images=images,
            method=method,
            shortcuts=shortcuts,
        )
        times = time_onnx(
            {name: facts["path"] for name, facts in found.items()},
            splits.image_shape,
            seconds=seconds,
        )
        for name, facts in found.items():
            path = facts.pop("path")
            row: dict[str, Any] = {"row": name, "model": model, **facts}
            row["validation_accuracy"] = onnx_accuracy(path, splits.validation)
            if test:
                row["test_accuracy"] = onnx_accuracy(path, splits.test)
            row["ms"] = times[name]
            row["times_faster"] = {
                batch: round(times["float"][batch] / ms, 3) for batch, ms in times[name].items()
            }
            row["bytes"] = path.stat().st_size
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    start(main)

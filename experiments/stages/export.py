"""Stage ``export``: the files for deployment."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.export.onnx_options import OnnxOptions, file_metadata
from amc_compress.learners.export.runtime import BATCH_SIZES, time_onnx
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.runs.networks import example_input, load_smaller
from amc_compress.runs.task import Task, use_threads

# Images of the validation split on which ONNX Runtime must agree with torch.
_N_COMPARED = 256


# Images that settle the integer ranges of an exported network; they are training images.
_N_CALIBRATION = 256


def run_export(task: Task) -> None:
    """Writes ``model.onnx`` and ``original.onnx``, checks them against torch and times them.

    A quantized network is exported for integer arithmetic. Where no runtime executes its bits
    the stage says so instead, and the packed file is what there is.
    """
    folder = task.folder
    if folder.is_done("export"):
        return
    folder.results("finetune")
    folder.start("export")
    use_threads(task.config, folder.facts, training=False)
    started = time.perf_counter()
    small = load_smaller(folder, "model.safetensors")
    images = task.data.validation.images[:_N_COMPARED].float().cpu()
    results: dict[str, Any]
    if quantized_layers(small):
        results = _export_quantized(task, small, images)
    else:
        # Runtimes know no masks: the zeros are written into the weights.
        checked = export_onnx(
            finalise(small),
            example_input(folder.facts),
            folder / "model.onnx",
            images=images,
            options=_with_metadata(task),
        )
        results = {
            "max_difference": checked.max_difference,
            "agreement": checked.agreement,
            "n_images": checked.n_images,
        }
    if "refused" not in results:
        results |= _time_against_original(task, images)
    folder.finish("export", seconds=round(time.perf_counter() - started, 3), **results)


def _export_quantized(task: Task, small: nn.Module, images: Tensor) -> dict[str, Any]:
    from amc_compress.learners.export.onnx_quantized import (
        UnsupportedPrecisionError,
        check_executable,
        export_quantized,
    )

    folder = task.folder
    try:
        check_executable(small)
        checked = export_quantized(
            small,
            example_input(folder.facts),
            folder / "model.onnx",
            calibration=task.data.calibration.images[:_N_CALIBRATION].float().cpu(),
            images=images,
            options=_with_metadata(task),
        )
    except UnsupportedPrecisionError as error:
        (folder / "model.onnx").unlink(missing_ok=True)  # of an earlier fine-tuning
        return {"refused": str(error), "latency_ms": None}
    return {
        "max_difference": checked.max_difference,
        "agreement": checked.agreement,
        "n_images": checked.n_images,
    }


def _with_metadata(task: Task) -> OnnxOptions:
    """Returns the options of the export, with what the file says of classes and images."""
    data, options = task.data, task.onnx
    normalisation = data.test.normalisation
    metadata = file_metadata(data.class_names, normalisation, data.image_shape)
    return replace(
        options,
        metadata={**metadata, **options.metadata},
        preprocessing=normalisation if task.onnx_preprocessing else None,
    )


def _time_against_original(task: Task, images: Tensor) -> dict[str, Any]:
    folder = task.folder
    files = {"original": folder / "original.onnx", "compressed": folder / "model.onnx"}
    options = _with_metadata(task)
    export_onnx(
        task.original,
        example_input(folder.facts),
        files["original"],
        images=images,
        options=options,
    )
    sizes = BATCH_SIZES if options.batch is None else (options.batch,)
    return {
        "latency_ms": time_onnx(files, folder.facts.image_shape, batch_sizes=sizes),
        "onnx_bytes": {name: file.stat().st_size for name, file in files.items()},
    }

"""Stage ``export``: the files for deployment."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from amc_compress.config.values import ONNX_BYTES
from amc_compress.data.given import first_inputs
from amc_compress.learners.export.interface import Interface
from amc_compress.learners.export.onnx_file import ExportError, ExportResult, export_onnx
from amc_compress.learners.export.part import part_of
from amc_compress.learners.export.runtime import BATCH_SIZES, time_onnx
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tasks.task import Task as Purpose
from amc_compress.runs.networks import example_of, load_smaller
from amc_compress.runs.task import Task, use_threads
from amc_env.validation.sentences import first_line

# Images of the validation split on which ONNX Runtime must agree with torch.
_N_COMPARED = 256


# Images that settle the integer ranges of an exported network; they are training images.
_N_CALIBRATION = 256


_ADVICE = re.compile(r"[:;] (?:add|export)\b")


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
    images = first_inputs(task.data.validation, task.purpose, _N_COMPARED)
    write = _export_quantized if quantized_layers(small) else _export_float
    if task.onnx_integers is not None:
        write = _export_integers
    try:
        results = write(task, small, images, None)
    except ExportError as error:
        part = task.config.part
        if part is None:
            raise
        results = write(task, small, images, part)
        notes = [f"The files hold {part!r} alone: {_reason(error)}", results.get("note")]
        results |= {"part": part, "note": "; ".join(filter(None, notes))}
    if "refused" not in results:
        _check_size(task)
        results |= _time_against_original(task, images, results.get("part"))
    folder.finish("export", seconds=round(time.perf_counter() - started, 3), **results)


def _reason(error: ExportError) -> str:
    """Returns what an error says without its advice, which has been followed."""
    return _ADVICE.split(first_line(error, 400))[0]


def _export_float(task: Task, small: nn.Module, images: Inputs, part: str | None) -> dict[str, Any]:
    # Runtimes know no masks: the zeros are written into the weights.
    return _facts(
        export_onnx(
            finalise(small),
            example_of(task.folder),
            task.folder / "model.onnx",
            images=images,
            options=task.onnx_options,
            task=_answers(task, part),
            part=part,
        )
    )


def _answers(task: Task, part: str | None) -> str | Purpose:
    """Returns the task that tells how alike two answers are; a part has none of its own."""
    return task.purpose if part is None else "agreement"


def _facts(checked: ExportResult) -> dict[str, Any]:
    return {
        "max_difference": checked.max_difference,
        "agreement": checked.agreement,
        "n_images": checked.n_images,
    }


def _export_quantized(
    task: Task, small: nn.Module, images: Inputs, part: str | None
) -> dict[str, Any]:
    from amc_compress.learners.export.integers.onnx_quantized import (
        UnsupportedPrecisionError,
        check_executable,
        export_quantized,
    )

    folder = task.folder
    try:
        check_executable(small)
        checked = export_quantized(
            small,
            example_of(folder),
            folder / "model.onnx",
            calibration=first_inputs(task.data.calibration, task.purpose, _N_CALIBRATION),
            images=images,
            options=task.onnx_options,
            task=_answers(task, part),
            part=part,
        )
    except UnsupportedPrecisionError as error:
        (folder / "model.onnx").unlink(missing_ok=True)  # of an earlier fine-tuning
        return {"refused": str(error), "latency_ms": None}
    return _facts(checked)


def _export_integers(
    task: Task, small: nn.Module, images: Inputs, part: str | None
) -> dict[str, Any]:
    from amc_compress.learners.export.integers.onnx_weights import export_weights

    saved = export_weights(
        small,
        example_of(task.folder),
        task.folder / "model.onnx",
        task.onnx_integers,
        images=images,
        options=task.onnx_options,
        task=_answers(task, part),
        part=part,
    )
    note = saved.said()
    if any(layer.input_quantizer is not None for layer in quantized_layers(small).values()):
        note += "; the inputs that the network rounds are not rounded as it does"
    return _facts(saved) | {"note": note}


def _check_size(task: Task) -> None:
    """Compares the file with what its plan was counted as, where a budget counts it.

    Raises:
        ExportError: If the file is larger: a budget may be broken.
    """
    cost = task.problem.costs.get(ONNX_BYTES)
    if cost is None:
        return
    plan = task.folder.read_plan()
    counted = cost(plan.values_for(task.problem.decisions))
    size = (task.folder / "model.onnx").stat().st_size
    if size > counted:
        raise ExportError(
            f"The ONNX file has {size} bytes, more than the {counted:.0f} that its plan was "
            f"counted as: this network changes its graph when it is cut; bound bytes or params in "
            f"place of {ONNX_BYTES}."
        )


def _time_against_original(task: Task, images: Inputs, part: str | None) -> dict[str, Any]:
    folder = task.folder
    files = {"original": folder / "original.onnx", "compressed": folder / "model.onnx"}
    options = task.onnx_options
    export_onnx(
        task.original,
        example_of(folder),
        files["original"],
        images=images,
        options=options,
        task=_answers(task, part),
        part=part,
    )
    sizes = BATCH_SIZES if options.batch is None else (options.batch,)
    inputs: Sequence[int] | Mapping[str, Tensor] | None = folder.facts.image_shape
    if inputs is None or part is not None:
        network: nn.Module = task.original
        if part is not None:
            network, images = part_of(network, part, images)
        inputs = Interface(network, images, options.batch).named(images)
    return {
        "latency_ms": time_onnx(files, inputs, batch_sizes=sizes),
        "onnx_bytes": {name: file.stat().st_size for name, file in files.items()},
    }

"""What others load: the compressed network of a run in formats of other libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from amc_compress.config.texts import is_pretrained
from amc_compress.config.values import BIT_FORMATS, LLAMA_CPP
from amc_compress.data.given import first_inputs
from amc_compress.learners.export.bits import (
    auto_round_config,
    check_linear,
    compressed_tensors_config,
    gptqmodel_config,
    network_schemes,
    tensor_types,
    torchao_config,
)
from amc_compress.learners.export.bits.llama_cpp import gguf_names
from amc_compress.learners.export.pretrained.folder import (
    SavedFolder,
    save_pretrained,
    tokenizer_files,
)
from amc_compress.learners.export.pretrained.loading import load
from amc_compress.learners.networks.intake import take_in
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.networks import compressed_name, load_smaller, read_shape
from amc_compress.runs.task import Task
from amc_env.errors import InputDataError
from amc_env.files import write_atomic

_N_COMPARED = 8  # samples on which what is loaded has to agree with the network of the run


_LINEAR_ONLY = {"compressed-tensors", "torchao"}
"""Formats whose libraries round no layers of other classes."""
_CONFIGS = {
    "compressed-tensors": compressed_tensors_config,
    "auto-round": auto_round_config,
    "torchao": torchao_config,
    "gptqmodel": gptqmodel_config,
}


def write_format(
    task: Task,
    name: str,
    tokenizer: Path | None = None,
    group_size: int | None = None,
    *,
    weights: bool = False,
) -> Path:
    """Writes the network of a run in a format into its folder, in place of an earlier one.

    Args:
        task: The run.
        name: Of the format, one of ``FORMATS`` that is not ONNX.
        tokenizer: For a folder.
        group_size: For dictionaries of bits: of layers that have no groups, and whose inputs are
            a multiple of it.
        weights: Whether a library that is told the bits gets the rounded weights too, as a folder.

    Returns:
        What was written.

    Raises:
        InputDataError: If the network has no such form.
        MissingDependencyError: Without the library that is needed to write it.
    """
    if name in BIT_FORMATS and not weights:
        return _write_bits(task.folder, name, group_size)
    target = task.folder / name
    new = task.folder / f".{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    write_transformers(task, new, tokenizer, name if weights else None)
    shutil.rmtree(target, ignore_errors=True)
    return new.rename(target)


def _write_bits(folder: RunFolder, name: str, group_size: int | None) -> Path:
    network = load_smaller(folder, compressed_name(folder))
    if name in _LINEAR_ONLY:
        check_linear(network)
    schemes = network_schemes(network, group_size=group_size)
    if name == LLAMA_CPP:
        config = getattr(network, "config", None)
        kind, blocks = (getattr(config, key, None) for key in ("model_type", "num_hidden_layers"))
        if kind is None or blocks is None:
            raise InputDataError(
                f"Expected a network of transformers for --format {LLAMA_CPP}, got "
                f"{type(network).__name__}, whose architecture llama.cpp has no name for."
            )
        target, text = folder / f"{name}.txt", tensor_types(schemes, gguf_names(kind, blocks))
        write_atomic(target, "\n".join(text).encode() + b"\n")
        return target
    target = folder / f"{name}.json"
    write_atomic(target, json.dumps(_CONFIGS[name](schemes), indent=2).encode() + b"\n")
    return target


def write_transformers(
    task: Task, folder: Path, tokenizer: Any = None, weights: str | None = None
) -> SavedFolder:
    """Writes the most finished network of a run as a folder of ``transformers``.

    Args:
        task: The run.
        folder: New or empty.
        tokenizer: See :func:`save_pretrained`; that of ``--model`` if None, where it is a folder.
        weights: See :func:`save_pretrained`.

    Raises:
        InputDataError: If the network is of another library, it has no such weights, or the folder
            is in use.
        RunFolderError: If the run has not come to a network yet.
    """
    run = task.folder
    name = compressed_name(run)
    network = load_smaller(run, name)
    if run.given is not None:
        network = run.given.form.hand_back(network)
    elif is_pretrained(task.config.model):
        source = Path(task.config.model)
        network = take_in(load(source)).form.hand_back(network)
        tokenizer = tokenizer or (source if tokenizer_files(source) else None)
    return save_pretrained(
        network,
        folder,
        first_inputs(task.data.validation, task.purpose, _N_COMPARED),
        kept=read_shape(run / name).kept,
        plan=run.read_plan(),
        part=task.config.part,
        tokenizer=tokenizer,
        weights=weights,
    )

"""Which task a network and a batch look like."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.inputs import (
    Call,
    Inputs,
    ask,
    count,
    evaluating,
    moved,
    tensors_of,
)
from amc_compress.learners.tasks.outputs import main_output
from amc_compress.learners.tasks.ready.agreement import Agreement
from amc_compress.learners.tasks.registry import TASKS, make_task
from amc_compress.learners.tasks.task import Task
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

_SPLIT = Agreement()  # any task without a split of its own will do
_NOT_GUESSED = (
    f"name the task: {', '.join(map(repr, TASKS))}, or the path package.module:Class of your own"
)


class TaskNotGuessedError(InputDataError):
    """A batch that fits no task."""


def guess_task(network: nn.Module, batch: Any) -> tuple[Task, str]:
    """Returns the task that a network and a batch look like, and why, in one sentence.

    Without targets it is ``agreement``. Say the sentence to the user.

    Args:
        network: Asked once in ``eval`` mode; its mode stays.
        batch: Of the loader.

    Raises:
        InputDataError: If the network does not run on the batch.
        TaskNotGuessedError: If nothing fits.
    """
    if _all_are_inputs(network, batch):
        return Agreement(inputs_only=len(batch) > 1), _because("agreement", "no targets", "")
    if _has_boxes(batch):
        return make_task("detection"), _because(
            "detection", "a dictionary of boxes for each image as targets", ""
        )
    inputs, targets = Task.split(_SPLIT, batch)
    if targets is None:
        return make_task("agreement"), _because("agreement", "no targets", "")
    outputs = main_output(_answer(network, inputs))
    found = _by_shapes(inputs, outputs, targets)
    if found is None:
        raise TaskNotGuessedError(
            f"Expected a batch that tells the task, got outputs {_shown(outputs)} and targets "
            f"{_shown(targets)}: {_NOT_GUESSED}."
        )
    name, why = found
    return make_task(name), _because(name, why, f" for outputs {_shown(outputs)}")


def _because(name: str, why: str, outputs: str) -> str:
    return (
        f"Taking the task {name!r}, since the first batch has {why}{outputs}; say otherwise with "
        f"task=."
    )


def _shown(value: Any) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _has_boxes(batch: Any) -> bool:
    if isinstance(batch, Mapping):
        targets = batch.get("targets", batch.get("labels"))
    else:
        targets = batch[-1] if isinstance(batch, list | tuple) and batch else None
    items = targets if isinstance(targets, list | tuple) else ()
    return bool(items) and all(isinstance(t, Mapping) and "boxes" in t for t in items)


def _all_are_inputs(network: nn.Module, batch: Any) -> bool:
    """Whether a network needs all items of a tuple, so that none of them is targets."""
    if not isinstance(batch, list | tuple) or not batch:
        return False
    if len(batch) == 1:
        return True
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    return len(needed) >= len(batch)


def _answer(network: nn.Module, inputs: Inputs) -> Any:
    """Returns what a network says in ``eval`` mode."""
    home = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        with evaluating(network):
            return ask(network, moved(inputs, home))
    except Exception as error:
        raise InputDataError(
            f"Expected a network that runs on the inputs of the first batch, got "
            f"{type(error).__name__}: {first_line(error, 150)}; {_NOT_GUESSED}."
        ) from error


def _by_shapes(inputs: Inputs, outputs: Any, targets: Any) -> tuple[str, str] | None:
    """Returns a task's name, and what the targets are; ``None`` if nothing fits."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    if len(outputs) != count(inputs) or len(targets) != len(outputs):
        return None
    if targets.is_floating_point() or targets.dtype == torch.bool or outputs.ndim <= targets.ndim:
        return _like_outputs(outputs, targets)
    if targets.ndim > 1:
        return _per_place(inputs, outputs, targets)
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return "classification", "one integer label per sample"
    return _like_outputs(outputs, targets)


def _like_outputs(outputs: Tensor, targets: Tensor) -> tuple[str, str] | None:
    """Targets of the shape of the outputs: numbers, or 0 and 1."""
    masks = targets.squeeze(1) if targets.ndim == outputs.ndim > 2 else targets
    whole = not targets.is_floating_point()
    if whole and targets.ndim > 2 and masks.ndim == outputs.ndim - 1:
        return _segmentation(outputs, masks)
    if _width(outputs) != _width(targets):
        return None
    binary = bool(((targets == 0) | (targets == 1)).all())
    if not binary:
        return None if whole else ("regression", "a number for each output as targets")
    if targets.ndim > 2:
        return None
    if targets.ndim == 2 and targets.shape[1] > 1 and bool((targets.sum(1) == 1).all()):
        return None  # one-hot labels, or labels that exclude each other by chance
    return "multilabel", "0 or 1 for each output as targets"


def _width(value: Tensor) -> torch.Size:
    return value.shape[:1] if value.ndim == 2 and value.shape[1] == 1 else value.shape


def _per_place(inputs: Inputs, outputs: Tensor, targets: Tensor) -> tuple[str, str] | None:
    """Integers with one dimension less than the outputs: tokens or pixels."""
    if outputs.ndim != targets.ndim + 1:
        return _like_outputs(outputs, targets)
    ids = next((x for x in tensors_of(inputs) if not x.is_floating_point()), None)
    if targets.ndim == 2 and outputs.shape[:2] == targets.shape:
        if ids is not None and ids.shape == targets.shape:
            return _of_tokens(inputs, ids, targets)
        if outputs.shape[2] != targets.shape[1] or isinstance(inputs, Call):
            return "token-classification", "an integer for each token as targets"
    return _segmentation(outputs, targets)


def _segmentation(outputs: Tensor, masks: Tensor) -> tuple[str, str] | None:
    fits = outputs.shape[0] == masks.shape[0] and outputs.shape[2:] == masks.shape[1:]
    return ("segmentation", "an integer for each pixel as targets") if fits else None


def _of_tokens(inputs: Inputs, ids: Tensor, targets: Tensor) -> tuple[str, str]:
    counted = targets != -100
    given = inputs.kwargs.get("decoder_input_ids") if isinstance(inputs, Call) else None
    ids = given if isinstance(given, Tensor) and given.shape == targets.shape else ids
    same = bool((targets == ids)[counted].all())
    follows = bool((targets[:, :-1] == ids[:, 1:])[counted[:, :-1]].all())
    if same or follows:
        return "language-modelling", "the token ids, or those that follow, as targets"
    return "token-classification", "an integer for each token as targets"

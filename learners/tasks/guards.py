"""What is wrong with networks, metrics and losses, found before work is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.inputs import (
    Call,
    Inputs,
    Split,
    ask,
    count,
    device_of,
    evaluating,
    hooked,
    outside,
    tensors_of,
)
from amc_compress.learners.tasks.task import Task
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

_ALIKE = 1e-2  # relative; of one sample in two batches, on kernels that sum in another order


def check_order(
    outputs_of: Callable[[Inputs], Any], task: Task, inputs: Inputs, who: str = "network"
) -> None:
    """Checks that a network answers the samples of a batch in their order, each for itself.

    It is asked for the same samples in reverse order. Outputs that follow another order, say that
    of a sort by length, are compared with the wrong targets.

    Args:
        outputs_of: Asks the network, in ``eval`` mode, and returns ``task.outputs``.
        task: Says how alike outputs are.
        inputs: Of at least two samples, else nothing is checked.
        who: What errors call the network.

    Raises:
        InputDataError: If the outputs for the reversed batch are not the reversed outputs.
    """
    samples = count(inputs)
    if samples < 2:
        return
    with torch.no_grad():
        straight, reverse = outputs_of(inputs), outputs_of(_reversed(inputs, samples))
        again = outputs_of(inputs)
    turned = _reversed(reverse, samples)
    if _alike(straight, turned) or not _alike(straight, again):
        return  # or it draws random numbers, and no order can be seen
    if isinstance(straight, list):
        # Boxes near a threshold may come and go with the rounding of another batch.
        agreement = task.agreement(straight, turned)
        if agreement > 1.0 - _ALIKE and agreement >= task.agreement(straight, reverse):
            return
    raise InputDataError(
        f"Expected the {who} to answer the samples of a batch in their order, each for itself, got "
        f"other outputs for the same samples in reverse order: undo what sorts them, or what mixes "
        f"samples of a batch, before the outputs are returned."
    )


def _reversed(value: Any, samples: int) -> Any:
    """Returns a structure with the samples in reverse; what has another length is for all."""
    if isinstance(value, Tensor):
        return value.flip(0) if value.ndim and len(value) == samples else value
    if isinstance(value, list):
        return value[::-1] if len(value) == samples else value
    if isinstance(value, Call):
        return Call(_reversed(value.args, samples), _reversed(value.kwargs, samples))
    if isinstance(value, Mapping):
        return {key: _reversed(item, samples) for key, item in value.items()}
    return tuple(_reversed(item, samples) for item in value) if isinstance(value, tuple) else value


def _alike(first: Any, second: Any) -> bool:
    pairs = list(zip(tensors_of(first), tensors_of(second), strict=False))
    same = all(a.shape == b.shape for a, b in pairs)
    return same and all(_near(a.double(), b.double()) for a, b in pairs if a.numel())


def _near(a: Tensor, b: Tensor) -> bool:
    scale = b.abs().max()
    return bool((a - b).abs().max() <= _ALIKE * scale)


def check_gradient(loss: Tensor, outputs: Any, who: str) -> None:
    """Checks that a loss depends on outputs that have a gradient; the graph stays.

    Args:
        loss: A scalar.
        outputs: What it was computed from.
        who: What errors call the loss.

    Raises:
        InputDataError: If it does not.
    """
    sources = [x for x in tensors_of(outputs) if x.requires_grad]
    if not sources:
        return
    found: tuple[Tensor | None, ...] = ()
    if loss.requires_grad:
        found = torch.autograd.grad(loss, sources, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise InputDataError(
            f"Expected {who} to depend on the outputs of the network, got one without a gradient "
            f"to them: compute it from the outputs with PyTorch's operators, without detach(), "
            f"item() or argmax()."
        )


def checked_loss(loss: Any, outputs: Any, who: str) -> Tensor:
    """Returns a loss as a float32 scalar.

    Raises:
        InputDataError: If it is no single number, or on another device than the outputs.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        got = f"{list(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else repr(loss)
        raise InputDataError(
            f"Expected {who} to return one number as a tensor, the mean over the samples, got "
            f"{got}: take the mean."
        )
    device = device_of(outputs)
    if loss.device != device:
        raise InputDataError(
            f"Expected {who} to return a tensor on the outputs' device, {device}, got one on "
            f"{loss.device}: make the tensors in it where the outputs are."
        )
    return loss.float().reshape(())


def as_number(value: Any, who: str) -> float:
    """Returns the value of a metric, from whichever device.

    Raises:
        InputDataError: If it is no single real number.
    """
    try:
        if isinstance(value, bool | str) or (isinstance(value, Tensor) and value.numel() != 1):
            raise TypeError("not a number")
        return float(value.detach() if isinstance(value, Tensor) else value)
    except Exception as error:
        got = (
            f"a tensor of shape {list(value.shape)} on {value.device}"
            if isinstance(value, Tensor)
            else f"{type(value).__name__} ({first_line(error, 80)})"
        )
        raise InputDataError(
            f"Expected {who} to return one number, or a tensor of one, got {got}: return the mean, "
            f"or one of its values."
        ) from error


class TokenIds:
    """How many rows the embeddings have that look up integer inputs; ids beyond are rejected.

    On a processor such an id is an ``IndexError`` somewhere in the network, on a GPU it ends the
    process. So a network is watched once, for which of its inputs goes into which embedding.

    Args:
        network: Asked in ``eval`` mode, if it has embeddings and the inputs have ids.
        inputs: Of one batch, where the network is.

    Raises:
        InputDataError: If an id is beyond an embedding in this batch already.
    """

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        self._limits: dict[int, tuple[int, str]] = {}
        leaves = list(tensors_of(inputs))
        tables: dict[nn.Module, str] = {
            module: name
            for name, module in network.named_modules()
            if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        }
        if not tables or not any(_is_ids(x) for x in leaves):
            return

        def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
            ids = args[0] if args else None
            if not isinstance(ids, Tensor):
                return
            size = cast(nn.Embedding, module).num_embeddings
            _check_ids(ids, size, tables[module], "")
            for place, leaf in enumerate(leaves):
                if leaf is ids or (_is_ids(leaf) and leaf.data_ptr() == ids.data_ptr()):
                    self._limits[place] = (size, tables[module])

        hooks = [module.register_forward_pre_hook(watch) for module in tables]
        with hooked(hooks), evaluating(network):
            ask(network, inputs)

    def check(self, inputs: Inputs, name: str = "") -> None:
        """Checks the ids of a batch, best before it goes to a GPU.

        Args:
            inputs: Of the structure of those that were watched.
            name: What errors call the data; it ends in a space.

        Raises:
            InputDataError: If one is negative, or has no row.
        """
        if not self._limits:
            return
        leaves = list(tensors_of(inputs))
        for place, (size, table) in self._limits.items():
            if place < len(leaves) and leaves[place].numel():
                _check_ids(leaves[place], size, table, name)


def _is_ids(value: Tensor) -> bool:
    return value.dtype in (torch.int64, torch.int32) and bool(value.numel())


def _check_ids(ids: Tensor, size: int, table: str, name: str) -> None:
    if not ids.numel():
        return
    if (wrong := outside(ids, size)) is not None:
        raise InputDataError(
            f"Expected {name}token ids from 0 to {size - 1}, the rows of the embedding {table!r}, "
            f"got {wrong}: use the tokenizer that the network was trained with."
        )


@dataclass(frozen=True)
class Probed:
    """What a network answers a few samples, and which it can take.

    Args:
        task: What the network is for.
        outputs: Those that count.
        ids: The token ids that it knows.
    """

    task: Task
    outputs: Any
    ids: TokenIds

    def check(self, batch: Split, name: str) -> None:
        """Checks other samples: their ids, and that the network can be right about their targets.

        Args:
            batch: Inputs and targets.
            name: What errors call the data; it ends in a space.

        Raises:
            InputDataError: If an id or a target is out of its range.
        """
        self.ids.check(batch.inputs, name)
        self.task.check_range(self.outputs, batch.targets, name)

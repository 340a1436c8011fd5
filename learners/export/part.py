"""The part of a network that an ONNX file can hold, where the whole is more than tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from amc_compress.learners.export.onnx_program import ExportError
from amc_compress.learners.tasks.inputs import Call, Inputs, ask, mapped
from amc_env.errors import InputDataError
from amc_env.validation.sentences import some


def submodule(network: nn.Module, part: str) -> nn.Module:
    """Returns a part of a network by its name.

    Raises:
        InputDataError: If there is no such submodule.
    """
    modules = dict(network.named_modules())
    if not part or part not in modules:
        raise InputDataError(
            f"Expected the name of a submodule as the part to export, got {part!r}; there are "
            f"{some([name for name in modules if name and '.' not in name], 8)} and those inside "
            f"of them."
        )
    return network.get_submodule(part)


def part_of(network: nn.Module, part: str, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Returns a part of a network, and what it is called with when the whole gets these inputs.

    Args:
        network: In ``eval`` mode; not changed.
        part: Name of a submodule.
        inputs: Of the whole network.

    Raises:
        ExportError: If the network calls the part more than once, or not at all.
        InputDataError: If there is no such submodule.
    """
    inside = submodule(network, part)
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(mapped(lambda tensor: tensor.detach().clone(), Call(args, kwargs)))

    handle = inside.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            ask(network, inputs)
    finally:
        handle.remove()
    if len(calls) != 1:
        raise ExportError(
            f"Expected a part that the network calls once, but it calls {part!r} {len(calls)} "
            f"times; choose the part around what does."
        )
    called = calls[0]
    alone = len(called.args) == 1 and not called.kwargs and isinstance(called.args[0], torch.Tensor)
    return inside, called.args[0] if alone else called

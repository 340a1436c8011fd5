"""What a network takes and gives, as the named tensors that files and runtimes know.

A file holds tensors only: numbers, texts and the structure around the tensors are part of the
network that was exported.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.export.onnx_options import BATCH, INPUT, OUTPUT, SEQUENCE, OnnxOptions
from amc_compress.learners.export.onnx_program import ExportError
from amc_compress.learners.tasks.conform import settled
from amc_compress.learners.tasks.inputs import (
    Call,
    Inputs,
    ask,
    count,
    mapped,
    moved,
    rows,
    to_inputs,
)
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

_ANSWER = "output"
_IMAGES, _LOGITS, _TOKENS = 4, 2, 2  # numbers of axes
WRAPPED = "network."
"""What the names of a network's tensors begin with inside of :class:`Flat`."""


class Interface:
    """Names of the tensors that go into a network and come out of it, and their structure.

    Inputs have the names of the network's arguments and of the keys within them, outputs their
    keys or attributes. One tensor of images is ``images``, their logits are ``logits``.

    Args:
        network: In ``eval`` mode, on the CPU. It is asked once or twice.
        example: What it is called with.
        batch: The only number of samples that matters; ``None`` for any.

    Attributes:
        inputs: Names, in the order of the tensors.
        outputs: Names, in the order of the tensors.
        example: The structure of the inputs, with what is no tensor.
        is_plain: Whether one tensor goes in and one comes out.
        is_free: Whether the number of samples leaves the number of tensors as it is.

    Raises:
        ExportError: If the network does not take the example, or the number of its tensors
            changes with the number of samples.
    """

    def __init__(self, network: nn.Module, example: Inputs, batch: int | None = None) -> None:
        self._example = example
        self.example = repeated(example, batch or 2)
        self._parameters, self._rest = _parameters(network)
        self._answer = _answered(network, self.example)
        self.inputs = tuple(self._named(self.example))
        self.outputs = self._outputs(self._answer)
        if not self.outputs:
            raise ExportError(
                f"Expected the network to return tensors, got {type(self._answer).__name__}: "
                f"return them alone, in a tuple or in a dictionary."
            )
        self.is_plain = isinstance(example, Tensor) and isinstance(self._answer, Tensor)
        one = repeated(example, 1)
        self.is_free = self.is_plain or (
            tuple(self._named(one)) == self.inputs
            and self._outputs(_answered(network, one)) == self.outputs
        )
        if batch is None and not self.is_free:
            raise ExportError(
                "This network takes or returns a list with one item per sample, whose number an "
                "ONNX file fixes: export for one number of samples (amc export --batch N), or the "
                "part of the network that computes with tensors (part=...)."
            )

    def tensors(self, size: int | None) -> tuple[Tensor, ...]:
        """Returns the tensors of so many samples of the example, of all of them if ``None``."""
        inputs = self._example if size is None else repeated(self._example, size)
        return tuple(self._named(inputs).values())

    def free_axes(self, tensors: Sequence[Tensor], options: OnnxOptions) -> list[dict[int, str]]:
        """Returns the axes of tensors, in the order of the inputs, that may have any length."""
        found = []
        for name, tensor in zip(self.inputs, tensors, strict=True):
            axes: dict[int, str] = {0: BATCH} if tensor.ndim else {}
            if options.axes is not None:
                axes |= {axis: text for axis, text in options.axes.get(name, {}).items() if axis}
            elif tensor.ndim == _TOKENS and not tensor.is_floating_point():
                axes[1] = SEQUENCE
            # An axis of length 1 is taken for a constant.
            found.append({i: text for i, text in axes.items() if not i or tensor.shape[i] > 1})
        return found

    def check_options(self, options: OnnxOptions) -> None:
        """Checks options that speak of inputs.

        Raises:
            ExportError: If they speak of others than these.
        """
        if options.input_name is not None and len(self.inputs) > 1:
            raise ExportError(
                f"Expected --input-name for a network with one input, got one with "
                f"{', '.join(self.inputs)}: leave it out."
            )
        if options.preprocessing is not None and self.inputs != (INPUT,):
            raise ExportError(
                f"Expected a network of images for --include-preprocessing, got one that takes "
                f"{', '.join(self.inputs)}: leave it out."
            )
        if unknown := sorted(set(options.axes or {}) - set(self.inputs)):
            raise ExportError(
                f"Expected axes of the inputs {', '.join(self.inputs)}, got {unknown[0]!r}."
            )

    def named(self, inputs: Inputs) -> dict[str, Tensor]:
        """Returns name -> tensor of inputs of the example's structure.

        Raises:
            InputDataError: If they have another one.
        """
        found = self._named(inputs)
        if tuple(found) != self.inputs:
            raise InputDataError(
                f"Expected inputs with the tensors {', '.join(self.inputs)}, got "
                f"{', '.join(found) or 'none'}: pass what the network is called with."
            )
        return found

    def _named(self, inputs: Inputs) -> dict[str, Tensor]:
        if isinstance(inputs, Tensor):
            is_image = inputs.ndim == _IMAGES and inputs.is_floating_point()
            return {INPUT if is_image or not self._parameters else self._parameters[0]: inputs}
        more = range(len(inputs.args) - len(self._parameters))
        names = [*self._parameters, *(f"{self._rest}_{i}" for i in more)]
        found: list[tuple[tuple[str, ...], Tensor]] = []
        for name, value in [*zip(names, inputs.args, strict=False), *inputs.kwargs.items()]:
            found += _paths(value, (name,))
        return dict(zip(_distinct([path for path, _ in found]), (t for _, t in found), strict=True))

    def _outputs(self, answer: Any) -> tuple[str, ...]:
        if isinstance(answer, Tensor):
            images = self.inputs == (INPUT,)
            return (OUTPUT if images or answer.ndim == _LOGITS else _ANSWER,)
        return _distinct([path for path, _ in _paths(answer, ())], taken=self.inputs)

    def answer(self, tensors: Sequence[Tensor]) -> Any:
        """Returns what the network would return, holding these tensors."""
        waiting = iter(tensors)
        return mapped(lambda _: next(waiting), self._answer)


class Flat(nn.Module):
    """A network called with nothing but tensors, by position, and returning a tuple of tensors.

    Args:
        network: Not changed.
        example: The structure that the tensors are put into, with its numbers and texts.
        half: Whether ``network`` takes and returns float16 between float32 numbers.
    """

    def __init__(self, network: nn.Module, example: Inputs, *, half: bool = False) -> None:
        super().__init__()
        self.network = network
        self._example, self._half = example, half

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors in the network's answer, in its order."""
        waiting = iter(tensors)

        def given(_: Tensor) -> Tensor:
            tensor = next(waiting)
            return tensor.half() if self._half and tensor.is_floating_point() else tensor

        answer = plain_answer(ask(self.network, mapped(given, self._example)))
        found = [tensor for _, tensor in _paths(answer, ())]
        if self._half:
            found = [tensor.float() if tensor.is_floating_point() else tensor for tensor in found]
        return tuple(found)


def plain_answer(answer: Any) -> Any:
    """Returns a network's answer in tuples, lists and dictionaries; objects become dictionaries."""
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type | Mapping):
        fields = dataclasses.fields(answer)
        answer = {entry.name: getattr(answer, entry.name) for entry in fields}
    if isinstance(answer, Mapping):
        return {str(key): plain_answer(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [plain_answer(value) for value in answer]
    if isinstance(answer, tuple):
        items = [plain_answer(value) for value in answer]
        return type(answer)(*items) if hasattr(answer, "_fields") else tuple(items)
    return answer


def repeated(inputs: Inputs, size: int) -> Inputs:
    """Returns that many samples: the first ones, and from the start again where there are less."""
    if not (total := count(inputs)):
        raise InputDataError("Expected at least one sample, got none.")
    found: Inputs = rows(inputs, torch.arange(size) % total)
    return found


def on_cpu(network: nn.Module, example: object) -> Inputs:
    """Returns what a user passes as inputs, on the CPU, in the types that the network takes."""
    return settled(network, moved(to_inputs(example), "cpu"), "cpu")


def _answered(network: nn.Module, inputs: Inputs) -> Any:
    try:
        with torch.no_grad():
            return plain_answer(ask(network, inputs))
    except Exception as error:  # whatever a user's forward raises
        raise ExportError(
            f"The network does not take these inputs ({first_line(error)}): pass an example of "
            f"what it is called with."
        ) from error


def _parameters(network: nn.Module) -> tuple[list[str], str]:
    """Returns the names of the arguments that a network takes by position, and of ``*rest``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = list(inspect.signature(network.forward).parameters.values())
    rest = [p.name for p in found if p.kind is inspect.Parameter.VAR_POSITIONAL]
    return [p.name for p in found if p.kind in kinds], (rest or ["input"])[0]


def _paths(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yields the tensors of a structure with the keys that lead to them."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Call):
        yield from _paths((value.args, value.kwargs), path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        for name, item in zip(names, value, strict=True):
            yield from _paths(item, (*path, name))


def _distinct(paths: Sequence[tuple[str, ...]], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns a name for each path: its last key, or as much of it as tells it from the others."""
    last = [path[-1] for path in paths]
    found: list[str] = []
    for path in paths:
        alone = last.count(path[-1]) == 1 and not path[-1].isdigit()
        name = re.sub(r"\W", "_", path[-1] if alone else "_".join(path))
        name = f"{_ANSWER}_{name}" if name[:1].isdigit() or name in taken else name
        while name in found:
            name += "_"
        found.append(name)
    return tuple(found)

"""Runs a network under labels, and freezes what its classes or its user want whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learners.counting import visible_attention
from learners.forward_tracing import TracedForward, TraceMemory
from learners.label_rules import LabelMode
from learners.labels import LabelTable
from learners.outputs import tensors_in

# Their own code moves data too, but in ways that the rules know as a whole.
_KNOWN = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm,
          nn.LayerNorm, nn.PReLU, nn.MultiheadAttention, nn.TransformerEncoderLayer,
          nn.TransformerDecoderLayer, nn.RNNBase)  # fmt: skip
# Widths that their classes keep in attributes of their own.
_WHOLE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Embedding)


@dataclass
class Run:
    """What a run has left: labels, and the traced forwards of modules that move data."""

    mode: LabelMode
    traced: dict[str, TracedForward]


class Watch:
    """Runs a network under labels, as often as the proof needs it.

    Args:
        model: A copy that may be tampered with.
        arguments: Its inputs.
        ignore: Modules whose outputs are frozen.
    """

    def __init__(
        self, model: nn.Module, arguments: tuple[Tensor, ...], ignore: Sequence[str]
    ) -> None:
        self.model = model
        self.arguments = arguments
        self.ignore = ignore
        self.names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self.movers: frozenset[str] = frozenset()
        self.memories: dict[str, TraceMemory] = {}
        first = self.run()
        self.movers = frozenset(
            name
            for name in first.mode.movers
            if not isinstance(model.get_submodule(name), _KNOWN)
            and "forward" not in vars(model.get_submodule(name))
        )
        self.memories = {name: TraceMemory() for name in self.movers}

    def run(self) -> Run:
        """Returns the labels of a fresh run, with the code of data-moving modules traced.

        A module whose graph fails halfway has run twice, so everything is run again without it:
        all runs number their labels alike.
        """
        while True:
            for memory in self.memories.values():
                memory.has_misled = False
            run = self._run()
            if not any(memory.has_misled for memory in self.memories.values()):
                return run

    def _run(self) -> Run:
        mode = LabelMode(LabelTable(), self.names)
        traced: dict[str, TracedForward] = {}
        with (
            _watched_modules(self.model, mode, self.memories, traced),
            torch.no_grad(),
            visible_attention(),
            mode,
        ):
            output = self.model(*self.arguments)
        for tensor in tensors_in(output):
            mode.table.freeze(mode.label(tensor), "it is an output of the network")
        self._freeze_modules(mode)
        return Run(mode, traced)

    def _freeze_modules(self, mode: LabelMode) -> None:
        modules = dict(self.model.named_modules())
        whole = {name: module for name, module in modules.items() if isinstance(module, _WHOLE)}
        for name, module in modules.items():
            tensors = [*module.parameters(False), *module.buffers(False)]
            if _is_inside(name, self.ignore):
                for tensor in tensors:
                    axes = mode.axis_labels.get(id(tensor), ())
                    mode.table.freeze(axes[0] if axes else None, "it is ignored on request")
            if _is_inside(name, whole):
                outer = next(key for key in whole if _is_inside(name, (key,)))
                reason = f"{type(whole[outer]).__name__} keeps its width"
                for tensor in tensors:
                    mode.table.freeze(mode.parameter_labels.get(id(tensor)), reason)
                    for ids in mode.axis_labels.get(id(tensor), ()):
                        mode.table.freeze(ids, reason)


def _is_inside(name: str, outer: Collection[str]) -> bool:
    return any(not x or name == x or name.startswith(f"{x}.") for x in outer)


@contextmanager
def _watched_modules(
    model: nn.Module,
    mode: LabelMode,
    movers: Mapping[str, TraceMemory],
    traced: dict[str, TracedForward],
) -> Iterator[None]:
    """Keeps the mode informed of which module runs, and traces the forwards of some."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_enter(mode, name)))
        handles.append(module.register_forward_hook(_leave(mode), always_call=True))
        if name in movers:
            traced[name] = TracedForward(module, mode, movers[name])
            module.forward = traced[name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in traced:
            del model.get_submodule(name).__dict__["forward"]


def _enter(mode: LabelMode, name: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        mode.modules.append(name)

    return hook


def _leave(mode: LabelMode) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        mode.modules.pop()

    return hook

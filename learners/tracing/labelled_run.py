"""Runs a network under labels, and freezes outputs and ignored layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from amc_compress.learners.layers.attention import can_be_cut
from amc_compress.learners.networks.outputs import tensors_in
from amc_compress.learners.tracing.cases import Case
from amc_compress.learners.tracing.dead_layers import Mentions
from amc_compress.learners.tracing.labels.counting import visible_attention
from amc_compress.learners.tracing.labels.label_rules import LabelMode
from amc_compress.learners.tracing.labels.labels import LabelTable
from amc_compress.learners.tracing.labels.recurrent import (
    RECURRENT,
    labelled_states,
    tie_layers,
    visible_recurrence,
)
from amc_compress.learners.tracing.probing import Probes
from amc_compress.learners.tracing.rewriting.forward_tracing import TracedForward, TraceMemory
from amc_compress.learners.tracing.slots import layer_name

# Their own code moves data too, but in ways that the rules know as a whole.
_KNOWN = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm,
          nn.LayerNorm, nn.PReLU, nn.MultiheadAttention, nn.TransformerEncoderLayer,
          nn.TransformerDecoderLayer, *RECURRENT)  # fmt: skip


@dataclass
class LabelledRun:
    """State after the labelled runs.

    Args:
        mode: The labels.
        traced: Forwards of modules that move data.
        unseen: Layer that never ran -> what is said about it.
    """

    mode: LabelMode
    traced: dict[str, TracedForward]
    unseen: dict[str, str]


class Watch:
    """Runs a network under labels, as often as the proof needs it.

    Args:
        model: A copy that may be tampered with.
        probes: The cases to run it in.
        ignore: Modules whose outputs are frozen.
    """

    def __init__(self, model: nn.Module, probes: Probes, ignore: Sequence[str]) -> None:
        self.model = model
        self.probes = probes
        self.ignore = ignore
        self.blind, self.unseen = _blind_modules(model, probes)
        self.names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self.movers: frozenset[str] = frozenset()
        self.memories: dict[str, TraceMemory] = {}
        # What first runs find out about the rest of the network: weights that are computed with
        # before a layer uses them, and which ids are tied in the end.
        self.computed: frozenset[str] = frozenset()
        self.classes = torch.zeros(0, dtype=torch.int64)
        first = self.run(everything=False)
        if first.mode.computed_found:
            self.computed = frozenset(first.mode.computed_found)
            first = self.run(everything=False)
        self.classes = first.mode.table.classes()
        self.movers = frozenset(
            name
            for name in first.mode.movers
            if not isinstance(model.get_submodule(name), _KNOWN)
            and "forward" not in vars(model.get_submodule(name))
        )
        self.memories = {name: TraceMemory() for name in self.movers}

    def run(self, everything: bool = True) -> LabelledRun:
        """Returns the labels of fresh runs, with the code of data-moving modules traced.

        A module whose graph fails halfway has run twice, so everything is run again without it:
        all runs number their labels alike.

        Args:
            everything: In all cases, whose ties and frozen labels add up; else the example alone.
        """
        cases = self.probes.labelled if everything else [self.probes.example]
        while True:
            for memory in self.memories.values():
                memory.has_misled = False
            run = self._run(cases)
            if not any(memory.has_misled for memory in self.memories.values()):
                return run

    def _run(self, cases: Sequence[Case]) -> LabelledRun:
        mode = LabelMode(LabelTable(), self.names)
        mode.blind, mode.computed, mode.classes = self.blind, self.computed, self.classes
        traced: dict[str, TracedForward] = {}
        for index, case in enumerate(cases):
            start = len(mode.calls)
            # A rewrite stands for what the example runs; other cases run the user's own code.
            memories = {} if index else self.memories
            try:
                with _watched_modules(self.model, mode, memories, traced):
                    self._follow(mode, case, {} if index else traced)
            except Exception:
                if not index:
                    raise
                # What labels cannot follow there is left to the proof, which runs it too.
            if not index:
                mode.touched_by_example = set(mode.touched)
            for call in mode.calls[start:]:
                call.case, call.training = index, case.training
            mode.forget()
        self._freeze_modules(mode)
        return LabelledRun(mode, traced, self.unseen)

    def _follow(self, mode: LabelMode, case: Case, traced: Mapping[str, TracedForward]) -> None:
        with visible_attention(), visible_recurrence():
            output = case.run(self.model, mode)
            for name, forward in traced.items():
                forward.explore(name)
        for tensor in tensors_in(output):
            mode.table.freeze(mode.label(tensor), "it is an output of the network")
            for ids in mode.statistics.get(id(tensor), ()):
                mode.table.freeze(ids, "an output of the network is a statistic of it")

    def _freeze_modules(self, mode: LabelMode) -> None:
        modules = dict(self.model.named_modules())
        whole = {
            name: module
            for name, module in modules.items()
            if isinstance(module, nn.MultiheadAttention) and not can_be_cut(module)
        }
        for name, module in modules.items():
            if isinstance(module, RECURRENT):
                tie_layers(mode, module)
            tensors = [*module.parameters(False), *module.buffers(False)]
            if _is_inside(name, self.ignore):
                for tensor in tensors:
                    for labels in mode.output_labels(tensor):
                        mode.table.freeze(labels, "it is ignored on request")
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
        handles.append(module.register_forward_pre_hook(_enter(mode, name), with_kwargs=True))
        if isinstance(module, RECURRENT):
            hook = labelled_states(mode)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        handles.append(module.register_forward_hook(_leave(mode), always_call=True))
        if name in movers:
            traced[name] = TracedForward(module, mode, movers[name])
            module.forward = traced[name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in movers:
            del model.get_submodule(name).__dict__["forward"]


def _enter(mode: LabelMode, name: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        mode.modules.append(name)
        if mode.blind:
            mode.freeze_if_blind(tensors_in((args, kwargs)), *mode.modules[-2:])

    return hook


def _leave(mode: LabelMode) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, output: Any) -> None:
        if mode.blind:
            mode.freeze_if_blind(tensors_in(output), *mode.modules[-2:])
        mode.modules.pop()

    return hook


def _blind_modules(model: nn.Module, probes: Probes) -> tuple[dict[str, str], dict[str, str]]:
    """Finds where parameters that no case has read could have been used.

    Their layer would be called by the innermost module around it that ran: what passes through
    that one may reach the layer in a case that was not tried, and would have to fit it.

    Returns:
        Such modules -> the reason to keep whole what passes through them; and what never ran ->
        what is said about it.
    """
    blind: dict[str, str] = {}
    unseen: dict[str, str] = {}
    mentions = Mentions(model) if probes.unseen else None
    for name in probes.unseen:
        owner = name.rpartition(".")[0]
        layer = layer_name(name) if owner in probes.modules else owner
        caller = owner
        while caller and caller not in probes.modules:
            caller = caller.rpartition(".")[0]
        if mentions is not None and not mentions.is_mentioned(caller, name):
            unseen.setdefault(layer, "nothing runs it")
            continue
        blind.setdefault(caller, f"it may meet {layer}, which no input that was tried runs")
        unseen.setdefault(layer, "no input that was tried runs it")
    return blind, unseen

"""Finds the channel groups of any network, proves them, and cuts along them.

The network is run once on an example input while labels follow its data
(:mod:`learners.label_rules`); what is tied becomes channel groups (:mod:`learners.grouping`);
modules with channel numbers baked into their forward get a rewritten one
(:mod:`learners.rewriting`); and every group proves that a sliced network equals a masked one
(:mod:`learners.proof`). What fails, or is not understood, stays whole, with its reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from amc_env.errors import InputDataError, UntraceableModelError
from amc_env.graph import LayerGraph
from learners.grouping import Grouper, Grouping, UnitSlot
from learners.label_rules import LabelMode
from learners.labels import LabelTable
from learners.proof import Prover, random_cut, randomised
from learners.rewrite_plan import Rewrite, plan_rewrite
from learners.forward_tracing import TracedForward
from learners.surgery import Surgeon

# Their own code moves data too, but in ways that the rules know as a whole.
_KNOWN = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm,
          nn.LayerNorm, nn.PReLU, nn.MultiheadAttention, nn.TransformerEncoderLayer,
          nn.TransformerDecoderLayer, nn.RNNBase)  # fmt: skip
# Widths that their classes keep in attributes of their own.
_WHOLE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Embedding)
_MAX_ROUNDS = 8


class TracedModel:
    """A network, its proved channel groups, and the means to cut them.

    Args:
        model: The original, never modified.
        grouping: Its groups and slots.
        surgeon: Cuts it.
    """

    def __init__(self, model: nn.Module, grouping: Grouping, surgeon: Surgeon) -> None:
        self.model = model
        self._grouping = grouping
        self._surgeon = surgeon

    @property
    def graph(self) -> LayerGraph:
        """Layers, groups in network order, and what is frozen for which reason."""
        return self._grouping.graph

    def slice(self, kept: Mapping[str, Tensor]) -> nn.Module:
        """Returns a really smaller copy of the network.

        Args:
            kept: Group name -> sorted int64 indices of the units that stay; groups that are
                missing stay whole.

        Returns:
            A copy in the original's mode, with its current weights and the same module names
            and state-dict keys.

        Raises:
            ValueError: If a group is unknown or its indices are out of order or range.
        """
        return self._surgeon.slice(kept)

    def mask(self, kept: Mapping[str, Tensor]) -> nn.Module:
        """Returns a copy of the original's shapes in which nothing reads the cut units."""
        return self._surgeon.mask(kept)

    def kept_outputs(self, layer: str, kept: Mapping[str, Tensor]) -> Tensor:
        """Returns the sorted coordinates along axis 0 of a layer's weight that stay."""
        return self._surgeon.kept_coordinates(_weight_name(layer), 0, kept)

    def kept_inputs(self, layer: str, kept: Mapping[str, Tensor]) -> Tensor:
        """Returns the sorted coordinates along axis 1 of a layer's weight that stay."""
        return self._surgeon.kept_coordinates(_weight_name(layer), 1, kept)

    def unit_slots(self, group: str) -> list[UnitSlot]:
        """Returns everywhere that the units of a group occur.

        Raises:
            ValueError: If there is no such group.
        """
        sizes = {entry.name: entry.size for entry in self.graph.groups}
        if group not in sizes:
            raise ValueError(f"No channel group named {group!r}; groups: {sorted(sizes)}.")
        size, start = sizes[group], self._grouping.first_unit[group]
        found = []
        for slot in self._grouping.slots:
            inside = (slot.units >= start) & (slot.units < start + size)
            where = inside.nonzero()[:, 0]
            if len(where):
                order = torch.argsort(slot.units[where], stable=True)
                coordinates = where[order].view(size, -1)
                found.append(UnitSlot(slot.module, slot.tensor, slot.axis, coordinates, slot.role))
        return found


def _weight_name(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def trace(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    ignore: Sequence[str] = (),
) -> TracedModel:
    """Finds and proves the channel groups of a network.

    Args:
        model: Any network; it is not modified.
        example_input: One input, or a tuple of them; axis 0 is the batch.
        ignore: Layers (or modules that hold them) whose output channels must stay.

    Returns:
        The traced network. Its graph has no groups if nothing can be cut safely.

    Raises:
        InputDataError: If the network does not run on the input or holds NaN.
        UntraceableModelError: If the network cannot be copied.
        ValueError: If a name in ``ignore`` matches no module.
    """
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    _check(model, ignore)
    work = _copied(model).eval()
    arguments = _single(work, arguments)
    watched = _Watched(work, arguments, ignore)
    grouping, rewrites = _prove(work, watched)
    # The proof's copies are done; from here on the user's own network is cut.
    return TracedModel(model, grouping, Surgeon(model, grouping, rewrites))


# ---------------------------------------------------------------------- preparation


def _check(model: nn.Module, ignore: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    for name in ignore:
        if name not in names:
            raise ValueError(f"Expected names of modules to ignore, got {name!r}.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise InputDataError(
                f"Expected finite weights, but {name!r} holds NaN; load another checkpoint."
            )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UntraceableModelError(
            "Expected a network that copy.deepcopy can copy, but it raised"
            f" {type(error).__name__}: {error}; make pruning masks permanent with"
            " torch.nn.utils.prune.remove and detach tensors kept as attributes."
        ) from error


def _single(model: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns the first sample of the inputs if the network runs on it, else all of them."""
    single = tuple(x[:1] if x.dim() else x for x in arguments)
    with torch.no_grad():
        try:
            model(*single)
            return single
        except Exception:
            try:
                model(*arguments)
                return arguments
            except Exception as error:
                shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in arguments)
                raise InputDataError(
                    f"Expected a network that runs on the example input ({shapes}), got"
                    f" {type(error).__name__}: {str(error).strip().splitlines()[:1]}; pass an"
                    " input of the shape and type that it was made for."
                ) from error


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Switches fused encoder layers off: inside them nothing can be seen."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# ---------------------------------------------------------------------- the run


@dataclass
class _Run:
    mode: LabelMode
    traced: dict[str, TracedForward]


class _Watched:
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
        first = self._run({})
        movers = [m for m in first.mode.movers if not isinstance(model.get_submodule(m), _KNOWN)]
        self.movers = sorted(movers)

    def run(self) -> _Run:
        """Returns labels of a fresh run, with the code of data-moving modules traced."""
        return self._run(dict.fromkeys(self.movers))

    def _run(self, movers: Mapping[str, None]) -> _Run:
        mode = LabelMode(LabelTable(), self.names)
        handles = []
        traced: dict[str, TracedForward] = {}
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(_push(mode, name)))
            handles.append(module.register_forward_hook(_pop(mode)))
            if name in movers:
                traced[name] = TracedForward(module, mode)
                module.forward = traced[name]
        try:
            with torch.no_grad(), _slow_attention(), mode:
                output = self.model(*self.arguments)
        finally:
            for handle in handles:
                handle.remove()
            for name in traced:
                del self.model.get_submodule(name).__dict__["forward"]
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                mode.table.freeze(mode.label(leaf), "it is an output of the network")
        self._freeze_modules(mode)
        return _Run(mode, traced)

    def _freeze_modules(self, mode: LabelMode) -> None:
        for name, module in self.model.named_modules():
            kind = type(module).__name__
            ignored = any(name == x or name.startswith(f"{x}.") for x in self.ignore)
            whole = isinstance(module, _WHOLE) or any(
                name.startswith(f"{outer}.") for outer in self._whole_names()
            )
            for parameter in [*module.parameters(False), *module.buffers(False)]:
                axes = mode.axis_labels.get(id(parameter))
                if ignored and axes is not None:
                    mode.table.freeze(axes[0], "it is ignored on request")
                if whole:
                    reason = f"{kind} keeps its width"
                    mode.table.freeze(mode.parameter_labels.get(id(parameter)), reason)
                    for ids in axes or ():
                        mode.table.freeze(ids, reason)

    def _whole_names(self) -> list[str]:
        return [n for n, m in self.model.named_modules() if isinstance(m, _WHOLE) and n]


def _push(mode: LabelMode, name: str) -> Any:
    def hook(module: nn.Module, arguments: Any) -> None:
        mode.modules.append(name)

    return hook


def _pop(mode: LabelMode) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        mode.modules.pop()

    return hook


# ---------------------------------------------------------------------- the proof


def _prove(work: nn.Module, watched: _Watched) -> tuple[Grouping, list[Rewrite]]:
    """Returns groups that passed alone and together; the rest is frozen."""
    generator = torch.Generator().manual_seed(0)
    batch = watched.arguments[0].shape[0] if watched.arguments[0].dim() else 1
    generic = copy.deepcopy(work)
    randomised(generic, generator)
    inputs = _proof_inputs(work, watched.arguments, generator)
    rejected: dict[int, str] = {}
    while True:
        run = watched.run()
        grouping = Grouper(work, run.mode, batch).build(rejected)
        rewrites = _rewrites(grouping, run, generator)
        provers = [Prover(Surgeon(model, grouping, rewrites), inputs) for model in (generic, work)]
        faults = _faults(grouping, provers, generator)
        if not faults:
            return _with_unproved(grouping), rewrites
        for name, reason in faults.items():
            start = grouping.first_unit[name]
            size = next(g.size for g in grouping.graph.groups if g.name == name)
            inside = (grouping.unit_of_label >= start) & (grouping.unit_of_label < start + size)
            rejected |= dict.fromkeys(inside.nonzero()[:, 0].tolist(), reason)


def _proof_inputs(
    model: nn.Module, arguments: tuple[Tensor, ...], generator: torch.Generator
) -> list[tuple[Tensor, ...]]:
    """Returns the example, and a batch of two: the example and a random input."""

    def twice(tensor: Tensor) -> Tensor:
        if not tensor.dim() or not tensor.is_floating_point():
            return torch.cat((tensor, tensor)) if tensor.dim() else tensor
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return torch.cat((tensor, noise))

    pair = tuple(twice(x) for x in arguments)
    with torch.no_grad():
        try:
            model(*pair)
        except Exception:
            return [arguments]
    return [arguments, pair]


def _rewrites(grouping: Grouping, run: _Run, generator: torch.Generator) -> list[Rewrite]:
    sizes = {group.name: group.size for group in grouping.graph.groups}
    if not sizes or not run.traced:
        return []
    cuts = []
    for fraction in (0.5, None, None, 0.0):
        alive = torch.ones(grouping.n_units, dtype=torch.bool)
        for name, kept in random_cut(sizes, generator, fraction).items():
            start = grouping.first_unit[name]
            alive[start : start + sizes[name]] = False
            alive[start + kept] = True
        cuts.append(alive)
    found = []
    for name, traced in run.traced.items():
        rewrite = plan_rewrite(name, traced, grouping.unit_of_label, cuts)
        if rewrite is not None:
            found.append(rewrite)
    return found


def _faults(
    grouping: Grouping, provers: Sequence[Prover], generator: torch.Generator
) -> dict[str, str]:
    """Returns group -> what is wrong with it."""
    sizes = {group.name: group.size for group in grouping.graph.groups}
    faults: dict[str, str] = {}
    for name, size in sizes.items():
        fault = provers[0].fault(random_cut({name: size}, generator))
        if fault is not None:
            faults[name] = fault
    if faults or not sizes:
        return faults
    for prover in provers:
        fault = prover.fault(random_cut(sizes, generator, None))
        if fault is not None:
            # Right alone, wrong together: the last group gives way until the joint cut is right.
            return {list(sizes)[-1]: f"together with other groups {fault}"}
    return {}


def _with_unproved(grouping: Grouping) -> Grouping:
    return replace(grouping, graph=grouping.graph)


__all__ = ["TracedModel", "UnitSlot", "trace", "tree_map"]

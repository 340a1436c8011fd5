"""A part of a network, run alone on what it gets when the whole network runs.

The rest of the network need not be understood: how it makes the inputs of the part, and what it
does with its outputs, may be anything, as long as it reaches into the part by its forward alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from amc_compress.learners.tasks.inputs import Call, Inputs, ask, hooked
from amc_compress.learners.tracing.cases import parameter_storages, storage_key
from amc_compress.learners.tracing.examples.variations import n_samples
from amc_compress.learners.tracing.labels.counting import (
    count_macs,
    count_parameters,
    stored_buffers,
)
from amc_env.errors import InputDataError, UntraceableModelError
from amc_env.graph import LayerGraph, LayerSpec, Width
from amc_env.validation.sentences import some


@dataclass(frozen=True)
class Border:
    """What lies outside of the part of a network that is cut.

    Attributes:
        part: Name of the part.
        macs: Multiply-adds for one sample, as they were counted on the example.
        parameters: Learned numbers.
        buffer_bytes: Bytes of buffers that are stored.
    """

    part: str
    macs: int
    parameters: int
    buffer_bytes: int

    def added(self, graph: LayerGraph) -> LayerGraph:
        """Returns the graph of the part as that of the whole network, whose rest is fixed."""
        outside = LayerSpec(f"all outside of {self.part}", "fixed", Width(self.macs), Width(1))
        return replace(
            graph,
            layers=(*graph.layers, *([outside] if self.macs else [])),
            other_parameters=graph.other_parameters + self.parameters,
            other_buffer_bytes=graph.other_buffer_bytes + self.buffer_bytes,
        )


class Alone(nn.Module):
    """A part of a network under the names that it has there, called as it was called there.

    Args:
        module: The part.
        path: Its name.
        template: The arguments of its calls, with numbers in place of what is in them.
        constants: Number -> value, of what is no tensor.
    """

    def __init__(
        self, module: nn.Module, path: str, template: Any, constants: Mapping[int, Any]
    ) -> None:
        super().__init__()
        self._path, self._template, self._constants = path, template, dict(constants)
        owner: nn.Module = self
        *around, last = path.split(".")
        for name in around:
            owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        owner.add_module(last, module)

    def forward(self, *tensors: Tensor) -> list[Any]:
        """Returns what the part returns, call by call."""
        part, given = self.get_submodule(self._path), iter(tensors)
        values = [
            self._constants[number] if number in self._constants else next(given)
            for number in range(len(self._constants) + len(tensors))
        ]
        calls = tree_map(values.__getitem__, self._template)
        return [part(*args, **kwargs) for args, kwargs in calls]


def isolated(network: nn.Module, inputs: Inputs, path: str) -> tuple[Alone, Inputs, Border]:
    """Returns a part of a network alone, its inputs, and what is outside of it.

    Args:
        network: The whole, in evaluation mode.
        inputs: What it runs on.
        path: Name of a submodule.

    Raises:
        InputDataError: If there is no such module, or the example does not run it.
        UntraceableModelError: If the rest of the network uses what is inside of the part.
    """
    modules = dict(network.named_modules())
    if path not in modules or not path:
        nearest = [name for name in modules if name and "." not in name]
        raise InputDataError(
            f"Expected the name of a submodule as the part to compress, got {path!r}; there are "
            f"{some(nearest, 8)} and those inside of them."
        )
    part = modules[path]
    _check_shared(network, path)
    calls = _recorded(network, inputs, path)
    leaves, spec = tree_flatten(calls)
    constants = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
    template = tree_unflatten(list(range(len(leaves))), spec)
    alone = Alone(part, path, template, constants).eval()
    own = Call(tuple(leaf for leaf in leaves if isinstance(leaf, Tensor)))
    outside = max(0, count_macs(network, inputs) - count_macs(alone, own))
    border = Border(
        path,
        -(-outside // n_samples(inputs)),
        count_parameters(network) - count_parameters(part),
        _buffer_bytes(network) - _buffer_bytes(part),
    )
    return alone, own, border


def _buffer_bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in stored_buffers(network).values())


def _check_shared(network: nn.Module, path: str) -> None:
    places: dict[int, list[str]] = {}
    for name, tensor in [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]:
        places.setdefault(id(tensor), []).append(name)
    for names in places.values():
        inside = [name for name in names if name.startswith(f"{path}.")]
        outside = [name for name in names if name not in inside]
        if inside and outside:
            raise UntraceableModelError(
                f"Expected a part with weights of its own, but {inside[0]!r} is {outside[0]!r} of "
                f"the rest of the network; choose a part that holds both, or neither."
            )


def _recorded(
    network: nn.Module, inputs: Inputs, path: str
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Runs the whole network, and returns the arguments of the part's calls."""
    part = network.get_submodule(path)
    names = {key: [f"{path}.{n}" for n in found] for key, found in parameter_storages(part).items()}
    watch = _Outside(names)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not watch.depth:
            leaves, spec = tree_flatten((args, kwargs))
            kept = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
            calls.append(tree_unflatten(kept, spec))
        watch.depth += 1

    def leave(*_: Any) -> None:
        watch.depth -= 1

    handles = [
        part.register_forward_pre_hook(enter, with_kwargs=True),
        part.register_forward_hook(leave, always_call=True),
    ]
    with hooked(handles), torch.no_grad(), watch:
        ask(network, inputs)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(calls)):
        raise InputDataError(
            f"Expected the example to run the part {path!r} on tensors, but the network did not "
            f"call it so; choose a part that its forward calls."
        )
    if watch.touched:
        raise UntraceableModelError(
            f"Expected a part that the rest of the network uses by its forward alone, but it reads "
            f"{some(sorted(watch.touched), 3)} itself; choose the part around the code that does."
        )
    return calls


class _Outside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which parameters of the part are read while it does not run.

    Args:
        names: Storage of a parameter -> its names.
    """

    def __init__(self, names: Mapping[int, list[str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.depth = 0
        self.touched: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Executes one ATen operation."""
        kwargs = kwargs or {}
        if not self.depth:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self.touched.update(self.names.get(storage_key(leaf), ()))
        return func(*args, **kwargs)

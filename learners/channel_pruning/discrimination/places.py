"""Places in a network for auxiliary classifiers.

An auxiliary loss speaks for all layers before it only if everything they do passes through its
place. So places are outputs of modules that every path from the input to the logits runs through:
in a residual network the sums between blocks, not the convolutions inside a branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from amc_compress.learners.tasks.inputs import Inputs, ask, hooked, mapped
from amc_compress.learners.tasks.inputs import count as count_samples
from amc_compress.learners.tasks.outputs import tensors_in
from amc_env.errors import UntraceableModelError

_Node = Any  # torch.autograd.graph.Node: what remembers how a tensor was computed

# Steps behind which an axis is no longer where it was.
_MOVE_OPS = frozenset(
    ("Permute", "Transpose", "T", "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze",
     "Expand", "Mean", "Sum", "Amax", "Max", "Select", "Unbind", "Addmm", "Mm", "Bmm")
)  # fmt: skip


@dataclass(frozen=True)
class LossPlace:
    """The output of a module that all information passes through.

    Args:
        module: Qualified name.
        depth: Layers that have run by then.
        channels: Width of the output.
        axis: Its channel axis.
    """

    module: str
    depth: int
    channels: int
    axis: int


@dataclass(frozen=True)
class LossPlaces:
    """The places of a network, in the order of a forward pass.

    Args:
        places: One per auxiliary loss.
        depths: By layer, how many layers have run when it has, in its last call.
    """

    places: tuple[LossPlace, ...]
    depths: dict[str, int]

    def stage_of(self, layer: str) -> int:
        """Returns the stage of a layer, from 0: the first place behind it, or the logits."""
        depth = self.depths.get(layer)
        if depth is None:
            return len(self.places)
        return sum(place.depth < depth for place in self.places)


def find_places(
    network: nn.Module, inputs: Inputs, layers: Sequence[str], count: int
) -> LossPlaces:
    """Spreads places for auxiliary losses evenly over the depth of a network.

    The ``p``-th of ``P`` is the one nearest to ``p L / (P + 1)`` of ``L`` layers; of several at one
    depth the first, which in a plain network is the output of a convolution, as in the paper.

    Args:
        network: In ``eval`` mode.
        inputs: A batch that it runs on, numbers.
        layers: Names of the layers, some of which may be no modules.
        count: How many are wanted; there are fewer where a network has fewer.

    Raises:
        UntraceableModelError: If there is none at all.
    """
    candidates, depths, outcome = _watched_run(network, inputs, layers)
    available: dict[int, LossPlace] = {}
    total = max(depths.values(), default=0)
    for place, node in candidates:
        inside = 0 < place.depth < total and place.depth not in available
        if inside and not _reaches_input(outcome, around=node):
            available[place.depth] = place
    if not available:
        raise UntraceableModelError(
            f"Expected at least one place for an auxiliary loss: a module between the first and "
            f"the last of the {total} layers whose output all paths run through; found none. "
            f"Use ChannelPruning with another criterion for this network."
        )
    wanted = (p * total / (count + 1) for p in range(1, count + 1))
    chosen = {min(available, key=lambda depth: (abs(depth - w), depth)) for w in wanted}
    return LossPlaces(tuple(available[depth] for depth in sorted(chosen)), depths)


def _watched_run(
    network: nn.Module, inputs: Inputs, layers: Sequence[str]
) -> tuple[list[tuple[LossPlace, _Node]], dict[str, int], _Node]:
    """Runs the network once, with a gradient to its input: what depends on what is in there."""
    known = set(layers)
    depths: dict[str, int] = {}
    candidates: list[tuple[LossPlace, _Node]] = []
    axes: dict[_Node, int | None] = {}
    done = 0
    size = count_samples(inputs)

    def leave(name: str, module: nn.Module, output: object) -> None:
        nonlocal done
        if name in known:
            done += 1
            depths[name] = done
        if not name or not isinstance(output, Tensor) or output.dim() < 2:
            return
        node = output.grad_fn
        # A tensor counts where it was made: an identity hands on what earlier layers did.
        if node is None or node in axes or output.shape[0] != size:
            return
        axis = 1 if output.dim() == 2 else _own_axis(module) or _inherited_axis(node, axes)
        axes[node] = axis
        if axis is not None:  # else it is unknown what to average over
            candidates.append((LossPlace(name, done, output.shape[axis], axis), node))

    handles = [
        module.register_forward_hook(lambda m, _, output, name=name: leave(name, m, output))
        for name, module in network.named_modules()
    ]
    with hooked(handles), torch.enable_grad():
        outputs = ask(network, mapped(_leaf, inputs))
    calls = [place.module for place, _ in candidates]
    once = [pair for pair in candidates if calls.count(pair[0].module) == 1]
    return once, depths, next((t.grad_fn for t in tensors_in(outputs) if t.grad_fn), None)


def _leaf(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return copy.requires_grad_() if copy.is_floating_point() else copy


def _own_axis(module: nn.Module) -> int | None:
    """Returns where a module has its channels, 1 or -1; ``None`` if it takes them anywhere."""
    if isinstance(module, _ConvNd | _NormBase | nn.GroupNorm):
        return 1
    if isinstance(module, nn.LayerNorm):
        return -1 if len(module.normalized_shape) == 1 else None
    return -1 if isinstance(module, nn.Linear) else None


def _inherited_axis(start: _Node, axes: Mapping[_Node, int | None]) -> int | None:
    """Returns the channel axis of what a tensor was computed from, axes not being moved.

    Returns:
        ``None`` where that is unknown, or where it was computed from both kinds.
    """
    found: set[int | None] = set()
    seen, stack = {start}, [start]
    while stack:
        node = stack.pop()
        kind = node.name().split("Backward")[0]
        if node in axes:
            found.add(axes[node])
        elif kind == "Convolution":
            found.add(1)
        elif kind not in _MOVE_OPS:
            fresh = [n for n, _ in node.next_functions if n is not None and n not in seen]
            seen.update(fresh)
            stack.extend(fresh)
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def _reaches_input(start: _Node, around: _Node) -> bool:
    """Whether the gradient of the outputs reaches the input on a path around a node."""
    if start is None:
        return True  # the network breaks off its gradient: nothing can be said
    seen, stack = {around, start}, [] if start is around else [start]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is None or node in seen:
                continue
            # Only the input is a leaf that wants a gradient here, parameters are frozen.
            if node.name().endswith("AccumulateGrad"):
                return True
            seen.add(node)
            stack.append(node)
    return False

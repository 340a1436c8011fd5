"""Where a network can be asked, half-way, how well it already tells the classes apart.

An auxiliary loss speaks for all layers before it only if everything they do passes through its
place. So places are outputs of modules that every path from the input to the logits runs through:
in a residual network the sums between blocks, not the convolutions inside a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc_env.errors import UntraceableModelError

_Node = Any  # torch.autograd.graph.Node: what remembers how a tensor was computed


@dataclass(frozen=True)
class Place:
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
class Places:
    """The places of a network, in the order of a forward pass.

    Args:
        places: One per auxiliary loss.
        depths: By layer, how many layers have run when it has, in its last call.
    """

    places: tuple[Place, ...]
    depths: dict[str, int]

    def stage_of(self, layer: str) -> int:
        """Returns the stage of a layer, from 0: the first place behind it, or the logits."""
        depth = self.depths.get(layer)
        if depth is None:
            return len(self.places)
        return sum(place.depth < depth for place in self.places)


def find_places(network: nn.Module, image: Tensor, layers: Sequence[str], count: int) -> Places:
    """Spreads places for auxiliary losses evenly over the depth of a network.

    The ``p``-th of ``P`` is the one nearest to ``p L / (P + 1)`` of ``L`` layers; of several at one
    depth the first, which in a plain network is the output of a convolution, as in the paper.

    Args:
        network: In ``eval`` mode.
        image: A batch that it runs on.
        layers: Names of the layers, some of which may be no modules.
        count: How many are wanted; there are fewer where a network has fewer.

    Raises:
        UntraceableModelError: If there is none at all.
    """
    candidates, depths, outcome = _watched_run(network, image, layers)
    available: dict[int, Place] = {}
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
    return Places(tuple(available[depth] for depth in sorted(chosen)), depths)


def _watched_run(
    network: nn.Module, image: Tensor, layers: Sequence[str]
) -> tuple[list[tuple[Place, _Node]], dict[str, int], _Node]:
    """Runs the network once, with a gradient to its input: what depends on what is in there."""
    axis_of_three = 1 if any(isinstance(m, nn.Conv1d) for m in network.modules()) else -1
    known = set(layers)
    depths: dict[str, int] = {}
    candidates: list[tuple[Place, _Node]] = []
    made: set[_Node] = set()
    done = 0

    def leave(name: str, output: object) -> None:
        nonlocal done
        if name in known:
            done += 1
            depths[name] = done
        if not name or not isinstance(output, Tensor) or output.dim() < 2:
            return
        node = output.grad_fn
        # A tensor counts where it was made: an identity hands on what earlier layers did.
        if node is None or node in made or output.shape[0] != image.shape[0]:
            return
        made.add(node)
        axis = axis_of_three if output.dim() == 3 else 1
        candidates.append((Place(name, done, output.shape[axis], axis), node))

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: leave(name, output))
        for name, module in network.named_modules()
    ]
    try:
        with torch.enable_grad():
            outputs = network(image.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    calls = [place.module for place, _ in candidates]
    once = [pair for pair in candidates if calls.count(pair[0].module) == 1]
    return once, depths, outputs.grad_fn


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

"""Makes up for branches that are left out: later ones add what is missing, as far as they can.

Where branches are gone, the tensor that all of them add to, x, is another one from there on. Of
every branch behind them the last layer is fitted anew, one after the other, each on what the
network with the new ones before it gives: with z its inputs and S what ``x + f(x)`` was in the
original, ::

    min_D ||S - x - (W z + b) - D z||^2 + lambda ||D||^2

The ridge pulls towards the original weights. How strongly, a quarter of the rows decides, which the
fit has not seen; where no fit does better there than the weights as they are, they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.layers.shared_weights import holders_of
from amc_compress.learners.tasks.inputs import (
    Inputs,
    Split,
    ask,
    count,
    counted_rows,
    evaluating,
    mask_of,
    merged,
    rows,
    tensors_of,
)
from amc_compress.learners.tracing.branches.left_out import LeftOut
from amc_compress.learners.tracing.traced_model import TracedModel

_POSITIONS = 4096
"""Of the samples that are fitted to, at most: that many rows are kept for each branch."""

_BYTES = 512 * 2**20
"""What all these rows may take; there are fewer where networks are wide and deep."""

_RIDGES = (0.1, 1.0, 10.0)
"""Relative to the mean of the diagonal of the inputs' second moments."""

_CHECKED = 4  # of so many rows one decides


class StreamRefit:
    """The sums of the original, and what fits later branches to them.

    Branches whose first module reads what they are added to, and whose last one is a linear layer,
    are fitted; others stay as they are.

    Args:
        traced: The original network.
        batches: Calibration inputs and their targets; of those of one form that are most, as many
            as fit.

    Attributes:
        layers: Branch -> its last layer, of those that are fitted, in the order of their run.
    """

    def __init__(self, traced: TracedModel, batches: Sequence[Split]) -> None:
        network = traced.model
        owners = holders_of(network.modules())
        last = {}
        for branch in traced.graph.branches:
            layer = traced.last_module_of(branch.name)
            module = None if layer is None else network.get_submodule(layer)
            is_usual = type(module) is nn.Linear and owners[id(module.weight)] == 1
            if layer is not None and is_usual and layer not in traced.graph.computed:
                last[branch.name] = layer
        self._entries = {name: traced.ends_of(name)[0] for name in last}
        self._inputs: Inputs = max(merged(batches), key=count).inputs
        self._sums: dict[str, Tensor] = {}
        self.layers: dict[str, str] = {}
        if last:
            self._inputs = rows(self._inputs, slice(0, self._few(network, last)))
            self._record(network, last)

    def _few(self, network: nn.Module, last: Mapping[str, str]) -> int:
        """How many samples have that many positions."""
        positions = [1]

        def see(_: nn.Module, __: Any, output: Tensor) -> None:
            positions.append(output[..., 0].numel())

        with ExitStack() as stack:
            for layer in last.values():
                handle = network.get_submodule(layer).register_forward_hook(see)
                stack.callback(handle.remove)
            _run(network, rows(self._inputs, slice(0, 1)))
        found = (network.get_submodule(layer) for layer in last.values())
        numbers = sum(layer.out_features for layer in found if isinstance(layer, nn.Linear))
        most = min(_POSITIONS, _BYTES // (4 * numbers))
        return max(1, most // max(positions))

    def _record(self, network: nn.Module, last: Mapping[str, str]) -> None:
        """Keeps the sums; those of branches that run more than once, or never, are not known."""
        twice: set[str] = set()

        def see(name: str, x: Tensor, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
            if name in self._sums or x.shape != output.shape:
                twice.add(name)
                return
            self._sums[name] = self._rows_of(x + output)

        self._watch(network, last, see)
        self._sums = {name: sums for name, sums in self._sums.items() if name not in twice}
        self.layers = {name: last[name] for name in self._sums}

    def _rows_of(self, values: Tensor) -> Tensor:
        """Values at all places that are no padding, shape (rows, width)."""
        return counted_rows(values, mask_of(self._inputs))

    def _watch(
        self,
        network: nn.Module,
        last: Mapping[str, str],
        see: Callable[[str, Tensor, nn.Module, Tensor, Tensor], Tensor | None],
    ) -> None:
        """Runs a network; ``see`` gets x, the last layer, its inputs and what it returns."""
        x: dict[str, Tensor] = {}

        def enter(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
                x[name] = next(tensors_of((args, kwargs))).clone()

            return hook

        def leave(name: str) -> Callable[..., Tensor | None]:
            def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor | None:
                return see(name, x[name], layer, args[0], output)

            return hook

        with ExitStack() as stack:
            for name, layer in last.items():
                entry, exit_ = (network.get_submodule(n) for n in (self._entries[name], layer))
                for handle in (
                    entry.register_forward_pre_hook(enter(name), with_kwargs=True),
                    exit_.register_forward_hook(leave(name)),
                ):
                    stack.callback(handle.remove)
            _run(network, self._inputs)

    def apply(
        self,
        network: nn.Module,
        outputs_of: Callable[[str], Tensor],
    ) -> None:
        """Fits the branches behind those that are left out, in place.

        Args:
            network: What is left of the original.
            outputs_of: Layer -> the sorted outputs of the original's that are there.
        """
        there = {n: m for n, m in network.named_modules() if not isinstance(m, LeftOut)}
        names = list(self.layers)
        first = next((i for i, name in enumerate(names) if self.layers[name] not in there), None)
        if first is None:
            return
        later = {n: self.layers[n] for n in names[first:] if self.layers[n] in there}

        def see(name: str, x: Tensor, layer: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
            assert isinstance(layer, nn.Linear)
            kept = outputs_of(self.layers[name]).to(output.device)
            missing = self._sums[name].index_select(1, kept) - self._rows_of(x + output)
            fit = _fitted(self._rows_of(inputs), missing, has_bias=layer.bias is not None)
            if fit is None:
                return output
            change, shift = fit
            layer.weight.add_(change.to(layer.weight))
            if layer.bias is not None:
                layer.bias.add_(shift.to(layer.bias))
            return nn.functional.linear(inputs, layer.weight, layer.bias)

        self._watch(network, later, see)


@torch.no_grad()
def _run(network: nn.Module, inputs: Inputs) -> None:
    with evaluating(network):
        ask(network, inputs)


def _fitted(inputs: Tensor, missing: Tensor, *, has_bias: bool) -> tuple[Tensor, Tensor] | None:
    """Returns what is added to weights and bias; None where no fit holds on other rows.

    Args:
        inputs: Shape (rows, inputs).
        missing: What is to be added, shape (rows, outputs).
        has_bias: Whether a constant can be added.
    """
    z, r = inputs.float(), missing.float()
    n = len(z) - len(z) // _CHECKED  # those of other samples come last
    z_mean, r_mean = (x[:n].mean(0) if has_bias else torch.zeros_like(x[0]) for x in (z, r))
    z, r = z - z_mean, r - r_mean
    gram, cross = z[:n].T @ z[:n], z[:n].T @ r[:n]
    mean = gram.diagonal().mean().clamp(min=1e-12)
    best, least = None, float((r[n:] + r_mean).square().sum())
    for ridge in _RIDGES:
        damped = gram.clone()
        damped.diagonal().add_(ridge * mean)
        factor, info = torch.linalg.cholesky_ex(damped)
        if info.item():
            continue
        change = torch.cholesky_solve(cross, factor).T
        left = float((r[n:] - z[n:] @ change.T).square().sum())
        if left < least:
            best, least = (change, r_mean - change @ z_mean), left
    return best

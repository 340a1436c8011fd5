"""Layers that are too wide for a Gram matrix, repaired channel by channel.

The first linear layer of VGG-16 reads 512 channels at 49 places: a Gram matrix of its 25,088
columns would take gigabytes, and more rows than there are images. What is cut of a channel is
written as a sum of the channels that stay, with the same factors at every place (Joo et al. 2021,
"Linearly Replaceable Filters for Deep Network Channel Pruning"). That needs the moments of 512
channels. With ``C`` their Gram matrix summed over the places, ``m`` what stays and ``c`` what goes,

    B = (C_mm + lambda I)^-1 C_mc        W'_m = W_m + W_c B^T   at each place.

It is the least squares of ``reconstruction.py`` where places do not correlate.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.moments.sampling import sample_rows
from amc_compress.learners.layers.products import Use
from amc_compress.learners.layers.weight_forms import OUTPUTS_FIRST
from amc_compress.learners.layers.wide_layers import MAX_COLUMNS
from amc_compress.learners.tracing.traced_model import TracedModel

_RIDGE = 1e-6  # relative to the mean of the diagonal, as of other layers
_ROWS_PER_CHANNEL = 8


class WideLayer:
    """Moments of a wide layer's channels, call by call, and the repair that they give.

    Args:
        layer: With a weight (outputs, columns, *kernel), and a bias or none.
        places: Columns of every channel, one after the other.
        n_samples: That will be seen.
        seed: Of the positions that are sampled.
        takes_shift: Whether a batch norm right behind takes a shift of the outputs.
    """

    def __init__(
        self, layer: nn.Module, places: int, n_samples: int, seed: int, *, takes_shift: bool
    ) -> None:
        self.layer = layer
        self.places = places
        self.takes_shift = takes_shift
        self._n_channels = self.weight[0].numel() // places
        self._positions = math.ceil(_ROWS_PER_CHANNEL * self._n_channels / (places * n_samples))
        self._generator = torch.Generator().manual_seed(seed)
        self._rows = 0
        self._is_known = True
        self._gram = torch.zeros(
            self._n_channels, self._n_channels, dtype=torch.float64, device=self.weight.device
        )
        self._sums = torch.zeros(
            self._n_channels, places, dtype=torch.float64, device=self.weight.device
        )

    @property
    def weight(self) -> Tensor:
        """Of the original."""
        assert isinstance(self.layer.weight, Tensor)
        return self.layer.weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """Of the original."""
        bias = getattr(self.layer, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the source of positions, which nothing asks any more."""
        return vars(self) | {"_generator": None}

    def __call__(self, use: Use) -> None:
        """Adds the inputs of one product."""
        self._is_known &= use.product.form == OUTPUTS_FIRST and use.product.groups == 1
        if self.bias is not None:
            self._is_known &= use.adds_bias
        self.takes_shift &= use.is_output
        if not self._is_known:
            return
        rows = sample_rows(use.product, self._positions, self._generator)[0]
        channels = rows.view(len(rows), self._n_channels, self.places)
        flat = channels.transpose(0, 1).flatten(1)
        self._gram += flat @ flat.T
        self._sums += channels.sum(0, dtype=torch.float64)
        self._rows += len(rows)

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        return self.weight.shape

    @property
    def is_ready(self) -> bool:
        """Whether it can be repaired."""
        return self._is_known and self._rows > 0

    def solve(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the repaired ``(weight, bias)`` of the sliced layer.

        Args:
            inputs: Kept coordinates of the weight's axis 1, sorted, whole channels.
            outputs: Kept coordinates of its outputs, sorted.
        """
        device = self.weight.device
        per_channel = self.weight.shape[1] // self._n_channels
        kept = torch.zeros(self._n_channels, dtype=torch.bool)
        kept[inputs.cpu()[::per_channel] // per_channel] = True
        stay, gone = (x.nonzero()[:, 0].to(device) for x in (kept, ~kept))
        rows = self.weight.index_select(0, outputs.to(device))
        split = rows.reshape(len(rows), self._n_channels, self.places)
        before = split.index_select(1, stay)
        factors = self._factors(stay, gone).to(split)
        lost = split.index_select(1, gone)
        found = before + torch.einsum("kc,ocp->okp", factors, lost)
        weight = found.reshape(len(rows), -1, *self.weight.shape[2:])
        if self.bias is None and not self.takes_shift:
            return weight, None
        mean = (self._sums / self._rows).to(split)
        shift = torch.einsum("cp,ocp->o", mean.index_select(0, gone), lost)
        shift -= torch.einsum("kp,okp->o", mean.index_select(0, stay), found - before)
        own = 0.0 if self.bias is None else self.bias.index_select(0, outputs.to(device))
        return weight, own + shift

    def _factors(self, stay: Tensor, gone: Tensor) -> Tensor:
        """Returns what each channel that stays takes over of those that go, (stay, gone)."""
        gram = self._gram
        if self.bias is not None or self.takes_shift:
            # Around the mean of every place, which the shift restores.
            gram = gram - self._sums @ self._sums.T / self._rows
        sub = gram.index_select(0, stay)
        cross, sub = sub.index_select(1, gone), sub.index_select(1, stay)
        damping = max(_RIDGE * sub.diagonal().mean().item(), 1e-12)
        for _ in range(4):
            damped = sub.clone()
            damped.diagonal().add_(damping)
            factor, info = torch.linalg.cholesky_ex(damped)
            if not info.item():
                return torch.cholesky_solve(cross, factor)
            damping *= 100.0
        return torch.zeros_like(cross)


def wide_layers_of(
    traced: TracedModel,
    n_samples: int,
    *,
    seed: int,
    norms: Collection[str],
    memory: int | None = None,
) -> dict[str, WideLayer]:
    """Returns layer -> its repair by channel, before anything has been seen.

    Args:
        traced: The network.
        n_samples: That will be seen.
        seed: Of the positions that are sampled.
        norms: Layers with a batch norm right behind them.
        memory: See :func:`places_of`.
    """
    modules = dict(traced.model.named_modules())
    return {
        name: WideLayer(modules[name], places, n_samples, seed + index, takes_shift=name in norms)
        for index, (name, places) in enumerate(places_of(traced, memory).items())
    }


def places_of(traced: TracedModel, memory: int | None = None) -> dict[str, int]:
    """Returns layer -> columns of every channel, of the layers that are repaired by channel.

    Of convolutions the kernel; of linear layers what a flattened map has of a channel.

    Args:
        traced: The network.
        memory: Bytes that the Gram matrices of all other layers may take; only layers of more than
            ``MAX_COLUMNS`` columns are repaired by channel if ``None``.
    """
    modules = dict(traced.model.named_modules())
    columns: dict[str, int] = {}
    places: dict[str, int] = {}
    for group in traced.graph.groups:
        for slot in traced.unit_slots(group.name):
            layer = modules[slot.module]
            usual = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
            if not usual or (slot.role, slot.tensor, slot.axis) != ("consumer", "weight", 1):
                continue
            if slot.module not in traced.graph.computed:
                assert isinstance(layer.weight, Tensor)
                columns[slot.module] = layer.weight[0].numel()
                places |= _places(slot.module, layer, slot.coordinates)
    found: dict[str, int] = {}
    left = math.inf if memory is None else memory
    left -= sum(4 * count**2 for count in columns.values() if count <= MAX_COLUMNS)
    for name in sorted(columns, key=columns.__getitem__, reverse=True):
        is_wide = columns[name] > MAX_COLUMNS
        if name in places and (is_wide or left < 0):
            found[name] = places[name]
            left += 0 if is_wide else 4 * columns[name] ** 2
    return found


def _places(name: str, layer: nn.Module, coordinates: Tensor) -> dict[str, int]:
    """Returns the columns of every channel, nothing unless they are neighbours and several."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if weight.dim() > 2:
        places = weight[0, 0].numel()
    else:
        places = coordinates.shape[1]
        starts = coordinates[:, :1]
        is_whole = bool((starts % places == 0).all()) and weight.shape[1] % places == 0
        if not is_whole or not torch.equal(coordinates, starts + torch.arange(places)):
            return {}
    is_worth = places > 1 and weight[0].numel() // places <= MAX_COLUMNS
    return {name: places} if is_worth and getattr(layer, "groups", 1) == 1 else {}

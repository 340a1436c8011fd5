"""Sparsity patterns by magnitude: unstructured, blocks, N:M.

==============  ===================================================================================
``unstructured``  exactly the ``k`` largest ``|w|`` of a layer (Han et al. 2015)
``block4``        blocks of 4 x 4 of the matrix outputs x (inputs * kernel), by their mean ``|w|``
``2:4``           the 2 largest of every 4 consecutive inputs (Mishra et al. 2021); any N:M
==============  ===================================================================================
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.layers.weight_forms import form_of

GRID_STEP = 0.005
"""Distance of the densities on offer; a step of half a percent is far below what accuracy shows."""

_BLOCK = re.compile(r"block([1-9]\d*)")
_N_OF_M = re.compile(r"([1-9]\d*):([1-9]\d*)")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Pattern:
    """A shape of sparsity.

    Args:
        name: As :meth:`parse` reads it.
        block: Side of the blocks; 1 for single weights.
        n: Weights that stay in every group of ``m``; 0 if there are no such groups.
        m: Consecutive inputs of a group.
    """

    name: str
    block: int = 1
    n: int = 0
    m: int = 0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads ``"unstructured"``, ``"block4"`` (any side) or ``"2:4"`` (any N < M).

        Raises:
            ValueError: If the text is something else.
        """
        if not isinstance(text, str):
            raise ValueError(f"Expected the name of a pattern, got {text!r}.")
        if text == "unstructured":
            return cls(text)
        if found := _BLOCK.fullmatch(text):
            return cls(text, block=int(found[1]))
        found = _N_OF_M.fullmatch(text)
        if found and int(found[1]) < int(found[2]):
            return cls(text, n=int(found[1]), m=int(found[2]))
        raise ValueError(
            f"Unknown pattern {text!r}; expected 'unstructured', a block like 'block4', or N:M "
            f"with N < M like '2:4'."
        )

    def rejection(self, shape: torch.Size) -> str | None:
        """Returns why a layer cannot have this pattern, ``None`` if it can.

        Args:
            shape: Of its weight, (outputs, inputs per convolution group, *kernel).
        """
        if self.m and shape[1] % self.m:
            return f"its {shape[1]} inputs are not a multiple of {self.m}"
        return None

    def counts(self, size: int, min_density: float) -> tuple[int, ...]:
        """Returns how many weights of a layer may stay, ascending; the last is all.

        In steps of half a percent, of whole blocks for blocks; for N:M there are N/M and all.

        Args:
            size: Number of weights of the layer.
            min_density: Smallest share on offer, up to rounding; ignored for N:M.
        """
        if self.m:
            return (size * self.n // self.m, size)
        unit = self.block * self.block
        first = math.ceil(min_density / GRID_STEP - _ROUNDING)
        shares = [GRID_STEP * j for j in range(first, round(1 / GRID_STEP))]
        steps = {round(share * size / unit) * unit for share in shares}
        return tuple(sorted({k for k in steps if 0 < k < size} | {size}))

    def scores(self, weight: Tensor) -> Tensor:
        """Returns what weights are ranked by between layers, the shape of ``weight``.

        Magnitudes; for blocks the mean magnitude of the block that a weight is in.
        """
        if self.block == 1:
            return weight.detach().abs()
        return _spread(self._block_means(weight), weight, self.block)

    def mask(self, weight: Tensor, keep: int) -> Tensor:
        """Returns which weights stay.

        Of equal magnitudes the first stay. Exactly ``keep`` weights stay, except for N:M. Where
        ``keep`` is not made up of whole blocks (smaller ones at the edges, steps of a schedule),
        one block keeps its largest weights only.

        N:M groups run over the inputs of a linear layer and over the input channels of a
        convolution (at each kernel position), as sparse tensor cores read them. Of a group ``n'``
        stay with ``n' : M`` nearest to ``keep : size``, but at least N; an incomplete last group
        of ``r`` keeps ``n' r // M``, but one if there is no other group.

        Args:
            weight: Shape (outputs, inputs per convolution group, *kernel).
            keep: Number of weights, 0 to all.

        Returns:
            Bool, the shape of ``weight``.
        """
        if self.m:
            return self._mask_groups(weight, keep)
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[self._order(weight)[:keep]] = True
        return mask.view(weight.shape)

    def _order(self, weight: Tensor) -> Tensor:
        """Returns flat indices, those to keep longest first."""
        magnitudes = weight.detach().abs().flatten()
        order = torch.argsort(magnitudes, descending=True, stable=True)
        if self.block == 1:
            return order
        means = self._block_means(weight)
        ranks = torch.empty(means.numel(), dtype=torch.int64, device=weight.device)
        best_first = torch.argsort(means.flatten(), descending=True, stable=True)
        ranks[best_first] = torch.arange(means.numel(), device=weight.device)
        rank_of = _spread(ranks.view(means.shape), weight, self.block).flatten()
        return order[torch.argsort(rank_of[order], stable=True)]

    def _block_means(self, weight: Tensor) -> Tensor:
        matrix = weight.detach().abs().flatten(1)
        # Windows that reach over the edge are averaged over what is inside.
        pooled = F.avg_pool2d(matrix[None, None], self.block, ceil_mode=True)
        return pooled[0, 0]

    def _mask_groups(self, weight: Tensor, keep: int) -> Tensor:
        inputs = weight.shape[1]
        n = max(self.n, round(keep * self.m / weight.numel()))
        lines = weight.detach().abs().flatten(2) if weight.dim() > 2 else weight.detach().abs()
        lines = lines.movedim(1, -1)  # (outputs[, kernel], inputs)
        padded = F.pad(lines, (0, -inputs % self.m), value=-1.0)
        groups = padded.reshape(*lines.shape[:-1], -1, self.m)
        ranks = groups.argsort(stable=True, dim=-1, descending=True).argsort(-1)
        limit = torch.full((groups.shape[-2], 1), n, device=weight.device)
        if rest := inputs % self.m:
            limit[-1] = max(n * rest // self.m, int(inputs < self.m))
        stays: Tensor = (ranks < limit).flatten(-2)[..., :inputs]
        return stays.movedim(-1, 1).reshape(weight.shape)


def mask_for(layer: nn.Module, pattern: Pattern, keep: int) -> Tensor:
    """Returns which weights of a layer stay, in the shape of its weight; see ``Pattern.mask``."""
    form = form_of(layer)
    assert isinstance(layer.weight, Tensor)
    return form.stored(pattern.mask(form.outputs_first(layer.weight), keep))


def _spread(blocks: Tensor, weight: Tensor, side: int) -> Tensor:
    """Returns one number per weight from one per block."""
    rows, columns = weight.flatten(1).shape
    wide = blocks.repeat_interleave(side, 0)[:rows].repeat_interleave(side, 1)[:, :columns]
    return wide.reshape(weight.shape)

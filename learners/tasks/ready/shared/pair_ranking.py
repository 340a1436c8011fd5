"""Whether the pairs of samples that are alike to one network are alike to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MOST = 512
"""Samples that are compared with each other, the first ones: 130,816 pairs."""

_FEWEST = 3  # two samples make one pair, and that has no order


class PairRanking:
    """A meter of ``ranking``: Spearman's rank correlation of the cosines of all pairs of samples.

    Vectors of a network are used to find what is alike. So each sample is compared with each other
    one, under the network and under the original, and both orders of these pairs are compared. Of
    the first :data:`MOST` samples; not measured where there are fewer than three, or their vectors
    differ in width.

    Args:
        vectors: Returns the vectors (N, ...) of a batch, of the network and of the original.
    """

    def __init__(self, vectors: Callable[[Any, Any], tuple[Tensor, Tensor]]) -> None:
        self._vectors = vectors
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Takes in a batch."""
        if (room := MOST - self._count) <= 0:
            return
        with torch.no_grad():
            ours, theirs = self._vectors(outputs, targets)
            self._kept.append((_unit(ours[:room]), _unit(theirs[:room])))
        self._count += len(self._kept[-1][0])

    def compute(self) -> dict[str, float]:
        """Returns ``ranking``, 0 where all pairs are equally alike; nothing if not measured."""
        from scipy.stats import rankdata

        widths = {vectors.shape[1] for pair in self._kept for vectors in pair}
        if self._count < _FEWEST or len(widths) > 1:
            return {}
        ranks = []
        for vectors in (torch.cat(parts) for parts in zip(*self._kept, strict=True)):
            above = torch.triu_indices(len(vectors), len(vectors), 1)
            alike = (vectors @ vectors.T)[above[0], above[1]]
            ranks.append(torch.from_numpy(rankdata(alike.numpy())))
        a, b = (rank - rank.mean() for rank in ranks)
        size = float(a.norm() * b.norm())
        return {"ranking": float(a @ b) / size if size else 0.0}


def _unit(vectors: Tensor) -> Tensor:
    flat = vectors.detach().double().flatten(1).cpu()
    return functional.normalize(flat, dim=1)

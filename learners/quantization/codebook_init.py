"""Where centroids start: quantiles, a uniform grid, or one-dimensional k-means.

Everything works on buckets, shape ``(n_buckets, size)``, one codebook per row, all rows at once.
Numbers on a line need no distance matrix: with the weights sorted once, a cluster is an interval,
and its sum is a difference of two prefix sums, so that a step of Lloyd's algorithm costs
``2 ** bits`` binary searches whatever the number of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc_env.errors import InputDataError

INITS = ("quantile", "uniform", "kmeans")

# Later steps move the error by less than a thousandth (256 centroids are the slowest).
_LLOYD_STEPS = 100
_JUMP_ROUNDS = 100
_STEPS_PER_JUMP = 5
_DENSITY_BINS = 2048


def initial_codebook(rows: Tensor, n_centroids: int, init: str = "kmeans") -> Tensor:
    """Returns ascending centroids for each bucket.

    A bucket with at most ``n_centroids`` distinct numbers gets exactly those, the largest repeated.

    Args:
        rows: Buckets, shape ``(n_buckets, size)``.
        n_centroids: ``2 ** bits``.
        init: ``"quantile"``: centroid ``i`` (from 0) is the percentile ``100 (i + 1) / (n + 1)``
            (PocketFlow); ``"uniform"``: equal steps from the smallest to the largest weight;
            ``"kmeans"``: the best of three starts after Lloyd's algorithm. All deterministic.

    Returns:
        Centroids, shape ``(n_buckets, n_centroids)``, float32.

    Raises:
        InputDataError: If the weights are not finite, or there are none.
        ValueError: If there is no such ``init``.
    """
    if init not in INITS:
        raise ValueError(f"Expected one of {INITS} to start centroids from, got {init!r}.")
    if rows.numel() == 0:
        raise InputDataError("Expected weights to make a codebook of, got an empty tensor.")
    if not bool(rows.isfinite().all()):
        raise InputDataError(
            "Expected finite weights to make a codebook of, got NaN or infinite numbers; load "
            "another checkpoint."
        )
    ordered = rows.detach().double().sort(dim=1).values
    if init == "quantile":
        centroids = _quantiles(ordered, n_centroids)
    elif init == "uniform":
        centroids = _grid(ordered, n_centroids)
    else:
        centroids = _kmeans(ordered, n_centroids)
    return _exact_where_possible(ordered, centroids).float()


def _quantiles(ordered: Tensor, n: int) -> Tensor:
    """Percentiles with linear interpolation, as ``numpy.percentile``."""
    steps = torch.arange(1, n + 1, dtype=torch.float64, device=ordered.device) / (n + 1)
    position = steps * (ordered.shape[1] - 1)
    lower = position.floor().long()
    upper = position.ceil().long()
    return torch.lerp(ordered[:, lower], ordered[:, upper], position - lower)


def _grid(ordered: Tensor, n: int) -> Tensor:
    steps = torch.linspace(0, 1, n, dtype=torch.float64, device=ordered.device)
    return torch.lerp(ordered[:, :1], ordered[:, -1:], steps)


def _companded(ordered: Tensor, n: int) -> Tensor:
    """Centroids whose density is the cube root of the weights' density.

    Asymptotically the best density for the squared error (Panter and Dite 1951).
    """
    low, high = ordered[:, :1], ordered[:, -1:]
    step = ((high - low) / _DENSITY_BINS).clamp_min(torch.finfo(torch.float64).tiny)
    bins = ((ordered - low) / step).long().clamp_max(_DENSITY_BINS - 1)
    counts = torch.zeros(len(ordered), _DENSITY_BINS, dtype=torch.float64, device=ordered.device)
    counts.scatter_add_(1, bins, torch.ones_like(ordered))
    mass = counts.pow(1 / 3).cumsum(1)
    wanted = (torch.arange(n, dtype=torch.float64, device=ordered.device) + 0.5) / n
    found = torch.searchsorted(mass, wanted * mass[:, -1:]).clamp_max(_DENSITY_BINS - 1)
    return low + (found + 0.5) * step


def _exact_where_possible(ordered: Tensor, centroids: Tensor) -> Tensor:
    n = centroids.shape[1]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    few = first.sum(1) <= n
    for row in few.nonzero()[:, 0].tolist():
        values = ordered[row][first[row]]
        centroids[row] = values[-1]
        centroids[row, : len(values)] = values
    return centroids


class _Sums:
    """Prefix sums of sorted buckets: what an interval of weights adds up to."""

    def __init__(self, ordered: Tensor) -> None:
        self.ordered = ordered.contiguous()
        zero = ordered.new_zeros(len(ordered), 1)
        self._first = torch.cat([zero, ordered.cumsum(1)], dim=1)
        self._second = torch.cat([zero, ordered.square().cumsum(1)], dim=1)

    def edges(self, centroids: Tensor) -> Tensor:
        """Returns where the cluster of each centroid begins; one column more than centroids."""
        middles = ((centroids[:, 1:] + centroids[:, :-1]) / 2).contiguous()
        inner = torch.searchsorted(self.ordered, middles, right=True)
        begin = inner.new_zeros(len(inner), 1)
        return torch.cat([begin, inner, begin + self.ordered.shape[1]], dim=1)

    def means(self, edges: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns means (the centroid where nothing is) and squared errors of all clusters."""
        counts = edges.diff(dim=1)
        sums = self._first.gather(1, edges).diff(dim=1)
        means = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
        errors = self._second.gather(1, edges).diff(dim=1) - sums * means
        return means, torch.where(counts > 0, errors.clamp_min(0), 0.0)

    def split(self, edges: Tensor, means: Tensor) -> Tensor:
        """Returns where the upper half of each cluster begins."""
        middle = torch.searchsorted(self.ordered, means.contiguous(), right=True)
        return middle.clamp(edges[:, :-1], edges[:, 1:])

    def mean_between(self, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Returns means and counts of intervals; the mean of an empty one is 0."""
        counts = (end - begin).double()
        sums = self._first.gather(1, end) - self._first.gather(1, begin)
        return sums / counts.clamp_min(1), counts


def _kmeans(ordered: Tensor, n: int) -> Tensor:
    """Takes the best of three starts per bucket, then moves centroids to where they help most."""
    sums = _Sums(ordered)
    best = ordered.new_zeros(len(ordered), n)
    least = ordered.new_full((len(ordered),), torch.inf)
    for start in (_companded, _quantiles, _grid):
        best, least = _better(sums, start(ordered, n), _LLOYD_STEPS, best, least)
    # Lloyd's algorithm keeps the number of centroids in each region; only jumps change it.
    jumps = max(1, n // 4)
    for _ in range(_JUMP_ROUNDS):
        before = least
        best, least = _better(sums, _jump(sums, best, jumps), _STEPS_PER_JUMP, best, least)
        if torch.equal(before, least):
            if jumps == 1:
                break
            jumps //= 2
    return best


def _better(
    sums: _Sums, start: Tensor, steps: int, best: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs Lloyd's algorithm; returns, per bucket, the better of its result and ``best``."""
    centroids, error = _lloyd(sums, start, steps)
    best = torch.where((error < least)[:, None], centroids, best)
    return best, torch.minimum(error, least)


def _lloyd(sums: _Sums, centroids: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Returns centroids and the total squared error of each bucket, shape ``(n_buckets,)``."""
    edges = sums.edges(centroids)
    for _ in range(steps):
        centroids = sums.means(edges, centroids)[0]
        before, edges = edges, sums.edges(centroids)
        if torch.equal(before, edges):
            break
    means, errors = sums.means(edges, centroids)
    return means, errors.sum(1)


def _jump(sums: _Sums, centroids: Tensor, jumps: int) -> Tensor:
    """Takes away the centroids that help least and splits the clusters that gain most.

    Joining two clusters of ``a`` and ``b`` weights costs ``a b / (a + b) (mean_a - mean_b) ** 2``,
    splitting one (at its mean) gains the same of its halves; a pair jumps where it gains more.

    Args:
        sums: The weights.
        centroids: Means of their clusters, ascending.
        jumps: Centroids of each bucket that may jump at once.
    """
    edges = sums.edges(centroids)
    counts = edges.diff(dim=1).double()
    joined = _spread(counts[:, :-1], counts[:, 1:], centroids.diff(dim=1))
    end = joined.new_full((len(joined), 1), torch.inf)
    loss = torch.minimum(torch.cat([end, joined], 1), torch.cat([joined, end], 1))
    neighbours = torch.minimum(
        torch.cat([end, loss[:, :-1]], 1), torch.cat([loss[:, 1:], end], 1) * (1 + 1e-9)
    )
    loss = loss.masked_fill(loss > neighbours, torch.inf)  # never two neighbours at once

    middle = sums.split(edges, centroids)
    left, n_left = sums.mean_between(edges[:, :-1], middle)
    right, n_right = sums.mean_between(middle, edges[:, 1:])
    gain = _spread(n_left, n_right, right - left)

    gainers = gain.argsort(dim=1, descending=True)
    loss = loss.scatter(1, gainers[:, :jumps], torch.inf)  # who splits stays
    losers = loss.argsort(dim=1)
    goes = gain.gather(1, gainers) > loss.gather(1, losers)
    goes[:, jumps:] = False
    halves = torch.where(goes, left.gather(1, gainers), centroids.gather(1, gainers))
    moved = centroids.scatter(1, gainers, halves)
    halves = torch.where(goes, right.gather(1, gainers), moved.gather(1, losers))
    return moved.scatter(1, losers, halves).sort(dim=1).values


def _spread(a: Tensor, b: Tensor, distance: Tensor) -> Tensor:
    return a * b / (a + b).clamp_min(1) * distance.square()

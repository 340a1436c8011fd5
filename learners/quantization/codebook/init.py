"""Initial centroids: quantiles, a uniform grid, or one-dimensional k-means.

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
_JUMP_ROUNDS = 40
_STEPS_PER_JUMP = 5
_DENSITY_POINTS = 2048


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
    find = {"quantile": _quantiles, "uniform": _grid, "kmeans": _kmeans}[init]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    many = first.sum(1) > n_centroids
    centroids = ordered[:, -1:].repeat(1, n_centroids)
    for row in (~many).nonzero()[:, 0].tolist():
        values = ordered[row][first[row]]
        centroids[row, : len(values)] = values
    if bool(many.any()):
        centroids[many] = find(ordered[many], n_centroids)
    return centroids.float()


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

    Asymptotically the best density for the squared error (Panter and Dite 1951). Between two
    order statistics ``d`` apart the density is ``1 / d``, and the integral of its cube root
    ``d ** (2 / 3)``, in any units.
    """
    size = ordered.shape[1]
    places = torch.linspace(0, size - 1, min(size, _DENSITY_POINTS), device=ordered.device)
    points = ordered[:, places.round().long()]
    gaps = points.diff(dim=1).pow(2 / 3)
    mass = torch.cat([torch.zeros_like(points[:, :1]), gaps.cumsum(1)], dim=1)
    steps = (torch.arange(n, dtype=torch.float64, device=ordered.device) + 0.5) / n
    wanted = steps * mass[:, -1:]
    upper = torch.searchsorted(mass, wanted).clamp(1, max(1, mass.shape[1] - 1))
    upper = upper.clamp_max(mass.shape[1] - 1)
    lower = (upper - 1).clamp_min(0)
    below, above = mass.gather(1, lower), mass.gather(1, upper)
    share = (wanted - below) / (above - below).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.lerp(points.gather(1, lower), points.gather(1, upper), share)


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
    """The best of several starts, per bucket."""
    sums = _Sums(ordered)
    best = ordered.new_zeros(len(ordered), n)
    least = ordered.new_full((len(ordered),), torch.inf)
    for start in (_companded, _quantiles, _grid):
        centroids, error = _descend(sums, start(ordered, n))
        best = torch.where((error < least)[:, None], centroids, best)
        least = torch.minimum(error, least)
    return best


def _descend(sums: _Sums, start: Tensor) -> tuple[Tensor, Tensor]:
    """Runs Lloyd's algorithm, then moves centroids to where they help most.

    Lloyd's algorithm keeps the number of centroids in each region; only jumps change it.
    """
    best, least = _lloyd(sums, start, _LLOYD_STEPS)
    jumps = max(1, start.shape[1] // 4)
    for _ in range(_JUMP_ROUNDS):
        before = least
        centroids, error = _lloyd(sums, _jump(sums, best, jumps), _STEPS_PER_JUMP)
        best = torch.where((error < least)[:, None], centroids, best)
        least = torch.minimum(error, least)
        if torch.equal(before, least):
            if jumps == 1:
                break
            jumps //= 2
    return best, least


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
    splits = torch.zeros_like(loss, dtype=torch.bool).scatter(1, gainers[:, :jumps], True)
    near = splits.clone()
    near[:, 1:] |= splits[:, :-1]
    near[:, :-1] |= splits[:, 1:]
    loss = loss.masked_fill(near, torch.inf)  # a centroid that splits stays, and none joins it
    losers = loss.argsort(dim=1)
    goes = gain.gather(1, gainers) > loss.gather(1, losers)
    goes[:, jumps:] = False
    halves = torch.where(goes, left.gather(1, gainers), centroids.gather(1, gainers))
    moved = centroids.scatter(1, gainers, halves)
    halves = torch.where(goes, right.gather(1, gainers), moved.gather(1, losers))
    return moved.scatter(1, losers, halves).sort(dim=1).values


def _spread(a: Tensor, b: Tensor, distance: Tensor) -> Tensor:
    return a * b / (a + b).clamp_min(1) * distance.square()

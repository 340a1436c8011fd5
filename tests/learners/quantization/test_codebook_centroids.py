"""Where centroids start: percentiles, grids, k-means against scikit-learn and exhaustion."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from amc_compress.learners.quantization.codebook.init import INITS, initial_codebook
from amc_env.errors import InputDataError


def squared_error(values: np.ndarray, centroids: np.ndarray) -> float:
    """Of the nearest centroids, by the whole distance matrix."""
    return float(((values[:, None] - centroids[None]) ** 2).min(1).sum())


def samples(kind: str, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=generator)
    return {"normal": x, "heavy": x**3, "lumps": x * 0.1 + (x > 0.3) * 4.0}[kind] * 0.05


def test_quantiles_are_those_of_pocketflow_by_numpy():
    rows = torch.stack([samples("normal", 300), samples("heavy", 300)])
    found = initial_codebook(rows, 8, "quantile")
    steps = [100 * (i + 1) / 9 for i in range(8)]
    for row, centroids in zip(rows, found, strict=True):
        assert np.allclose(centroids, np.percentile(row.numpy(), steps), atol=1e-7)


def test_a_uniform_start_is_a_linear_space_per_bucket():
    rows = torch.stack([samples("normal", 300), samples("heavy", 300)])
    found = initial_codebook(rows, 16, "uniform")
    for row, centroids in zip(rows, found, strict=True):
        assert np.allclose(
            centroids, np.linspace(float(row.min()), float(row.max()), 16), atol=1e-7
        )


@pytest.mark.parametrize("kind", ["normal", "heavy", "lumps"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_kmeans_is_as_good_as_that_of_scikit_learn(kind, bits):
    values = samples(kind, 3000)
    ours = initial_codebook(values[None], 2**bits)[0].numpy()
    theirs = KMeans(2**bits, n_init=3, random_state=0).fit(values.numpy()[:, None])
    error = squared_error(values.double().numpy(), ours.astype(np.float64))
    assert error <= 1.02 * theirs.inertia_
    assert (np.diff(ours) > 0).all()


def test_kmeans_is_near_the_optimum_where_all_ways_can_be_tried():
    """Clusters on a line are intervals: all cuts of 12 sorted numbers into four."""
    ratios = []
    for seed in range(20):
        values = torch.randn(12, generator=torch.Generator().manual_seed(seed)).sort().values
        numbers = values.double().numpy()
        best = min(
            sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(numbers, cuts))
            for cuts in itertools.combinations(range(1, 12), 3)
        )
        found = initial_codebook(values[None], 4)[0].double().numpy()
        ratios.append(squared_error(numbers, found) / best)
    assert min(ratios) > 1 - 1e-6
    assert np.median(ratios) == pytest.approx(1, abs=1e-4)
    assert max(ratios) < 1.25


def test_a_fixed_point_of_lloyds_algorithm():
    values = samples("normal", 2000)
    centroids = initial_codebook(values[None], 4)[0]
    nearest = (values[:, None] - centroids[None]).abs().argmin(1)
    means = torch.stack([values[nearest == k].double().mean() for k in range(4)])
    assert torch.allclose(means.float(), centroids, atol=1e-6)


@pytest.mark.parametrize("init", INITS)
def test_buckets_do_not_know_of_each_other(init):
    rows = torch.stack([samples(kind, 400) for kind in ("normal", "heavy", "lumps")])
    together = initial_codebook(rows, 16, init)
    for row, centroids in zip(rows, together, strict=True):
        assert torch.equal(initial_codebook(row[None], 16, init)[0], centroids)
    assert torch.equal(initial_codebook(rows, 16, init), together)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("values", [[0.5] * 9, [1.0, -1.0] * 5, [0.0, 3.0, 1.0, 2.0], [7.0]])
def test_few_distinct_numbers_are_all_centroids(init, values):
    row = torch.tensor([values])
    centroids = initial_codebook(row, 8, init)
    assert centroids.shape == (1, 8)
    assert set(centroids[0].tolist()) == set(values)
    assert torch.equal(centroids, centroids.sort(dim=1).values)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e18])
def test_the_scale_of_the_numbers_does_not_matter(scale):
    values = samples("normal", 500)
    ratio = initial_codebook(values[None] * scale, 8) / scale
    assert torch.allclose(ratio, initial_codebook(values[None], 8), rtol=1e-3, atol=1e-5)


def test_unusable_weights_are_rejected():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InputDataError, match="finite weights"):
            initial_codebook(torch.tensor([[1.0, bad, 2.0]]), 4)
    with pytest.raises(InputDataError, match="empty"):
        initial_codebook(torch.zeros(1, 0), 4)
    with pytest.raises(ValueError, match="kmeans"):
        initial_codebook(torch.zeros(1, 3), 4, "kmeens")

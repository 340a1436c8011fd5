"""Fits the surrogate of a recorded task: a Gaussian process over plans.

Hyper-parameters come from scikit-learn on a random part of the plans; the weights are exact, from
one Cholesky factor of all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    Hyperparameter,
    Kernel,
    Matern,
    NormalizedKernelMixin,
    StationaryKernelMixin,
    WhiteKernel,
)

from amc_env import Decision
from amc_env.recorded_tasks.surrogate import TARGETS, Surrogate, SurrogateSettings, located, matern

Array = npt.NDArray[np.float64]
Plans = npt.NDArray[np.integer]

WARPS: dict[str, Callable[[Array], Array]] = {
    "value": lambda v: v,
    "log": np.log,
    "root": lambda v: -(v**-0.5),
    "reciprocal": lambda v: -1.0 / v,
}
"""Name -> increasing map of a decision's values; the later ones stretch the small values more.

Decisions with a value of 0, as those about depth, keep their values.
"""

_SMALLEST_NOISE = 1e-4  # of the variance of the targets: keeps the Cholesky factor well conditioned


class HammingKernel(StationaryKernelMixin, NormalizedKernelMixin, Kernel):  # type: ignore[misc]
    """``exp(-(decisions in which two plans differ) / length)``: knows no order of the values.

    Args:
        length: In decisions.
        length_bounds: Where its likeliest value is sought.
    """

    def __init__(
        self, length: float = 1.0, length_bounds: tuple[float, float] = (0.1, 100.0)
    ) -> None:
        self.length = length
        self.length_bounds = length_bounds

    @property
    def hyperparameter_length(self) -> Hyperparameter:
        """The fitted hyperparameter, in scikit-learn's form."""
        return Hyperparameter("length", "numeric", self.length_bounds)

    def __call__(self, X: Array, Y: Array | None = None, eval_gradient: bool = False) -> Any:  # noqa: N803
        """Returns the kernel matrix, and its gradient by ``log(length)`` if asked."""
        differing = cdist(X, X if Y is None else Y, "hamming") * X.shape[1]
        kernel = np.exp(-differing / self.length)
        if not eval_gradient:
            return kernel
        return kernel, (kernel * differing / self.length)[:, :, np.newaxis]

    def __repr__(self) -> str:
        return f"HammingKernel(length={self.length:.3g})"


def warps_for(decisions: Sequence[Decision]) -> tuple[str, ...]:
    """Returns the names of the maps that make a difference to some decision."""
    return tuple(WARPS) if any(min(d.choices) > 0 for d in decisions) else ("value",)


def _warped(warp: str, choices: Sequence[float]) -> Array:
    values = np.array(choices, dtype=np.float64)
    return WARPS[warp](values) if min(choices) > 0 else values


@dataclass(frozen=True)
class SurrogateModel:
    """Settings of a surrogate with the noise that its weights are solved for.

    Args:
        settings: Kernel and target.
        warp: Name in :data:`WARPS` that the coordinates come from.
        noise: Variance of an evaluation around the mean, on the standardised scale of the target.
    """

    settings: SurrogateSettings
    warp: str
    noise: float

    def fit(self, plans: Plans, scores: Array) -> Surrogate:
        """Returns the surrogate of these plans: the exact weights for the settings.

        Args:
            plans: Distinct plans, index of each decision's choice, ``(n_plans, n_decisions)``.
            scores: Their scores.
        """
        matrix = self._covariance(plans)
        matrix[np.diag_indices_from(matrix)] += self.noise
        factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        weights = cho_solve(factor, _targets(self.settings, scores), check_finite=False)
        return Surrogate(self.settings, plans, weights)

    def _covariance(self, plans: Plans) -> Array:
        s = self.settings
        places = located(s.coordinates, plans)
        matrix = matern(cdist(places, places))
        matrix *= s.amplitude
        differing = cdist(places, places, "hamming") * places.shape[1]
        matrix += s.rough_amplitude * np.exp(-differing / s.rough_length)
        return matrix


def _targets(settings: SurrogateSettings, scores: Array) -> Array:
    """Scores on the standardised scale of the target."""
    raw = TARGETS[settings.target].forward(np.asarray(scores, dtype=np.float64))
    return (raw - settings.offset) / settings.scale


def fit_model(
    decisions: Sequence[Decision],
    plans: Plans,
    scores: Array,
    *,
    warp: str,
    target: str,
    n_fit: int = 1000,
    seed: int = 0,
) -> SurrogateModel:
    """Finds the hyperparameters that make the evaluations of some plans most likely.

    ``amplitude * Matern 5/2 (one length scale per decision) + rough_amplitude * HammingKernel +
    noise``.

    Args:
        decisions: All decisions in order.
        plans: Distinct plans, index of each decision's choice, ``(n_plans, n_decisions)``.
        scores: Their scores.
        warp: Name in :data:`WARPS`.
        target: Name in ``amc_env.recorded_tasks.surrogate.TARGETS``.
        n_fit: How many plans, drawn at random, are looked at; time grows with the cube.
        seed: Draws them.

    Raises:
        ValueError: If a name is unknown, or there are fewer than two different scores.
    """
    if warp not in WARPS or target not in TARGETS:
        raise ValueError(
            f"Expected a warp of {[*WARPS]} and a target of {[*TARGETS]}, got {warp!r} and "
            f"{target!r}."
        )
    scores = np.asarray(scores, dtype=np.float64)
    raw = TARGETS[target].forward(scores)
    offset, scale = float(raw.mean()), float(raw.std())
    if not scale > 0.0:
        raise ValueError("Expected plans of different scores to fit a surrogate to.")
    warped = [_warped(warp, d.choices) for d in decisions]
    spreads = [float(row[column].std()) or 1.0 for row, column in zip(warped, plans.T, strict=True)]
    unit = [row / spread for row, spread in zip(warped, spreads, strict=True)]
    order = np.random.default_rng(seed).permutation(len(plans))[:n_fit]
    kernel = _likeliest(located(unit, plans[order]), (raw[order] - offset) / scale)
    smooth, rough, noise = kernel.k1.k1, kernel.k1.k2, kernel.k2
    lengths = np.broadcast_to(smooth.k2.length_scale, len(decisions))
    settings = SurrogateSettings(
        coordinates=tuple(
            tuple(float(x) for x in row / length) for row, length in zip(unit, lengths, strict=True)
        ),
        amplitude=float(smooth.k1.constant_value),
        rough_amplitude=float(rough.k1.constant_value),
        rough_length=float(rough.k2.length),
        target=target,
        offset=offset,
        scale=scale,
    )
    return SurrogateModel(settings, warp, float(noise.noise_level))


def _likeliest(places: Array, targets: Array) -> Any:
    """The kernel of the largest marginal likelihood."""
    smooth = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(
        np.full(places.shape[1], 3.0), (1e-1, 1e3), nu=2.5
    )
    rough = ConstantKernel(0.01, (1e-6, 10.0)) * HammingKernel(2.0)
    noise = WhiteKernel(0.03, (_SMALLEST_NOISE, 1.0))
    process = GaussianProcessRegressor(smooth + rough + noise, random_state=0)
    with warnings.catch_warnings():
        # A decision that hardly matters has its length scale at the bound, as it should be.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(places, targets)
    return process.kernel_

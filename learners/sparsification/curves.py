"""Output error and loss increase by density, from Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import nn

from amc_compress.learners.candidates.gradient_scores import (
    Scores,
    curvature_root,
    falling,
    rise_from_weights,
    weight_fisher,
)
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.sparsification.building import weight_of
from amc_compress.learners.sparsification.fitted import FittedWeights
from amc_compress.learners.sparsification.refit import relative_error
from amc_compress.learners.tasks.inputs import Split
from amc_compress.learners.tasks.task import Task
from amc_env.plan import Decision

_POINTS = 10


def layer_errors(
    decisions: Sequence[Decision],
    network: nn.Module,
    layers: Mapping[str, LayerReconstruction],
    fitted: FittedWeights,
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns decision key -> the share of its output energy that a layer loses at every choice.

    Args:
        decisions: Densities.
        network: The original.
        layers: Moments of the inputs; layers without lose their share of squared weights.
        fitted: Solves.
    """

    def error(name: str, keep: int) -> float:
        if name in layers:
            return relative_error(layers[name], fitted.solve(name, keep)[0])
        weight = weight_of(network, name)
        lost = weight[~fitted.mask(name, keep)].double().square().sum()
        return float(lost / weight.double().square().sum().clamp(min=1e-30))

    return {d.key: _curve(d, partial(error, d.target)) for d in decisions}


def gradient_scores(
    decisions: Sequence[Decision],
    network: nn.Module,
    layers: Mapping[str, LayerReconstruction],
    fitted: FittedWeights,
    batches: Sequence[Split],
    task: Task,
    restores_mean: Callable[[str], bool],
) -> Scores:
    """Returns decision key -> the estimated rise of the loss at every choice, in nats.

    By equation (1) of ``gradient_scores`` for the change of the weights, the re-fit
    included; layers without moments or gradients by equation (2) for the weights set to zero.

    Args:
        decisions: Densities.
        network: The original.
        layers: Moments of the inputs.
        fitted: Solves.
        batches: Calibration inputs and their targets.
        task: Whose loss it is.
        restores_mean: Whether the mean of a layer's outputs is restored.
    """
    wanted = [d.target for d in decisions if d.target in layers]
    roots = curvature_root(network, batches, wanted, task)
    rest = [d.target for d in decisions if d.target not in roots]
    fisher = weight_fisher(network, batches, [f"{name}.weight" for name in rest], task)
    energies = {
        name: 0.5 * fisher[f"{name}.weight"] * weight_of(network, name).double().square()
        for name in rest
    }

    def rise(name: str, keep: int) -> float:
        if name not in roots:
            return float(energies[name][~fitted.mask(name, keep)].sum())
        weight = fitted.solve(name, keep)[0]
        return rise_from_weights(
            roots[name], layers[name], weight, mean_restored=restores_mean(name)
        )

    return {d.key: _curve(d, partial(rise, d.target)) for d in decisions}


def _curve(decision: Decision, error: Callable[[int], float]) -> npt.NDArray[np.float64]:
    """Returns the errors at all choices; 0 where all weights stay.

    Solved at ten densities in equal ratios, interpolated between them; never rising.

    Args:
        decision: The layer's decision.
        error: Number of weights that stay -> error.
    """
    choices = np.array(decision.choices)
    requested = np.geomspace(choices[0], 1.0, min(_POINTS, len(choices)))
    places = np.unique([np.abs(choices - request).argmin() for request in requested])
    errors = np.zeros(len(places))
    for index, place in enumerate(places):
        keep = decision.units(choices[place])
        if keep < decision.size:
            errors[index] = error(keep)
    # More weights by magnitude are a superset, so that only rounding could make an error rise.
    curve: npt.NDArray[np.float64] = np.interp(choices, choices[places], falling(errors))
    return curve

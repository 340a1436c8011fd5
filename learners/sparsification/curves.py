"""What a density costs the layer's own output, from the Gram matrices alone."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from amc_env.plan import Decision
from learners.channel_pruning.reconstruction import LayerReconstruction
from learners.sparsification.fitted import FittedWeights
from learners.sparsification.refit import relative_error

_POINTS = 10


def error_curve(
    decision: Decision,
    weight: Tensor,
    layer: LayerReconstruction | None,
    fitted: FittedWeights,
) -> np.ndarray:
    """Returns the share of its output energy that a layer loses at every choice.

    Solved at ten densities in equal ratios, interpolated between them; never rising.

    Args:
        decision: The layer's decision.
        weight: Its original weight.
        layer: Its moments; without them the share of squared weights lost is returned.
        fitted: Solves.

    Returns:
        Shape (choices,).
    """
    choices = np.array(decision.choices)
    wished = np.geomspace(choices[0], 1.0, min(_POINTS, len(choices)))
    places = np.unique([np.abs(choices - wish).argmin() for wish in wished])
    errors = np.zeros(len(places))
    for index, place in enumerate(places):
        keep = decision.units(choices[place])
        if keep == decision.size:
            continue
        if layer is not None:
            errors[index] = relative_error(layer, fitted.solve(decision.target, keep)[0])
        else:
            lost = weight[~fitted.mask(decision.target, keep)].double().square().sum()
            errors[index] = float(lost / weight.double().square().sum().clamp(min=1e-30))
    # More weights by magnitude are a superset, so that only rounding could make an error rise.
    falling = np.maximum.accumulate(errors[::-1])[::-1]
    curve: np.ndarray = np.interp(choices, choices[places], falling)
    return curve

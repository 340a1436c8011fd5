"""Least-squares re-fit of the weights that stay, every output on its own support.

With ``Y = X W^T`` of the original layer and the support ``m`` of one output row ``w``,

    min_w' ||X_m w' - y||^2 + lambda ||w' - w_m||^2
    (G_mm + lambda I) w' = (G w)_m + lambda w_m,        G = X^T X,  lambda = ridge tr(G)/n

(He et al. 2017, equation 5, for single weights instead of channels). No two rows have the same
``G_mm``, so that there is no factor to share; instead all rows are solved at once by conjugate
gradients on ``p -> mask * (p G) + lambda p``, one matrix product per iteration, preconditioned with
the diagonal. The error of the outputs falls with every iteration, so stopping early is safe.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.candidates.second_order.means import bias_for

_MAX_ITERATIONS = 50
_MIN_ITERATIONS = 5
# Of one fit, a few seconds: only layers of more than 1,000 columns have less than 50 iterations.
_MULTIPLICATIONS = 5e10
TOLERANCE = 1e-4
"""Stop when an iteration gains less than this share of all that was gained."""


def refit(
    layer: LayerReconstruction,
    mask: Tensor,
    *,
    iterations: int | None = None,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, Tensor | None]:
    """Returns the re-fitted ``(weight, bias)`` of a masked layer.

    Args:
        layer: The original weights and the moments of the layer's inputs.
        mask: Which weights stay, bool, the shape of the layer's weight.
        iterations: Of conjugate gradients, at most; ``None`` for 50, fewer in very wide layers.
        tolerance: See :data:`TOLERANCE`.

    Returns:
        The weight, zero where the mask is false, and the bias that goes with it (for a layer
        without one what the following batch norm takes, see ``write_layer``; else ``None``).
    """
    original = layer.weight
    stays = layer.matrix(mask)
    gram = layer.gram  # of a large network made anew whenever it is asked for
    damping = (layer.ridge * gram.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=1e-12)
    damping = damping.view(-1, 1, 1)
    weight = original * stays
    # The damping pulls towards the original, where the search starts: no term of it yet.
    residual = (layer.target.transpose(1, 2) - weight @ gram) * stays
    scale = (gram.diagonal(dim1=1, dim2=2).unsqueeze(1) + damping).reciprocal()
    step = z = residual * scale
    power = (residual * z).sum(2, keepdim=True)
    gained = 0.0
    for _ in range(_affordable(layer) if iterations is None else iterations):
        product = (step @ gram) * stays + damping * step
        curvature = (step * product).sum(2, keepdim=True)
        # The damping alone curves as much as this. Less: the row is solved, or rounding has made
        # the Gram matrix indefinite, and along such a direction there is no minimum to step to.
        least = 0.5 * damping * step.square().sum(2, keepdim=True)
        length = torch.where(curvature > least, power / curvature, 0.0)
        weight = weight + length * step
        residual = residual - length * product
        gain = (length * power).sum().item()
        gained += gain
        if gain <= tolerance * gained:
            break
        z = residual * scale
        before, power = power, (residual * z).sum(2, keepdim=True)
        step = z + torch.where(before > 0.0, power / before, 0.0) * step
    bias = bias_for(layer, original - weight)
    return layer.form.stored(weight.reshape(layer.shape)).float(), bias


def _affordable(layer: LayerReconstruction) -> int:
    """Returns iterations, at least five: on ResNet-20 these are within 6% of the least error."""
    of_one = layer.weight.numel() * layer.weight.shape[2]
    return int(min(max(_MULTIPLICATIONS / of_one, _MIN_ITERATIONS), _MAX_ITERATIONS))


def relative_error(layer: LayerReconstruction, weight: Tensor) -> float:
    """Returns ``||Y - X W'^T||^2 / ||Y||^2`` on the sampled rows, at least 0.

    Layers with an intercept count the variation of ``Y`` around its mean only.

    Args:
        layer: The original weights and moments.
        weight: The new weight, as the layer stores it.
    """
    if layer.energy <= 0.0:
        return 0.0
    lost = layer.weight - layer.matrix(weight)
    return max(0.0, ((lost @ layer.gram) * lost).sum().item() / layer.energy)

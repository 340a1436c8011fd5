"""Loss increase by quantizing one layer, estimated from gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.gradient_scores import (
    Scores,
    curvature_root,
    falling,
    output_rows,
    rise_from_covariance,
)
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.quantization.errors import watch_changes
from amc_env.plan import Decision

_IMAGES = 64


def gradient_scores(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    decisions: Sequence[Decision],
    quantizers: Mapping[str, Sequence[Quantizer | None]],
    matched: Collection[str],
) -> Scores:
    """Returns decision key -> the estimated rise of the loss for every choice, in nats.

    By equation (1) of ``gradient_scores`` with what really changes of the outputs of 64
    images, by the weights or by the inputs. 0 for layers without a gradient: nothing of
    them reaches the loss.

    Args:
        network: The folded float network in ``eval`` mode.
        images: Calibration images, on its device.
        labels: Their classes.
        decisions: What is decided.
        quantizers: Decision key -> quantizer per choice; ``None`` leaves the tensor in float.
        matched: Layers whose outputs get the float network's means back, where they have a bias.
    """
    roots = curvature_root(network, [(images, labels)], dict.fromkeys(d.target for d in decisions))
    changes: dict[tuple[str, int], _Moments] = {}

    def measure(
        d: Decision, index: int, layer: nn.Module, _outputs: Tensor, change: Tensor
    ) -> None:
        moments = changes.setdefault((d.key, index), _Moments())
        moments.add(output_rows(layer, change.float()).flatten(0, 1))

    watch_changes(network, images[:_IMAGES], decisions, quantizers, measure)
    modules = dict(network.named_modules())
    curves = {d.key: np.zeros(len(d.choices)) for d in decisions}
    for d in decisions:
        centred = d.target in matched and modules[d.target].bias is not None
        for index in range(len(d.choices)):
            if (d.key, index) in changes and d.target in roots:
                covariance = changes[d.key, index].covariance(centred)
                curves[d.key][index] = rise_from_covariance(roots[d.target], covariance)
    return {key: falling(curve) for key, curve in curves.items()}


class _Moments:
    """Sums over rows of their outer products and of themselves."""

    def __init__(self) -> None:
        self._rows = 0
        self._products: Tensor | float = 0.0
        self._sums: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """Adds rows, shape (n, outputs)."""
        self._rows += len(rows)
        self._products = self._products + (rows.T @ rows).double()
        self._sums = self._sums + rows.double().sum(0)

    def covariance(self, centred: bool) -> Tensor:
        """Returns the mean outer product, of the rows minus their mean if ``centred``."""
        assert isinstance(self._products, Tensor)
        assert isinstance(self._sums, Tensor)
        second, mean = self._products / self._rows, self._sums / self._rows
        return second - torch.outer(mean, mean) if centred else second

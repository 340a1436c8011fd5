"""The accuracy of quantized candidates on preloaded validation images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.evaluator import channels_last, fusion_works, settled_dtype
from amc_compress.learners.candidates.fusion import fuse
from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.layers.structure import bake, without_identities
from amc_compress.learners.numerics.layout import layout_of
from amc_compress.learners.numerics.precision import resolve_precision


class QuantizedEvaluator:
    """Evaluates as fast as a candidate allows.

    With float activations in the type that ``precision`` says. Quantized activations are evaluated
    in float32 under ``"auto"``: bfloat16 rounds a second time, which moves few-bit activations to
    other values (0.7 points of accuracy at 4 bits on ResNet-20).

    Args:
        reference: The original network, in ``eval`` mode.
        candidate: A quantized network of the most bits.
        of_weights: The same with float activations.
        held_out: The validation images.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        device: Where to work.
        layout: Of images and weights, see ``layout``; tried on ``reference`` if ``None``.

    Attributes:
        original_accuracy: Of the original on the images of an episode.
    """

    def __init__(
        self,
        reference: nn.Module,
        candidate: nn.Module,
        of_weights: nn.Module,
        held_out: HeldOut,
        *,
        precision: str,
        device: torch.device,
        layout: torch.memory_format | None = None,
    ) -> None:
        self._held_out = held_out
        self._dtype = resolve_precision(precision, device)
        self._exact = torch.float32 if precision == "auto" else self._dtype
        probe = held_out.first(8).to(device)
        layout = layout or layout_of(reference, probe[:1])
        # The structure is compared with float activations: a rounding difference that moves an
        # activation to its next value is not an error. What is fused computes channels last.
        fused = (
            layout == torch.channels_last
            and fusion_works(reference, probe, self._dtype)
            and fusion_works(without_identities(bake(of_weights)), probe, self._dtype)
            and _runs_fused(without_identities(bake(candidate)), probe)
        )
        self._dtype = settled_dtype([reference], probe, self._dtype, fused=fused, layout=layout)
        dtypes = {self._dtype, self._type_for(candidate)}
        held_out.settle(dtypes, device=device, fused=fused, layout=layout)
        self.original_accuracy = self.accuracy(reference)

    def accuracy(self, network: nn.Module, *, full: bool = False) -> float:
        """Returns the share of images classified correctly, in [0, 1].

        Args:
            network: The original or a quantized one, in ``eval`` mode.
            full: On all validation images instead of ``n_validation``.

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        ready = without_identities(bake(network)) if quantized_layers(network) else network
        return self._held_out.accuracy(ready, self._type_for(network), full=full)

    def _type_for(self, network: nn.Module) -> torch.dtype:
        """Returns the type that a network is evaluated in."""
        layers = quantized_layers(network).values()
        sees_codes = any(layer.input_quantizer is not None for layer in layers)
        return self._exact if sees_codes else self._dtype


def _runs_fused(candidate: nn.Module, probe: Tensor) -> bool:
    """Whether a network with quantized activations runs fused, and near what it should be."""
    try:
        with torch.inference_mode():
            expected = candidate(probe)
            found = fuse(candidate, torch.float32)(channels_last(probe))
    except Exception:
        # As in ``candidates.fusion_works``: there are as many ways to fail as networks.
        return False
    return bool((found - expected).norm() <= 0.05 * expected.norm())

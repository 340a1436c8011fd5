"""The accuracy of quantized candidates on preloaded validation images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learners.candidates import Evaluator, channels_last, fusion_works, settled_dtype
from learners.fusion import fuse
from learners.layout import layout_of
from learners.precision import resolve_precision
from learners.quantization.modules import quantized_layers
from learners.quantization.structure import bake, without_identities


class QuantizedJudge:
    """Judges as fast as a candidate allows.

    With float activations in the type that ``precision`` says. Quantized activations are judged in
    float32 under ``"auto"``: bfloat16 rounds a second time, which moves few-bit activations to
    other values (0.7 points of accuracy at 4 bits on ResNet-20).

    Args:
        reference: The original network, in ``eval`` mode.
        candidate: A quantized network of the most bits.
        of_weights: The same with float activations.
        images: All validation images.
        labels: Their classes.
        n_validation: Images that judge an episode, a fixed random subset; all if ``None``.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        device: Where to work.
        seed: Draws the subset.
        layout: Of images and weights, see ``learners.layout``; tried on ``reference`` if ``None``.

    Attributes:
        original_accuracy: Of the original on the images of an episode.
        validation: All images in batches, float32.
    """

    def __init__(
        self,
        reference: nn.Module,
        candidate: nn.Module,
        of_weights: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        n_validation: int | None,
        precision: str,
        device: torch.device,
        seed: int,
        layout: torch.memory_format | None = None,
    ) -> None:
        self._device = device
        self._dtype = resolve_precision(precision, device)
        self._exact = torch.float32 if precision == "auto" else self._dtype
        order = torch.randperm(images.shape[0], generator=torch.Generator().manual_seed(seed))
        self._images, self._labels = images[order], labels[order]
        self._n = images.shape[0] if n_validation is None else min(n_validation, images.shape[0])
        self._evaluators: dict[tuple[torch.dtype, bool], Evaluator] = {}
        pairs = zip(torch.split(self._images, 250), torch.split(self._labels, 250), strict=True)
        self.validation: list[tuple[Tensor, Tensor]] = list(pairs)
        probe = self._images[:8].to(device)
        self._layout = layout or layout_of(reference, probe[:1])
        # The structure is compared with float activations: a rounding difference that moves an
        # activation to its next value is not an error. What is fused computes channels last.
        self._fused = (
            self._layout == torch.channels_last
            and fusion_works(reference, probe, self._dtype)
            and fusion_works(without_identities(bake(of_weights)), probe, self._dtype)
            and _runs_fused(without_identities(bake(candidate)), probe)
        )
        self._dtype = settled_dtype(
            [reference], probe, self._dtype, fused=self._fused, layout=self._layout
        )
        self.original_accuracy = self.accuracy(reference)

    def accuracy(self, network: nn.Module, *, full: bool = False) -> float:
        """Returns the share of images classified correctly, in [0, 1].

        Args:
            network: The original or a quantized one, in ``eval`` mode.
            full: On all validation images instead of ``n_validation``.

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        layers = quantized_layers(network)
        sees_codes = any(layer.input_quantizer is not None for layer in layers.values())
        dtype = self._exact if sees_codes else self._dtype
        ready = without_identities(bake(network)) if layers else network
        first = self._evaluator(dtype, rest=False)
        accuracy = first.accuracy(ready)
        if not full or self._n == self._images.shape[0]:
            return accuracy
        rest = self._evaluator(dtype, rest=True)
        right = round(accuracy * first.n_images) + round(rest.accuracy(ready) * rest.n_images)
        return right / (first.n_images + rest.n_images)

    def _evaluator(self, dtype: torch.dtype, *, rest: bool) -> Evaluator:
        """Returns what judges on the first images or on the others; preloaded when first asked."""
        if (dtype, rest) not in self._evaluators:
            part = slice(self._n, None) if rest else slice(None, self._n)
            self._evaluators[dtype, rest] = Evaluator(
                self._images[part],
                self._labels[part],
                dtype=dtype,
                device=self._device,
                fused=self._fused,
                layout=self._layout,
            )
        return self._evaluators[dtype, rest]


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

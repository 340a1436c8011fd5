"""A judge of finished networks of any kind: sliced, quantized or both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learners.candidates import Evaluator, fusion_works, limited_threads
from learners.precision import resolve_precision
from learners.quantization.modules import quantized_layers
from learners.quantization.structure import bake


class CandidateJudge:
    """Top-1 accuracy on preloaded validation images, as fast as the network allows.

    Quantized weights are worked out once per network. Networks that quantize their activations
    are judged in float32 under ``"auto"``: bfloat16 would round in other places than the shipped
    network does.

    Args:
        original: The uncompressed network.
        smallest: A candidate with everything compressed that can be; tells whether candidates can
            be fused.
        images: All validation images, shape (n, ...).
        labels: Their classes, shape (n,).
        n_validation: Images that judge inside an episode, a fixed random subset; all if ``None``.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        device: Where to work.
        seed: Draws the subset, the same one as in every learner.
        threads: Threads while judging; ``None`` leaves PyTorch's setting alone.

    Attributes:
        original_accuracy: Of the uncompressed network on the images of an episode.
        validation: All images in batches, in float32.
    """

    def __init__(
        self,
        original: nn.Module,
        smallest: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        n_validation: int | None = 3000,
        precision: str = "auto",
        device: str | torch.device = "cpu",
        seed: int = 0,
        threads: int | None = 1,
    ) -> None:
        self._device = torch.device(device)
        self._dtype = resolve_precision(precision, self._device)
        self._exact = torch.float32 if precision == "auto" else self._dtype
        self._threads = threads
        order = torch.randperm(images.shape[0], generator=torch.Generator().manual_seed(seed))
        self._images, self._labels = images[order], labels[order]
        self._n = images.shape[0] if n_validation is None else min(n_validation, images.shape[0])
        self._evaluators: dict[tuple[torch.dtype, bool], Evaluator] = {}
        pairs = zip(torch.split(self._images, 250), torch.split(self._labels, 250), strict=True)
        self.validation: list[tuple[Tensor, Tensor]] = list(pairs)
        probe = self._images[:8].to(self._device)
        with limited_threads(threads):
            self._fused = all(
                fusion_works(network, probe, self._dtype if network is original else self._exact)
                for network in (original, bake(smallest))
            )
        self.original_accuracy = self.accuracy(original)

    def accuracy(self, network: nn.Module, *, full: bool = False) -> float:
        """Returns the share of images classified correctly, in [0, 1].

        Args:
            network: In ``eval`` mode; not changed.
            full: On all validation images instead of ``n_validation``.

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        layers = quantized_layers(network)
        sees_codes = any(layer.input_quantizer is not None for layer in layers.values())
        dtype = self._exact if sees_codes else self._dtype
        with limited_threads(self._threads):
            ready = bake(network) if layers else network
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
            )
        return self._evaluators[dtype, rest]

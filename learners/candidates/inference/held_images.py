"""The accuracy of many candidate networks on the same images, as fast as the machine allows.

Images are normalised, laid out channels-last and converted once. A candidate is traced and fused
(``fusion.py``) in milliseconds; networks that ``torch.fx`` cannot trace run as they are. Which of
both is used is settled once, on the original network and its smallest slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.inference.fusion import fuse
from amc_compress.learners.numerics.layout import (
    laid_out,
    layout_name,
    layout_named,
    owned,
    set_layout,
)
from amc_compress.learners.numerics.precision import autocast, hides_in_rounding
from amc_env.errors import TrainingDivergedError

EVALUATION_BATCH = 125  # 100 to 500 are equally fast on ResNet-20; larger ones leave the cache


LARGEST_ROUNDING = 0.1
"""How far outputs in bfloat16 may be from float32, relative to their norm, to be used."""


def channels_last(images: Tensor) -> Tensor:
    """Returns images of any dimension, 4-d ones in channels-last layout."""
    return laid_out(images)


class HeldImages:
    """Top-1 accuracy on preloaded images.

    Args:
        images: Normalised float32 images, shape (n, ...).
        labels: Their classes, int64, shape (n,).
        dtype: Type to compute in.
        device: Where to compute.
        batch_size: Images per forward pass.
        fused: Whether to fuse candidates; see :func:`fusion_works`.
        layout: Of images and weights; see ``amc_compress.learners.numerics.layout``.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int = EVALUATION_BATCH,
        fused: bool = True,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.dtype = dtype
        self._layout = layout_name(layout)
        self.device = device
        self.fused = fused
        self.n_images = images.shape[0]
        self._labels = owned(labels.to(device))
        self._images = [
            owned(laid_out(part.to(device, dtype), layout)) for part in _equal(images, batch_size)
        ]

    @property
    def layout(self) -> torch.memory_format:
        """Of images and weights."""
        return layout_named(self._layout)

    def logits(self, network: nn.Module) -> Tensor:
        """Returns the outputs for all images as float32, shape (n, classes).

        Where rounding to ``dtype`` would decide what a network says, it computes in float32.
        """
        with torch.inference_mode():
            exact = self.dtype == torch.bfloat16 and hides_in_rounding(network)
            dtype = torch.float32 if exact else self.dtype
            function = (
                compiled(network, dtype, self.layout) if self.fused else eager(network, self.layout)
            )
            with autocast(dtype, self.device):
                outputs = [function(images.to(dtype)).float() for images in self._images]
        return torch.cat(outputs)[: self.n_images]

    def accuracy(self, network: nn.Module) -> float:
        """Returns the share of images classified correctly, in [0, 1].

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        outputs = self.logits(network)
        if not outputs.isfinite().all():
            raise TrainingDivergedError(
                "Expected finite network outputs, got NaN or infinite ones on the validation "
                "images; check the weights, or evaluate with precision='fp32'."
            )
        return int((outputs.argmax(1) == self._labels).sum().item()) / self.n_images


def _equal(images: Tensor, batch_size: int) -> list[Tensor]:
    """Splits images into batches of one size; the last repeats the first images if need be.

    A kernel is proved for a batch's size: a smaller rest would have to be proved again.
    """
    n = images.shape[0]
    count = max(1, -(-n // batch_size))
    size = -(-n // count)
    missing = size * count - n
    parts = list(torch.split(images, size)) if n else [images]
    parts[-1] = torch.cat((parts[-1], images[:missing])) if missing else parts[-1]
    return parts


def compiled(
    network: nn.Module, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last
) -> Callable[[Tensor], Tensor]:
    """Fuses a network in ``eval`` mode for inference, or returns it where that fails."""
    network.eval()
    try:
        return fuse(network, dtype)
    except Exception:
        # The original and its smallest slice could be fused; should some slice in between be
        # different, its accuracy is worth more than the milliseconds.
        return eager(network, layout)


def fusion_works(model: nn.Module, images: Tensor, dtype: torch.dtype) -> bool:
    """Tries the fused original on a few images against the network itself.

    The structure is compared in float32, where only a wrong fusion makes a difference; in
    ``dtype`` the result has to be finite.

    Args:
        model: The original network in ``eval`` mode.
        images: A handful of real images, float32.
        dtype: Type to compute in.
    """
    try:
        with torch.inference_mode():
            expected = model(images)
            found = fuse(model, torch.float32)(channels_last(images))
            function = fuse(model, dtype)
            with autocast(dtype, images.device):
                rounded = function(channels_last(images.to(dtype)))
    except Exception:
        # Tracing may fail in as many ways as there are networks; the eager path takes them all.
        return False
    if found.shape != expected.shape or rounded.shape != expected.shape:
        return False
    scale = expected.abs().max().clamp(min=1e-6)
    close = ((found - expected).abs() <= 1e-3 * scale).all()
    return bool(close and rounded.isfinite().all())


def settled_dtype(
    networks: Sequence[nn.Module],
    images: Tensor,
    dtype: torch.dtype,
    *,
    fused: bool,
    layout: torch.memory_format = torch.channels_last,
) -> torch.dtype:
    """Returns ``dtype`` if networks compute in it twice the same, and near float32; else float32.

    Each kernel is proved for its shapes when it is first used. This looks at whole networks: at
    rounding that adds up, and at operators that are not proved.

    Args:
        networks: The original and narrow candidates of it: kernels for few channels fail first.
        images: A handful of real images, float32.
        dtype: What to compute in.
        fused: Whether networks are fused; see :func:`fusion_works`.
        layout: Of images and weights; see ``amc_compress.learners.numerics.layout``.
    """
    if dtype == torch.float32:
        return dtype
    for network in networks:
        with torch.inference_mode():
            exact = eager(network, layout)(laid_out(images, layout))
            function = compiled(network, dtype, layout) if fused else eager(network, layout)
            found = []
            for _ in range(2):
                with autocast(dtype, images.device):
                    found.append(function(laid_out(images.to(dtype), layout)).float())
            near = (found[0] - exact).norm() <= LARGEST_ROUNDING * exact.norm()
            if not (torch.equal(*found) and near):
                return torch.float32
    return dtype


def eager(
    network: nn.Module, layout: torch.memory_format = torch.channels_last
) -> Callable[[Tensor], Tensor]:
    """Returns the network itself, in ``eval`` mode and the given layout."""
    set_layout(network, layout)
    return network.eval()

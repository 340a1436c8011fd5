"""Silero's voice activity detector from the wheel ``silero-vad``, and sounds to hear.

The network for 16 kHz: a Fourier transform as a convolution, four convolutions along time, an LSTM
over frames of 32 ms::

    pip install --no-deps silero-vad

In Python::

    from amc_compress import compress
    from amc_compress.recipes.wheels import silero

    train, validation, test = silero.sounds()
    result = compress(
        silero.network(), train, validation, test=test, task="multilabel",
        metric=silero.frame_accuracy, budget="macs=0.5",
    )
"""

from __future__ import annotations

import math
from collections.abc import Callable

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_compress.recipes.wheels.files import find

_RATE, _FRAME, _CONTEXT = 16000, 512, 64
_FRAMES = 16  # of one sound, half a second
_BINS = 129

_VOWELS = (
    (730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410),
)  # fmt: skip
"""The first three resonances of men's vowels in Hz (Peterson and Barney 1952)."""

Batches = list[tuple[Tensor, Tensor]]


class Silero(nn.Module):
    """The network over a whole sound; returns the logit of speech in each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _BINS, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(_BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final = nn.Linear(128, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Returns logits (N, frames) of sounds (N, frames, 576), each frame with its context."""
        x = functional.pad(frames.flatten(0, 1), (0, _CONTEXT), mode="reflect")
        x = self.stft_conv(x[:, None])
        power = x[:, :_BINS].square() + x[:, _BINS:].square()
        x = power.clamp(min=1e-12).sqrt()  # silence, in 8 bits exactly 0, has no gradient
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        x, _ = self.lstm(x.squeeze(-1).unflatten(0, (-1, frames.shape[1])))
        logits: Tensor = self.final(x.relu()).squeeze(-1)
        return logits


def network() -> nn.Module:
    """Returns the trained network."""
    path = find("silero_vad", "data/silero_vad_16k.safetensors", "silero-vad")
    weights = safetensors.torch.load_file(path)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        weights[f"lstm.{name}_l0"] = weights.pop(f"lstm_cell.{name}")
    weights["final.weight"] = weights.pop("final_conv.weight").squeeze(-1)
    weights["final.bias"] = weights.pop("final_conv.bias")
    model = Silero()
    model.load_state_dict(weights)
    return model.eval()


def sounds(batch_size: int = 32, seed: int = 0) -> tuple[Batches, Batches, Batches]:
    """Returns sounds with 1 for each frame of speech: to train on, to validate and to test.

    Speech is sung by a simple voice, pulses through the resonances of vowels that change from
    syllable to syllable, for some of the time; everything is in noise.
    """
    counts = (512, 256, 512)
    return tuple(_batches(n, batch_size, 3 * seed + i) for i, n in enumerate(counts))  # type: ignore[return-value]


def _batches(count: int, size: int, seed: int) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    made = [_sound(generator) for _ in range(count)]
    waves = torch.stack([wave for wave, _ in made])
    speech = torch.stack([labels for _, labels in made])
    frames = waves.unfold(1, _FRAME + _CONTEXT, _FRAME)
    return list(zip(torch.split(frames, size), torch.split(speech, size), strict=True))


def _sound(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns samples (64 + 16 * 512,) and labels (16,)."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    length = _CONTEXT + _FRAMES * _FRAME
    wave = 10.0 ** between(-3.5, -2.0) * torch.randn(length, generator=generator)
    labels = torch.zeros(_FRAMES)
    if between(0.0, 1.0) < 0.7:
        first = int(between(0.0, _FRAMES - 4.0))
        last = int(between(first + 4.0, _FRAMES + 1.0))
        labels[first:last] = 1.0
        start, stop = _CONTEXT + first * _FRAME, _CONTEXT + last * _FRAME
        voice = _voice(stop - start, between, generator)
        wave[start:stop] += 10.0 ** between(-1.3, -0.5) * voice
    return wave, labels


def _voice(
    length: int, between: Callable[[float, float], float], generator: torch.Generator
) -> Tensor:
    """Returns syllables of one voice, of mean square 1."""
    time = torch.arange(length) / _RATE
    pitch = between(90.0, 260.0) * (
        1.0 + 0.08 * torch.sin(2.0 * math.pi * between(1.0, 4.0) * time)
    )
    phase = (pitch / _RATE).cumsum(0)
    source = (phase.frac() < 0.08).float() - 0.08 + 0.02 * torch.randn(length, generator=generator)
    found = torch.zeros(length)
    syllable = int(between(0.12, 0.25) * _RATE)
    frequencies = torch.fft.rfftfreq(length, 1.0 / _RATE)
    for start in range(0, length, syllable):
        vowel = _VOWELS[int(between(0.0, len(_VOWELS)))]
        gains = 1.0 / (1.0 + (frequencies / 500.0) ** 1.0)
        shape = sum(
            1.0 / (1.0 + ((frequencies - centre) / width) ** 2)
            for centre, width in zip(vowel, (60.0, 90.0, 150.0), strict=True)
        )
        sung = torch.fft.irfft(torch.fft.rfft(source) * gains * shape, n=length)
        part = slice(start, min(start + syllable, length))
        rise = torch.linspace(0.0, math.pi, part.stop - part.start).sin().clamp(min=0.0).sqrt()
        found[part] = sung[part] * rise
    return found / found.square().mean().sqrt().clamp(min=1e-6)


def frame_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the frames of which the network says rightly whether there is speech.

    Args:
        outputs: Logits (N, frames).
        targets: 1 for speech (N, frames).
    """
    return ((outputs > 0.0) == (targets > 0.5)).double().mean()


frame_accuracy.higher_is_better = True  # type: ignore[attr-defined]
frame_accuracy.plot_upper_bound = 1.0  # type: ignore[attr-defined]

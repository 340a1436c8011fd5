"""Calibration: layer statistics of the float network, and matching to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from amc_compress.learners.candidates.proxy import batch_norms, recalibrate
from amc_compress.learners.layers.bit_layers import (
    along,
    bit_layer,
    channel_axis,
    weight_axis,
)
from amc_compress.learners.layers.quantized import QuantizedLayer, quantized_layers
from amc_compress.learners.numerics.precision import autocast
from amc_compress.learners.tasks.inputs import (
    Inputs,
    ask,
    counted_rows,
    device_of,
    hooked,
    mask_of,
)
from amc_env.errors import InputDataError
from amc_env.support.progress import no_bar

SAMPLE = 32_768  # numbers per layer from which activation ranges are found
_LARGEST_RESCALING = 2.0  # beyond that the channel is noise, and its std says nothing


@dataclass
class LayerInputs:
    """Inputs of a layer: exact extremes, a random sample, numbers of one image."""

    low: float
    high: float
    sample: Tensor
    numbers: int


@dataclass(frozen=True)
class LayerOutputs:
    """Mean and standard deviation of every output channel, shape (channels,)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Observation:
    """Inputs and outputs of the layers that ran; ``calls`` says of all how often per batch.

    Of layers whose input gets no bits there are only the calls.
    """

    inputs: Mapping[str, LayerInputs]
    outputs: Mapping[str, LayerOutputs]
    calls: Mapping[str, int]
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    """Norm -> mean of what it reads, of the sums that are matched in place of outputs."""

    def once(self) -> dict[str, LayerOutputs]:
        """Returns the outputs of the layers that run once, which can be matched."""
        return {name: seen for name, seen in self.outputs.items() if self.calls[name] == 1}


def _channel_rows(outputs: Tensor, layer: nn.Module, mask: Tensor | None) -> Tensor:
    """Returns what a layer emits at all places that are no padding, float32 (rows, channels)."""
    return counted_rows(outputs.float().movedim(channel_axis(layer, outputs), -1), mask)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of every column."""
    mean = rows.mean(0)
    # A sixth of the time of torch.var_mean, which is slow along the outer axis.
    return mean, (rows - mean).square_().mean(0)


class _Watch:
    """Collects over batches what one layer sees and emits; of some only how often they run."""

    def __init__(self, name: str, per_batch: int, seed: int, has_input: bool = True) -> None:
        self.name = name
        self.has_input = has_input
        self.per_batch = per_batch
        self.generator = torch.Generator().manual_seed(seed)
        self.samples: list[Tensor] = []
        self.low, self.high = float("inf"), float("-inf")
        self.weight = 0
        self.mean = self.square = torch.zeros(())
        self.calls = 0
        self.numbers = 0
        self.mask: Tensor | None = None
        """Of the tokens of the batch that is run."""

    def __call__(
        self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], out: Any
    ) -> None:
        self.calls += 1
        if self.has_input:
            self._take_in(next(iter((*args, *kwargs.values()))).detach())
            if isinstance(out, Tensor):
                self._take_out(layer, out.detach())

    def _take_in(self, x: Tensor) -> None:
        self.numbers = max(self.numbers, x[0].numel())
        if self.mask is not None:
            x = counted_rows(x, self.mask)
        low, high = (float(v) for v in x.aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise InputDataError(
                f"Expected finite inputs of layer {self.name!r} on the calibration images, got "
                f"NaN or infinite ones; check the weights before it."
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = x.reshape(-1)
        where = torch.randint(flat.shape[0], (self.per_batch,), generator=self.generator)
        self.samples.append(flat[where.to(flat.device)].float())

    def _take_out(self, layer: nn.Module, outputs: Tensor) -> None:
        rows = _channel_rows(outputs, layer, self.mask)
        mean, variance = _moments(rows)
        count = len(outputs) if self.mask is None else len(rows)
        self.mean = self.mean + mean * count
        self.square = self.square + (variance + mean**2) * count
        self.weight += count

    def inputs(self) -> LayerInputs:
        return LayerInputs(self.low, self.high, torch.cat(self.samples), self.numbers)

    def outputs(self) -> LayerOutputs:
        mean = self.mean / self.weight
        variance = (self.square / self.weight - mean**2).clamp(min=0)
        return LayerOutputs(mean, variance.sqrt())


def _behind(
    hooks: Iterable[tuple[nn.Module, Callable[..., Tensor | None]]],
) -> AbstractContextManager[None]:
    """Hooks modules in a block."""
    return hooked(module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks)


def observe(
    network: nn.Module,
    batches: Sequence[Inputs],
    names: Sequence[str],
    *,
    seed: int = 0,
    progress: bool = False,
) -> Observation:
    """Runs a float network over images and keeps what its layers see and emit.

    Args:
        network: The network in ``eval`` mode.
        batches: Inputs.
        names: Layers to watch; those that never run are missing in the result. What they make of
            padding, where an ``attention_mask`` tells it, does not count.
        seed: Of the random sample of inputs.
        progress: Whether to show a progress bar.

    Raises:
        InputDataError: If an activation is NaN or infinite.
    """
    per_batch = -(-SAMPLE // len(batches))
    watches, hooks = {}, []
    for i, name in enumerate(names):
        place = bit_layer(network, name)
        assert place is not None
        watches[name] = _Watch(name, per_batch, seed + i, place.has_input)
        hooks.append((network.get_submodule(place.module), watches[name]))
    network.eval()
    with torch.no_grad(), _behind(hooks):
        for batch in tqdm(batches, "calibrate", disable=no_bar(progress), unit="batch"):
            mask = mask_of(batch)
            for watch in watches.values():
                watch.mask = mask
            ask(network, batch)
    ran = {name: w for name, w in watches.items() if w.calls}
    measured = {name: w for name, w in ran.items() if w.has_input}
    return Observation(
        {name: w.inputs() for name, w in measured.items()},
        {name: w.outputs() for name, w in measured.items() if w.weight},
        {name: w.calls // len(batches) for name, w in ran.items()},
    )


class _Match:
    """Matches the moments of one layer's output to the float network's, when it runs."""

    def __init__(self, target: LayerOutputs, rescale: bool, mask: Tensor | None) -> None:
        self.target = target
        self.rescale = rescale
        self.mask = mask

    def __call__(self, layer: QuantizedLayer, _: object, __: object, outputs: Tensor) -> Tensor:
        bias = layer.bias
        assert isinstance(bias, Tensor)
        mean, variance = _moments(_channel_rows(outputs, layer, self.mask))
        factor = torch.ones_like(mean)
        has_rows = len(mean) == layer.weight.shape[weight_axis(layer)]  # groups may share them
        if self.rescale and has_rows and layer.weight_quantizer is not None:
            std = variance.sqrt()
            wanted = (self.target.std / std.clamp(min=1e-12)).clamp(
                1 / _LARGEST_RESCALING, _LARGEST_RESCALING
            )
            wanted = torch.where((std > 1e-6) & (self.target.std > 1e-6), wanted, 1.0)
            if layer.weight_quantizer.rescale(wanted):
                factor = wanted
                layer.weight.mul_(along(factor, weight_axis(layer), layer.weight.dim()))
        # y = f (y_old - b_old) + b_new has the wanted mean.
        shift = self.target.mean - factor * (mean - bias)
        shape = (-1, *(1,) * (outputs.dim() - 1 - channel_axis(layer, outputs)))
        offset = (shift - factor * bias).view(shape)
        corrected = outputs.float() * factor.view(shape) + offset
        bias.copy_(shift)
        return corrected.to(outputs.dtype)


def match_outputs(
    network: nn.Module,
    inputs: Inputs,
    targets: Mapping[str, LayerOutputs],
    rescaled: Sequence[str],
    dtype: torch.dtype,
) -> None:
    """Matches every quantized layer's output moments to the float network's, layer after layer.

    The mean by the bias (Nagel et al. 2019, Sec. 4.2, with data); the standard deviation by the
    scale of the channel, which leaves its codes as they are. Later layers see what the corrected
    ones before them emit. Batch norms that are left measure their statistics again. Layers
    without a bias are left alone.

    Args:
        network: The quantized network, changed in place.
        inputs: Of calibration, one batch.
        targets: Outputs of the float network on the same images.
        rescaled: Layers whose standard deviation is matched too.
        dtype: Type to compute in.
    """
    hooks: dict[nn.Module, Callable[..., Tensor | None]] = {}
    for name, layer in quantized_layers(network).items():
        quantized = bool(layer.weight_quantizers()) or layer.input_quantizer is not None
        if name in targets and quantized and layer.bias is not None:
            hooks[layer] = _Match(targets[name], name in rescaled, mask_of(inputs))
    network.eval()
    with torch.no_grad(), _behind(hooks.items()):
        if batch_norms(network):
            recalibrate(network, [inputs], dtype)
        else:
            with autocast(dtype, device_of(inputs)):
                ask(network, inputs)

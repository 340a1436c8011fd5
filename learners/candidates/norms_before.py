"""What a cut does to the inputs of layers that read a norm over channels.

A layer norm of a cut network is taken over the channels that stay: with ``z`` the normalised
channels of the original and ``P`` what takes their mean away (nothing in an RMS norm), those that
stay become ``a P z``, where ``a`` makes their variance 1 again. ``P`` is the same for every sample.
``a`` differs a little from sample to sample; here it is the one of the mean variance, which the
second moments of the original's inputs give. So a repair by least squares fits what the layer will
read, and still needs nothing but moments of the original.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from amc_compress.learners.tasks.inputs import Inputs, ask, hooked, rows

_HARDLY = 1e-6  # Scales below this share of the largest one hide what they scale.


@dataclass(frozen=True)
class NormBefore:
    """A norm over channels whose result a layer reads.

    Args:
        scale: Of its channels, shape (channels,).
        shift: Likewise.
        is_centred: Whether it takes the mean away.
        eps: What it adds to the variance.
    """

    scale: Tensor
    shift: Tensor
    is_centred: bool
    eps: float

    def of(self, inputs: Tensor, kernel: int, moments: tuple[Tensor, Tensor]) -> Renormalised:
        """Returns what becomes of the inputs that stay.

        Args:
            inputs: Channels that stay, sorted.
            kernel: Numbers of a patch in every channel.
            moments: Mean (n,) and covariance (n, n) of the original's columns that stay.
        """
        mean, covariance = moments
        index = inputs.to(self.scale.device)
        scale, shift = (
            x.index_select(0, index).to(mean).repeat_interleave(kernel)
            for x in (self.scale, self.shift)
        )
        is_seen = scale.abs() > _HARDLY * self.scale.abs().max().to(scale)
        inverse = torch.where(is_seen, scale, 1.0).reciprocal() * is_seen
        plain = Renormalised(scale, inverse, shift, kernel, self.is_centred, 1.0)
        # trace(P S P), S the second moments of the normalised channels that stay.
        centre = plain.centre(inverse * (mean - shift))
        half = plain.centre(inverse.unsqueeze(1) * covariance * inverse)
        spread = (half.diagonal().sum() + centre.square().sum()) / len(scale)
        factor = float((spread + self.eps).rsqrt())
        return Renormalised(scale, inverse, shift, kernel, self.is_centred, factor)


@dataclass(frozen=True)
class Renormalised:
    """The affine map ``x -> shift + A (x - shift)`` of the columns that stay.

    Args:
        scale: Of the norm, per column.
        inverse: One by the scale, 0 where that hides its channel.
        shift: Of the norm, per column.
        kernel: Columns of every channel.
        is_centred: Whether the norm takes the mean of the channels away.
        factor: What makes the variance 1 again.
    """

    scale: Tensor
    inverse: Tensor
    shift: Tensor
    kernel: int
    is_centred: bool
    factor: float

    def centre(self, columns: Tensor) -> Tensor:
        """Takes the mean over channels away, along axis 0; shape (n, ...)."""
        if not self.is_centred:
            return columns
        split = columns.reshape(-1, self.kernel, *columns.shape[1:])
        return (split - split.mean(0)).reshape(columns.shape)

    def linear(self, columns: Tensor) -> Tensor:
        """Returns ``A`` times a matrix, shape (n, m)."""
        result = self.centre(self.inverse.unsqueeze(1) * columns)
        return self.factor * self.scale.unsqueeze(1) * result

    def transposed(self, columns: Tensor) -> Tensor:
        """Returns ``A^T`` times a matrix, shape (n, m)."""
        result = self.centre(self.scale.unsqueeze(1) * columns)
        return self.factor * self.inverse.unsqueeze(1) * result

    def mean(self, mean: Tensor) -> Tensor:
        """Returns the mean of the new columns, shape (n,)."""
        return self.shift + self.linear((mean - self.shift).unsqueeze(1))[:, 0]


# ---------------------------------------------------------------------- who reads a norm


def is_channel_norm(module: nn.Module) -> TypeGuard[nn.LayerNorm | nn.RMSNorm]:
    """Whether a module is a layer norm or RMS norm over the last axis alone."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1


def norms_before(
    network: nn.Module, inputs: Inputs, layers: Iterable[str]
) -> dict[str, NormBefore]:
    """Returns layer -> the layer norm or RMS norm whose result it reads as it is.

    Args:
        network: In ``eval`` mode; it is run once, on one sample.
        inputs: What it is called with.
        layers: Convolutions and linear layers.
    """
    modules = dict(network.named_modules())
    norms = [norm for norm in modules.values() if is_channel_norm(norm)]
    if not norms:
        return {}
    results: dict[int, tuple[Tensor, int, nn.LayerNorm | nn.RMSNorm]] = {}
    found: dict[str, list[nn.LayerNorm | nn.RMSNorm | None]] = {}

    def leave(norm: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):  # kept, so that nothing else takes its place in memory
            results[_storage(output)] = (output, output._version, norm)  # type: ignore[assignment]

    def enter(name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        source = args[0] if args else kwargs["input"]
        known = results.get(_storage(source))
        is_read = known is not None and known[1] == source._version
        is_read = is_read and _has_channels(layer, source, known[2].normalized_shape[0])  # type: ignore[index]
        found.setdefault(name, []).append(known[2] if is_read and known is not None else None)

    handles = [norm.register_forward_hook(leave) for norm in norms]
    for name in layers:
        hook = _named(enter, name)
        handles.append(modules[name].register_forward_pre_hook(hook, with_kwargs=True))
    with hooked(handles), torch.no_grad():
        ask(network, rows(inputs, slice(0, 1)))
    return {
        name: _described(norms[0])
        for name, norms in found.items()
        if norms[0] is not None and all(norm is norms[0] for norm in norms)
    }


def _named(function: Any, name: str) -> Any:
    return lambda *rest: function(name, *rest)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _has_channels(layer: nn.Module, source: Tensor, width: int) -> bool:
    """Whether the channels of a layer's input are those that a norm ran over, all of them."""
    is_convolution = isinstance(layer, _ConvNd)
    axis = 1 if is_convolution else -1
    groups = int(layer.groups) if is_convolution else 1  # type: ignore[arg-type]
    return groups == 1 and source.shape[axis] == width and source.stride(axis) == 1


def _described(norm: nn.LayerNorm | nn.RMSNorm) -> NormBefore:
    bias = getattr(norm, "bias", None)
    like = torch.ones(norm.normalized_shape) if norm.weight is None else norm.weight.detach()
    shift = torch.zeros_like(like) if bias is None else bias.detach()
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    return NormBefore(like, shift, isinstance(norm, nn.LayerNorm), eps)

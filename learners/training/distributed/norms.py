"""Batch norms, when each process sees its share of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc_env.errors import InputDataError


def batch_norms(network: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yields the batch norms of a network, by name."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            yield name, module


def trains_on(network: nn.Module, ask: Callable[[], Any]) -> bool:
    """Whether the batch norms of a network can train on some samples; nothing of it changes.

    Args:
        network: In training mode.
        ask: Asks it for the samples.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    devices = {buffer.device for buffer, _ in buffers if buffer.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            ask()
    except ValueError as error:  # the training itself says better what else is wrong
        return "more than 1 value per channel" not in str(error)
    except Exception:
        return True
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    return True


class SynchronisedNorms:
    """Makes batch norms take the statistics of the whole batch, of all processes' shares.

    They are those that one process would have, in value and gradient. The classes of the modules
    are changed in place and come back, so that names, hooks and files stay what they are.

    Args:
        network: On its device.
        device: The same.

    Raises:
        InputDataError: If a batch norm has a forward of its own.
    """

    def __init__(self, network: nn.Module, device: str | torch.device) -> None:
        self._changed: list[tuple[nn.Module, type[nn.Module]]] = []
        found = list(batch_norms(network))
        for name, norm in found:
            if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
                raise InputDataError(
                    f"Expected batch norms of PyTorch to synchronise, got {type(norm).__name__} as "
                    f"{name!r}, which has a forward of its own: train without synchronised batch "
                    f"norms."
                )
        # PyTorch's own does not run on a processor.
        on_processor = torch.device(device).type == "cpu"
        for _, norm in found:
            self._changed.append((norm, type(norm)))
            norm.__class__ = _SyncOnProcessor if on_processor else nn.SyncBatchNorm
            norm.__dict__.setdefault("process_group", None)

    def undo(self) -> None:
        """Gives the modules their classes back."""
        for norm, kind in self._changed:
            norm.__class__ = kind
            if kind is not nn.SyncBatchNorm:
                norm.__dict__.pop("process_group", None)
        self._changed = []


class _SyncOnProcessor(_BatchNorm):
    """``nn.SyncBatchNorm`` for processors."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (N, C, ...) by the mean and variance over the samples of all processes."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        weight = torch.ones_like(input[0].flatten(1)[:, 0]) if self.weight is None else self.weight
        bias = torch.zeros_like(weight) if self.bias is None else self.bias
        output, mean, variance, count = _SyncFunction.apply(  # type: ignore[no-untyped-call]
            input, weight, bias, self.eps
        )
        if self.running_mean is not None:
            self._track(mean, variance, float(count))
        found: Tensor = output
        return found

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * (count / max(count - 1.0, 1.0))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class _SyncFunction(torch.autograd.Function):
    """Batch normalisation over the samples of all processes (Ioffe & Szegedy 2015, section 3)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        values = input.float()
        axes = [axis for axis in range(values.dim()) if axis != 1]
        sums = torch.cat([values.sum(axes), values.new_tensor([values.numel() / values.shape[1]])])
        distributed.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        # A second pass: the mean of squares less the square of the mean loses all digits.
        squares = (values - _wide(mean, values)).square().sum(axes)
        distributed.all_reduce(squares)
        variance = squares / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(input, weight, mean, scale, count)
        normed = (values - _wide(mean, values)) * _wide(scale * weight, values)
        ctx.mark_non_differentiable(mean, variance, count)
        return (normed + _wide(bias, values)).to(input.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        input, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0].float()
        axes = [axis for axis in range(gradient.dim()) if axis != 1]
        normed = (input.float() - _wide(mean, gradient)) * _wide(scale, gradient)
        of_bias = gradient.sum(axes)
        of_weight = (gradient * normed).sum(axes)
        sums = torch.cat([of_bias, of_weight])
        distributed.all_reduce(sums)
        mean_of, along = (sums / count).chunk(2)
        of_input = gradient - _wide(mean_of, gradient) - normed * _wide(along, gradient)
        of_input = of_input * _wide(scale * weight, gradient)
        return of_input.to(input.dtype), of_weight, of_bias, None


def _wide(per_channel: Tensor, like: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (like.dim() - 2))

"""Cheap repairs of a sliced candidate before its evaluation.

``none``            the original weights as they are
``reconstruction``  least-squares repair of every layer that lost inputs
``recalibration``   batch-norm statistics measured again, on the candidate itself
                    (not where that spoils the original, see ``keeps_score``)
each with ``finetune_steps`` SGD steps on fixed batches if wanted.

Reconstruction uses moments that were collected once; what is left per candidate is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc_compress.learners.candidates.inference.batch_sizes import fitting
from amc_compress.learners.numerics.layout import laid_out, owned
from amc_compress.learners.numerics.precision import autocast, hides_in_rounding
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import Inputs, Split, ask, count, device_of, mapped, rows
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.descent import Descent
from amc_compress.learners.training.schedules import falling_linearly
from amc_env.validation.checks import check_known

PROXIES = ("none", "reconstruction", "recalibration", "reconstruction+recalibration")
RECALIBRATION_BATCH = 128
_LEAST = 32  # batch norms divide by the spread of a batch, of which fewer images tell too little

_LOST = 0.1
"""Share of its score that the original may lose by a repair of what is not broken."""


@dataclass(frozen=True)
class Proxy:
    """Which repairs a candidate gets.

    Args:
        reconstruct: Whether layers are fitted to the original outputs.
        recalibrate: Whether batch-norm statistics are measured again.
        finetune_steps: SGD steps before evaluation.
        learning_rate: Of these steps.
        gradient_clip: Largest norm of their gradients; ``None`` for no limit.
    """

    reconstruct: bool = True
    recalibrate: bool = True
    finetune_steps: int = 0
    learning_rate: float = 0.01
    gradient_clip: float | None = None

    @classmethod
    def parse(cls, name: str, finetune_steps: int = 0) -> Proxy:
        """Reads a proxy by name.

        Raises:
            ValueError: If there is none of that name, or the steps are negative.
        """
        check_known("proxy", name, PROXIES)
        if finetune_steps < 0:
            raise ValueError(f"Expected finetune_steps >= 0, got {finetune_steps}.")
        return cls("reconstruction" in name, "recalibration" in name, finetune_steps)

    def restores_mean(self, has_norm: bool) -> bool:
        """Whether repairs restore the mean of what a layer emits.

        Args:
            has_norm: Whether a batch norm is right behind it.
        """
        return self.reconstruct or (self.recalibrate and has_norm)


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Returns the batch norms that keep running statistics."""
    return [
        m
        for m in network.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_mean is not None
    ]


def recalibrate(network: nn.Module, batches: Sequence[Inputs], dtype: torch.dtype) -> None:
    """Measures batch-norm statistics again; weights stay, all else is in ``eval`` mode.

    Every batch norm normalises by its batch while it averages over the batches
    (``momentum=None``), so later layers see what their new predecessors really emit.

    Args:
        network: The candidate, changed in place.
        batches: Calibration inputs, few and big.
        dtype: Type to compute in; the statistics themselves are float32. Where rounding would
            hide the spread of a channel, all are measured in float32.
    """
    norms = batch_norms(network)
    if not norms:
        return
    network.eval()
    before = [
        (n.momentum, None if n.num_batches_tracked is None else n.num_batches_tracked.clone())
        for n in norms
    ]
    try:
        _measure(network, norms, batches, dtype)
        if dtype == torch.bfloat16 and hides_in_rounding(network):
            _measure(network, norms, batches, torch.float32)
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if tracked is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(tracked)
            norm.eval()


def keeps_score(original: float, measured_again: float, n: int) -> bool:
    """Whether a network is as good with batch-norm statistics of the calibration data.

    On data like those of its training it is: what it loses is noise. On others, such as pictures of
    two scenes for a network that has seen a million, every layer shifts, and the next ones with it.

    Args:
        original: Score of the original network.
        measured_again: Score of the same with its statistics measured again.
        n: Samples of these scores.
    """
    return original - measured_again <= _LOST * abs(original) + 1.0 / math.sqrt(max(n, 1))


def _measure(
    network: nn.Module, norms: Sequence[_BatchNorm], batches: Sequence[Inputs], dtype: torch.dtype
) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad(), autocast(dtype, device_of(batches[0])):
        for batch in batches:
            ask(network, batch)


def finetune_briefly(
    network: nn.Module,
    batches: Sequence[Split],
    proxy: Proxy,
    dtype: torch.dtype,
    seed: int = 0,
    task: Task = CLASSIFICATION,
) -> None:
    """Runs a few SGD steps on fixed batches, the same for every candidate.

    Momentum 0.9 and a learning rate that falls linearly to zero, so that the last steps settle.

    Raises:
        TrainingDivergedError: If the loss is not finite.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        return
    descent = Descent(
        torch.optim.SGD(parameters, lr=proxy.learning_rate, momentum=0.9),
        falling_linearly(proxy.finetune_steps),
        lambda what, value: (
            f"Expected a finite {what} in the proxy's fine-tuning, got {value}; "
            f"take fewer steps or start from finite weights."
        ),
        gradient_clip=proxy.gradient_clip,
        parameters=parameters,
    )
    network.train()
    device = device_of(batches[0][0])
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)  # dropout, inside the fork: the caller's generator is untouched
        for inputs, targets in islice(cycle(batches), proxy.finetune_steps):
            with autocast(dtype, device):
                outputs = task.outputs(task.ask(network, inputs, targets))
            descent.step(task.loss(outputs, targets))
    network.eval()


def sample_batches(
    batches: Sequence[Split],
    size: int | None,
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
) -> list[Split]:
    """Splits samples into batches on the device, none smaller than half a batch if they allow it.

    Args:
        batches: Inputs and targets; those of one batch have the same size.
        size: Of the new batches, about, and less for large samples; ``None`` for all at once.
        device: Where to put the inputs; the targets stay.
        layout: Of images.
    """
    found = []
    for batch in batches:
        total = count(batch)
        parts = 1 if size is None else max(1, round(total / fitting(batch.inputs, size, _LEAST)))
        # As tensor_split: the first ones are larger by one.
        small, more = divmod(total, parts)
        start = 0
        for index in range(parts):
            stop = start + small + (index < more)
            inputs, targets = rows(batch, slice(start, stop))
            start = stop
            inputs = mapped(lambda t: owned(laid_out(t.to(device), layout)), inputs)
            found.append(Split(inputs, mapped(owned, targets)))
    return found

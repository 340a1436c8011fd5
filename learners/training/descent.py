"""The step of an optimiser, as every training here takes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from amc_env.errors import TrainingDivergedError

_SMALLEST_SCALE = 2.0**-16
"""Of the losses of a training in float16: with a smaller one every step has overflown."""


class Descent:
    """Steps down a loss, at a rate that is a function of the step alone.

    Args:
        optimizer: The learning rates of its groups are their peaks.
        factor: Step, from 0 -> factor of the peaks.
        diverged: What has become what (``"loss"``, ``nan``) -> the sentence of the error.
        gradient_clip: Largest norm of the gradient of ``parameters``; ``None`` for no limit.
        parameters: In the order in which their norms are added up.
        scaler: Of losses whose gradients are computed in float16; ``None`` for none.

    Attributes:
        count: Steps taken, which is the number of the next one.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        factor: Callable[[int], float],
        diverged: Callable[[str, float], str],
        *,
        gradient_clip: float | None = None,
        parameters: Iterable[nn.Parameter] = (),
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.count = 0
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._factor = factor
        self._diverged = diverged
        self._gradient_clip = gradient_clip
        self._parameters = list(parameters)

    @property
    def learning_rate(self) -> float:
        """Of the first group, in the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, loss: Tensor) -> float:
        """Takes a step; returns the value of the loss, a scalar.

        Raises:
            TrainingDivergedError: If the loss is not finite, or the norm that is to be clipped.
        """
        self.begin()
        value = self._finite("loss", loss.item())
        self.add(loss)
        return self.take(value)

    def begin(self) -> None:
        """Begins a step: sets its learning rate, and forgets the last gradient."""
        factor = self._factor(self.count)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.zero_grad()

    def add(self, loss: Tensor) -> None:
        """Adds the gradient of a loss to that of the step."""
        torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))

    def take(self, value: float) -> float:
        """Takes the step that was begun; returns the value of its loss.

        Raises:
            TrainingDivergedError: As :meth:`step`.
        """
        self._finite("loss", value)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self._gradient_clip is not None:
            norm = nn.utils.clip_grad_norm_(self._parameters, self._gradient_clip)
            if self.scaler is None:  # which leaves out a step whose gradient has overflown
                self._finite("gradient", norm.item())
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if (scale := self.scaler.get_scale()) < _SMALLEST_SCALE:
                raise TrainingDivergedError(self._diverged("scale of the gradient", scale))
        self.count += 1
        return value

    def pass_over(self) -> None:
        """Counts a step that changes nothing."""
        self.begin()
        self.count += 1

    def _finite(self, what: str, value: float) -> float:
        if not math.isfinite(value):
            raise TrainingDivergedError(self._diverged(what, value))
        return value

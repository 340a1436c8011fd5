"""Sparsity schedules: density that falls during training, with regrowth.

Zhu & Gupta (2017, 1710.01878), equation 1:

    s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3      for t in {t_0, t_0 + dt, .., t_0 + n dt}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.layers.masked import MASK, Masked, masked_layers
from amc_compress.learners.sparsification.patterns import Pattern, mask_for
from amc_compress.learners.training.hooks import TrainingHook
from amc_env.validation.checks import check_whole


@dataclass(frozen=True)
class SparsitySchedule:
    """A schedule of rising sparsity.

    Args:
        begin: Share of the training's steps before ``t_0``.
        end: Share of the training's steps at which the final sparsity is set.
        exponent: 3 in the paper; 1 is linear.
        frequency: Steps ``dt`` between two sets of masks.

    Raises:
        ValueError: If a number is out of range.
    """

    begin: float = 0.0
    end: float = 0.5
    exponent: float = 3.0
    frequency: int = 100

    def __post_init__(self) -> None:
        check_whole("schedule_frequency", self.frequency, 1)
        for name in ("begin", "end", "exponent"):
            if not isinstance(number := getattr(self, name), Real):
                raise ValueError(f"Expected a number as schedule_{name}, got {number!r}.")
        if not 0.0 <= self.begin <= self.end <= 1.0:
            raise ValueError(
                f"Expected 0 <= schedule_begin <= schedule_end <= 1, got {self.begin} and "
                f"{self.end}; they are shares of the training."
            )
        if not (math.isfinite(self.exponent) and self.exponent > 0.0):
            raise ValueError(f"Expected schedule_exponent > 0, got {self.exponent}.")

    def span(self, total_steps: int) -> tuple[int, int]:
        """Returns the steps of the first and of the last masks; the last step at the latest."""
        last = min(round(self.end * total_steps), total_steps - 1)
        return min(round(self.begin * total_steps), last), last

    def is_update(self, step: int, total_steps: int) -> bool:
        """Whether masks are set before ``step``, from 0."""
        first, last = self.span(total_steps)
        return first <= step <= last and ((step - first) % self.frequency == 0 or step == last)

    def progress(self, step: int, total_steps: int) -> float:
        """Returns the share of the final sparsity that is due at ``step``, in [0, 1]."""
        first, last = self.span(total_steps)
        if step >= last:
            return 1.0
        done = max(step - first, 0) / (last - first)
        return 1.0 - math.pow(1.0 - done, self.exponent)


class GradualSparsity(TrainingHook):
    """Trains from the dense network to the masks' densities, weights free to come back.

    The network that is given has the densities to reach in its masks. Before the first step all
    masks open and the dense weights return; then masks are set anew by the schedule, from the
    magnitudes of that moment, also of the weights behind the masks: those keep their value (decay
    and momentum are undone there), and come back when the others fall below it. After the end the
    masks stay.

    The optimiser's momentum of a weight behind a mask is left to fade.

    Args:
        dense: State of the network to start from, with the same names and shapes, e.g.
            ``original.state_dict()``; ``None`` starts from the given network's weights, those
            behind its masks included.
        pattern: Of the zeros.
        schedule: When and how fast.

    Raises:
        ValueError: In :meth:`start`, if the states do not fit each other.
    """

    name = "gradual sparsity"

    def __init__(
        self,
        dense: Mapping[str, Tensor] | None,
        pattern: Pattern,
        schedule: SparsitySchedule,
    ) -> None:
        self.pattern = pattern
        self.schedule = schedule
        self._dense = dense
        self._model: nn.Module | None = None
        self._layers: dict[str, Masked] = {}
        self._targets: dict[str, int] = {}
        self._behind: dict[str, Tensor] = {}
        self._total = 1

    def identity(self) -> Mapping[str, Any]:
        """Returns pattern, schedule and the numbers of weights to reach."""
        return {
            "pattern": self.pattern.name,
            **asdict(self.schedule),
            "from dense": self._dense is not None,
            "kept": dict(self._targets),
        }

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        """Reads the densities to reach from the masks; changes nothing yet."""
        self._model = model
        self._total = total_steps
        self._layers = masked_layers(model)
        self._targets = {n: int(_mask(x).sum()) for n, x in self._layers.items()}
        self._behind = {}
        state = {k: v for k, v in model.state_dict().items() if not _is_mask(k)}
        for key, value in state.items():
            if self._dense is None:
                break
            if key not in self._dense or self._dense[key].shape != value.shape:
                raise ValueError(
                    f"Expected the dense network's {key!r} of shape {list(value.shape)} to start "
                    f"from; for a network cut or folded since use schedule='one-shot'."
                )

    def before_step(self, step: int) -> None:
        """Opens all masks before the first step, sets them when due."""
        if step == 0:
            self._open()
        if self.schedule.is_update(step, self._total):
            self._set_masks(step)
        if not self._behind:
            # Nothing behind a mask has moved since it was set, in a resumed training either.
            self._behind = {n: x.weight.detach().clone() for n, x in self._layers.items()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Restores the weights that the optimiser changed behind the masks."""
        for name, layer in self._layers.items():
            layer.weight.copy_(torch.where(_mask(layer), layer.weight, self._behind[name]))

    @property
    def may_start_be_kept(self) -> bool:
        """Whether the network before any step may be kept: it has the masks to be reached."""
        return True

    def is_ready(self, step: int) -> bool:
        """Whether a step has been taken with the final masks."""
        return step > self.schedule.span(self._total)[1]

    def finish(self) -> None:
        """Releases references to the network."""
        self._model = None
        self._layers = {}
        self._behind = {}

    @torch.no_grad()
    def _open(self) -> None:
        assert self._model is not None
        for key, value in self._model.state_dict().items():
            if _is_mask(key):
                value.fill_(True)
            elif self._dense is not None:
                value.copy_(self._dense[key])

    @torch.no_grad()
    def _set_masks(self, step: int) -> None:
        progress = self.schedule.progress(step, self._total)
        for name, layer in self._layers.items():
            size, target = layer.weight.numel(), self._targets[name]
            keep = size - round(progress * (size - target))
            _mask(layer).copy_(mask_for(layer, self.pattern, keep))
        self._behind = {}


def _is_mask(key: str) -> bool:
    return key.rpartition(".")[2] == MASK


def _mask(layer: Masked) -> Tensor:
    assert layer.weight_mask is not None
    return layer.weight_mask

"""Discrimination-aware losses: a small classifier on the features half-way through a network.

Zhuang et al. 2018 (arXiv 1810.11809):

    F^p = avgpool(ReLU(BN(O^p))),     L_S^p = cross entropy(theta^p F^p, labels)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.channel_pruning.discrimination.places import LossPlace
from amc_compress.learners.numerics.precision import autocast
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import Inputs, arguments, device_of, hooked
from amc_compress.learners.tasks.task import Task


class _Reached(Exception):  # noqa: N818 - ends a forward pass, nothing has gone wrong
    """The last features that were wanted are there."""


class AuxiliaryHead(nn.Module):
    """Batch norm, ReLU, global average, linear layer.

    Args:
        channels: Width of the features.
        n_outputs: Of the network.
        axis: Channel axis of the features.
    """

    def __init__(self, channels: int, n_outputs: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, n_outputs)
        # Every class equally likely: the features hear nothing of the head before it has learned.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits (N, classes) of features (N, channels, *positions) in float32."""
        flat = features.float().movedim(self.axis, 1).unsqueeze(-1).flatten(2)
        logits: Tensor = self.linear(F.relu(self.norm(flat)).mean(2))
        return logits


class Discriminator(nn.Module):
    """A network with its auxiliary heads; stage ``P``, the last one, has the logits themselves.

    Args:
        network: A copy that may be trained.
        places: Where the heads sit, in the order of a forward pass.
        n_outputs: Of the network, one head has as many.
        dtype: Type to compute in; losses are float32.
        task: Whose losses they are.
    """

    def __init__(
        self,
        network: nn.Module,
        places: Sequence[LossPlace],
        n_outputs: int,
        dtype: torch.dtype,
        task: Task = CLASSIFICATION,
    ) -> None:
        super().__init__()
        self.network = network
        self.places = tuple(places)
        self.dtype = dtype
        self.task = task
        self.heads = nn.ModuleList(AuxiliaryHead(p.channels, n_outputs, p.axis) for p in places)

    def losses(
        self,
        inputs: Inputs,
        targets: Any,
        stages: Collection[int],
        *,
        detached: Collection[int] = (),
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[int, Tensor]:
        """Returns the losses of some stages; the network runs no further than these need.

        Args:
            inputs: Of a batch.
            targets: Theirs.
            stages: Heads by number, from 0; the number of heads means the network's own loss.
            detached: Those whose loss shall train the head alone.
            weights: Parameters of the network to use in place of its own, by name.
        """
        last = len(self.places)
        features: dict[int, Tensor] = {}

        def keep(stage: int, stop: bool) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                # A copy: the network may go on in place.
                features[stage] = output.detach() if stage in detached else output.clone()
                if stop:
                    raise _Reached

            return hook

        handles = [
            self.network.get_submodule(self.places[stage].module).register_forward_hook(
                keep(stage, stop=stage == max(stages))
            )
            for stage in sorted(set(stages) - {last})
        ]
        with hooked(handles), autocast(self.dtype, device_of(inputs)):
            outputs = self._run(inputs, weights or {})
        found = {}
        for stage in stages:
            answer = outputs if stage == last else self.heads[stage](features[stage])
            assert answer is not None
            found[stage] = self.task.loss(answer, targets)
        return found

    def _run(self, inputs: Inputs, weights: Mapping[str, Tensor]) -> Any:
        """Returns the outputs that count, or ``None`` if the pass was ended before."""
        try:
            given, named = arguments(inputs)
            raw = torch.func.functional_call(self.network, dict(weights), given, named)
        except _Reached:
            return None
        return self.task.outputs(raw)

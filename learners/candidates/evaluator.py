"""The score of candidates of any kind on the validation samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.candidates.inference.batch_sizes import answered, handful, in_cache
from amc_compress.learners.candidates.inference.fusion import fuse
from amc_compress.learners.candidates.inference.held_samples import (
    EVALUATION_BATCH,
    channels_last,
    fusion_works,
    settled_dtype,
)
from amc_compress.learners.candidates.inference.staged import Looks
from amc_compress.learners.layers.finalise import finalise, without_identities
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.numerics.freed_memory import give_back
from amc_compress.learners.numerics.layout import layout_of
from amc_compress.learners.numerics.precision import resolve_precision
from amc_compress.learners.tasks.inputs import Inputs, moved, rows
from amc_compress.learners.tasks.task import Task
from amc_env.scores.stages import Measured, Race, Stages


class NetworkEvaluator(Protocol):
    """Measures how good a network is, fast, and on everything.

    Attributes:
        original_score: Of the uncompressed network on the samples of :meth:`score`.
        task: What networks are for.
        told: Sentences on what of the networks cannot compute in the type that was asked for.
    """

    task: Task

    @property
    def original_score(self) -> float: ...  # noqa: D102

    def score(self, network: nn.Module, *, full: bool = False) -> float:
        """Returns the score of a network, higher is better.

        Args:
            network: In ``eval`` mode; it may be laid out anew, nothing else.
            full: On all validation samples instead of the ``n_validation`` of an episode.

        Raises:
            TrainingDivergedError: If an output or the metric is not finite.
        """

    def score_in_stages(self, network: nn.Module, *, stages: Stages, race: Race | None) -> Measured:
        """Returns the score of a network on the samples of an episode, in stages.

        Args:
            network: As for :meth:`score`.
            stages: When it is looked at.
            race: What it is compared with; None for on all samples.
        """


class CandidateEvaluator:
    """Evaluates as fast as a candidate allows: sliced, sparse, quantized or all of it.

    With float activations in the type that ``precision`` says. Quantized activations are evaluated
    in float32 under ``"auto"``: bfloat16 rounds a second time, which moves few-bit activations to
    other values (0.7 points of accuracy at 4 bits on ResNet-20).

    Args:
        reference: The original network, in ``eval`` mode.
        held_out: The validation samples, and what networks are for.
        candidates: What else fast kernels and tracing are tried on, the most unusual network
            first; empty where candidates run as ``reference`` does.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        device: Where to work.
        layout: Of images and weights, see ``layout``; tried on ``reference`` if
            ``None``.
        n_first: Samples of :attr:`first_score`; those of an episode if ``None``.

    Attributes:
        dtype: Type that networks without quantized activations are evaluated in.
        original_score: Of the original on the samples of an episode.
        first_score: Of the original on the first ones of them.
        task: What networks are for.
    """

    def __init__(
        self,
        reference: nn.Module,
        held_out: HeldOut,
        candidates: Sequence[nn.Module] = (),
        *,
        precision: str,
        device: torch.device,
        layout: torch.memory_format | None = None,
        n_first: int | None = None,
    ) -> None:
        self._held_out = held_out
        self.task = held_out.task
        precision = self.task.precision(precision)
        self.dtype = resolve_precision(precision, device)
        self.told: list[str] = []
        self._exact = torch.float32 if precision == "auto" else self.dtype
        probe = moved(handful(held_out.first(8)), device)
        layout = layout or layout_of(reference, rows(probe, slice(0, 1)))
        # What is fused computes channels last.
        fused = layout == torch.channels_last and all(
            _fuses(network, probe, self.dtype) for network in (reference, *candidates[:1])
        )
        give_back()  # the fused networks of the trials
        floats = [reference, *(x for x in candidates if not quantized_layers(x))]
        self.dtype = settled_dtype(
            floats, probe, self.dtype, fused=fused, layout=layout, told=self.told
        )
        dtypes = {self._type_for(network) for network in (reference, *candidates)}
        # Fused convolutions give an image the same bits in every batch; other products may not.
        size = (in_cache if fused else answered)(reference, probe, EVALUATION_BATCH)
        held_out.settle(dtypes, device=device, fused=fused, layout=layout, batch_size=size)
        give_back()
        self.original_score, self.first_score = held_out.both_scores(
            _plain(reference), self._type_for(reference), n_first
        )

    def score(self, network: nn.Module, *, full: bool = False) -> float:
        """Returns the score of a network, see :class:`NetworkEvaluator`."""
        return self._held_out.score(_plain(network), self._type_for(network), full=full)

    def score_in_stages(self, network: nn.Module, *, stages: Stages, race: Race | None) -> Measured:
        """Returns what a staged evaluation finds, see :class:`NetworkEvaluator`."""
        looks = Looks(self.task, self._held_out.n_held, stages, race)
        held = self._held_out.held_in(self._type_for(network))
        held.measure_in_stages(_plain(network), looks)
        return looks.found()

    def score_of_first(self, network: nn.Module, n_first: int) -> float:
        """Returns the score on the first samples of an episode alone."""
        return self._held_out.first_score(_plain(network), self._type_for(network), n_first)

    def _type_for(self, network: nn.Module) -> torch.dtype:
        """Returns the type that a network is evaluated in."""
        layers = quantized_layers(network).values()
        sees_codes = any(layer.input_quantizer is not None for layer in layers)
        return self._exact if sees_codes else self.dtype


def _plain(network: nn.Module) -> nn.Module:
    """Returns the network in layers that can be fused."""
    if quantized_layers(network):
        return without_identities(finalise(network, quantized=True, shares=True))
    return finalise(network, shares=True) if masked_layers(network) else network


def _fuses(network: nn.Module, probe: Inputs, dtype: torch.dtype) -> bool:
    """Whether a network, and for a quantized one itself with float activations, runs fused.

    The structure is compared with float activations: a rounding difference that moves an
    activation to its next value is not an error.
    """
    if not quantized_layers(network):
        return fusion_works(_plain(network), probe, dtype)
    of_weights = copy.deepcopy(network)
    for layer in quantized_layers(of_weights).values():
        layer.input_quantizer = None
    return fusion_works(_plain(of_weights), probe, dtype) and _runs_fused(_plain(network), probe)


def _runs_fused(candidate: nn.Module, probe: Inputs) -> bool:
    """Whether a network with quantized activations runs fused, and near what it should be."""
    try:
        with torch.inference_mode():
            assert isinstance(probe, Tensor)  # what else there is was not fused before
            expected = candidate(probe)
            found = fuse(candidate, torch.float32)(channels_last(probe))
    except Exception:
        # As in ``fusion_works``: there are as many ways to fail as networks.
        return False
    return bool((found - expected).norm() <= 0.05 * expected.norm())

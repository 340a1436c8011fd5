"""Weight sparsification: zeros by magnitude, least-squares re-fit, recalibrate, evaluate."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.kept_curves import kept
from amc_compress.learners.candidates.learner import PartLearner
from amc_compress.learners.candidates.moments.pieces import FittedLayers
from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.preparation import Samples, check_not_constant
from amc_compress.learners.candidates.proxy import Proxy, recalibrate
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.candidates.second_order.levels import Levels
from amc_compress.learners.candidates.space import SearchSpace
from amc_compress.learners.candidates.timing import CandidateSeconds
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.following_norms import following_norms
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.weight_forms import form_of
from amc_compress.learners.sparsification.building import counts_in, masked, weight_of, with_zeros
from amc_compress.learners.sparsification.curves import gradient_scores, layer_errors
from amc_compress.learners.sparsification.fitted import FittedWeights, check_repair
from amc_compress.learners.sparsification.layers import sparse_choice
from amc_compress.learners.sparsification.patterns import Pattern
from amc_compress.learners.sparsification.protocols import check_density, plan_for, scores_of
from amc_compress.learners.sparsification.schedule import GradualSparsity, SparsitySchedule
from amc_compress.learners.sparsification.storage import sparse_storage, with_header
from amc_compress.learners.tracing.branches.left_out import layers_there
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_compress.learners.training.hooks import TrainingHook
from amc_env.costs.costs import COSTS, make_cost
from amc_env.costs.storage import StorageFormat
from amc_env.plan import CompressionPlan
from amc_env.support.threads import limited_threads
from amc_env.validation.checks import check_known, checked

SCHEDULES = ("gradual", "one-shot")
_TYPICAL_DENSITY = 0.25


@checked
@dataclass(frozen=True, kw_only=True)
class SparseOptions(CandidateOptions):
    """What sparsification is told; see ``CandidateOptions`` for what all learners are.

    Attributes:
        pattern: ``"unstructured"``, blocks like ``"block4"``, or N:M like ``"2:4"``.
        min_density: Smallest density on offer for a layer; N:M offers N/M and 1 only.
        repair: ``"least-squares"`` fits the weights that stay, those of the largest magnitudes;
            ``"sparsegpt"`` chooses them by second order and lets them take up what is lost, in one
            sweep. Part of the proxy's reconstruction; not for blocks.
        schedule: What a training does: ``"gradual"`` starts from the dense original and raises
            the sparsity while it trains, ``"one-shot"`` trains behind fixed masks.
        schedule_begin: Share of the training after which sparsity begins to rise.
        schedule_end: Share of the training at which it is reached.
        schedule_exponent: 3 is the cubic schedule of Zhu & Gupta (2017), equation 1.
        schedule_frequency: Steps between two sets of masks.
    """

    pattern: str = "unstructured"
    min_density: float = 0.02
    repair: str = "least-squares"
    schedule: str = "gradual"
    schedule_begin: float = 0.0
    schedule_end: float = 0.5
    schedule_exponent: float = 3.0
    schedule_frequency: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        Pattern.parse(self.pattern)
        check_density("min_density", self.min_density)
        check_known("schedule", self.schedule, SCHEDULES)
        check_repair(self.repair, self.proxy, self.pattern)
        self.ramp()

    def ramp(self) -> SparsitySchedule:
        """Returns when sparsity rises, and how fast."""
        return SparsitySchedule(
            self.schedule_begin, self.schedule_end, self.schedule_exponent, self.schedule_frequency
        )

    def training_hooks(
        self, model: nn.Module, dense: Mapping[str, Tensor] | None
    ) -> tuple[TrainingHook, ...]:
        """Returns what the training of a sparse network needs besides the loss.

        Args:
            model: With masks; where they keep everything no schedule is needed.
            dense: The state of the original to start from; ``None`` starts from what stands behind
                the masks.
        """
        is_sparse = any(layer.density() < 1.0 for layer in masked_layers(model).values())
        if self.schedule == "one-shot" or not is_sparse:
            return ()
        return (GradualSparsity(dense, Pattern.parse(self.pattern), self.ramp()),)


class WeightSparsification(PartLearner[SparseOptions, Mapping[str, int]]):
    """Sets weights of a trained network to zero; a plan holds one density per layer.

    The options are those of :class:`SparseOptions`. In what :meth:`compress` builds, every layer
    that is decided has a mask, also where it keeps everything; behind the masks stay the original
    weights. ``sparsification.finalise`` makes plain layers.

    Attributes:
        pattern: As a ``Pattern``.
        fitted: Masks and re-fitted weights of the original's layers.
    """

    name = "density"
    repairs_layers = True
    Options = SparseOptions

    @classmethod
    def decide(cls, traced: TracedModel, options: SparseOptions) -> SearchSpace:
        """Returns one density per layer that can be sparse."""
        pattern = Pattern.parse(options.pattern)
        return sparse_choice(
            traced.model, traced.graph, pattern, options.min_density, options.ignore
        )

    def _prepare(self, samples: Samples) -> None:
        check_not_constant(samples.calibration)
        self.pattern = Pattern.parse(self.options.pattern)
        # Candidates are plain networks with zeros: what runs of them is what runs of this one.
        self._prepare_evaluator(samples)
        self._norms = following_norms(self.original)
        effort = self._effort(samples)
        self._layers = FittedLayers(
            self.original,
            samples.inputs(),
            [d.target for d in self.decisions],
            self._norms,
            seed=self.seed,
            effort=effort,
            progress=self.options.progress,
            room=self.options.room(),
        )
        self.fitted = self._fitted(self.original, self._layers)
        self._unfitted = FittedWeights(self.original, {}, self.pattern, reconstruct=False)
        self.storage = self._measured_storage()
        self.cost_models = {
            name: make_cost(name, self.graph, self.decisions, self.storage) for name in COSTS
        }

    @property
    def left_dense(self) -> Mapping[str, str]:
        """Layers with weights that no decision is about -> the reason."""
        return self.space.left_out

    def _measured_storage(self) -> StorageFormat:
        """Returns how sparse networks are stored; the header of the packed file is measured."""
        fits = [self.fitted]
        if self.options.schedule == "gradual" and self.proxy.reconstruct:
            # Between a network as it is compressed and one that was trained.
            fits.append(self._unfitted)
        form = sparse_storage(self.original, fits, self.graph, self.decisions, self.pattern)
        typical = CompressionPlan({d.key: d.nearest(_TYPICAL_DENSITY) for d in self.decisions})
        kept = self.kept_weights(typical)
        networks = [self._masked(self.original, kept, fitted) for fitted in fits]
        return with_header(form, self.graph, self.decisions, typical, networks)

    def plan_for(self, protocol: str, density: float) -> CompressionPlan:
        """Returns the plan of a hand-made rule.

        Args:
            protocol: Name in ``amc_compress.learners.sparsification.protocols.PROTOCOLS``.
            density: Share of all weights of convolutions and linear layers that may stay, those
                of layers left dense included: what ``Budget(density=...)`` bounds.

        Raises:
            InfeasibleBudgetError: If the density cannot be reached.
            ValueError: If there is no such protocol.
        """
        weights = [
            form_of(self.original.get_submodule(d.target)).outputs_first(
                weight_of(self.original, d.target)
            )
            for d in self.decisions
        ]
        full = self.graph.full()
        every = sum(layer.weights(full) for layer in self.graph.layers)
        dense = every - sum(d.size for d in self.decisions)
        scores = partial(scores_of, weights, self.pattern.scores)
        return plan_for(protocol, density, self.decisions, dense, scores)

    def kept_weights(self, plan: CompressionPlan) -> dict[str, int]:
        """Returns layer -> number of weights that stay, for every layer that loses some."""
        values = plan.values_for(self.decisions)
        counts = {d.target: d.units(v) for d, v in zip(self.decisions, values, strict=True)}
        return {d.target: counts[d.target] for d in self.decisions if counts[d.target] < d.size}

    def _read(self, plan: CompressionPlan) -> dict[str, int]:
        return self.kept_weights(plan)

    def counts(self, network: nn.Module, plan: CompressionPlan) -> dict[str, int]:
        """Returns layer -> weights that stay in a network, for every layer that loses some."""
        if network is self.original:
            return self.kept_weights(plan)
        return counts_in(network, self.decisions, plan)

    def sweeps(self, name: str) -> bool:
        """Whether the zeros of a layer of the original are chosen in a sweep over its inputs."""
        return self.fitted.is_swept(name)

    def apply(
        self,
        network: nn.Module,
        plan: CompressionPlan,
        *,
        exact: bool = True,
        later: Collection[str] = (),
    ) -> nn.Module:
        """Makes a network sparse as one part of a joint plan.

        In what earlier parts have made of the original, masks are chosen by the magnitudes that
        are there, and the re-fit is to the outputs of the layers as they are, with moments of the
        recalibration images.

        Args:
            network: What the earlier parts made of the original.
            plan: The densities.
            exact: See ``PlanPart.apply``.
            later: Layers that stay as they are, without a mask: a later part prunes them.
        """
        if later:
            plan = CompressionPlan(
                {d.key: 1.0 if d.target in later else plan[d.key] for d in self.decisions}
            )
            if not self.counts(network, plan):
                return network
        proxy = replace(self.proxy, finetune_steps=0) if exact else self.proxy
        dtype = torch.float32 if exact else self.evaluator.dtype
        with limited_threads(self.threads):
            if network is self.original:
                kept, fitted = self.kept_weights(plan), self.fitted
            else:
                kept, fitted = self._fit_again(network, plan)
            return self._finish(self._masked(network, kept, fitted, later), kept, dtype, proxy)

    def _masked(
        self,
        network: nn.Module,
        kept: Mapping[str, int],
        fitted: FittedWeights,
        later: Collection[str] = (),
    ) -> nn.Module:
        """Returns a copy in which every layer that is decided, and there, has a mask.

        But for later ones, see :meth:`apply`.
        """
        names = layers_there(network, [d.target for d in self.decisions])
        whole = [name for name in names if name not in {*kept, *later}]
        return masked(network, kept, fitted, self._norms, whole)

    def unfitted(self, plan: CompressionPlan) -> nn.Module:
        """Returns the original masked and not repaired: its values are nearer to trained ones."""
        return self._masked(self.original, self.kept_weights(plan), self._unfitted)

    def _fit_again(
        self, network: nn.Module, plan: CompressionPlan
    ) -> tuple[dict[str, int], FittedWeights]:
        """Returns what stays of a network that is not the original, and its re-fit."""
        kept = self.counts(network, plan)
        layers: Mapping[str, LayerReconstruction] = {}
        if self.proxy.reconstruct and kept:
            layers = FittedLayers(
                network.eval(),
                self.data.recalibration,
                list(kept),
                self._norms,
                seed=self.seed,
                room=self.options.room(),
            )
        return kept, self._fitted(network, layers)

    def _fitted(
        self, network: nn.Module, layers: Mapping[str, LayerReconstruction]
    ) -> FittedWeights:
        reconstruct, repair = self.proxy.reconstruct, self.options.repair
        levels = self.options.levels(self.device)
        return FittedWeights(network, layers, self.pattern, reconstruct, repair, levels)

    @property
    def levels(self) -> Levels:
        """What was solved of the original's layers so far."""
        return self.fitted.levels

    def _candidate(
        self, choice: Mapping[str, int], seconds: CandidateSeconds, *, trained: bool = True
    ) -> nn.Module:
        """Returns a plain network with zeros."""
        proxy = self.proxy if trained else replace(self.proxy, finetune_steps=0)
        dtype = self.evaluator.dtype
        with seconds.measure("reconstruction"):
            for name, count in choice.items():
                self.fitted.solve(name, count)
        if proxy.finetune_steps:
            with seconds.measure("finetuning"):
                network = self._masked(self.original, choice, self.fitted)
                return finalise(self._finish(network, choice, dtype, proxy))
        with seconds.measure("slicing"):
            network = with_zeros(self.original, choice, self.fitted, self._norms)
        with seconds.measure("recalibration"):
            return self._finish(network, choice, dtype, proxy)

    def _finish(
        self, network: nn.Module, kept: Mapping[str, int], dtype: torch.dtype, proxy: Proxy
    ) -> nn.Module:
        """Trains briefly and recalibrates, in place."""
        if proxy.recalibrate and kept:
            recalibrate(network, self.data.recalibration, dtype)
        if proxy.finetune_steps:
            self._train_briefly(network)
            if proxy.recalibrate:
                recalibrate(network, self.data.recalibration, dtype)
        return network

    @kept
    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns the share of its layer's output that each choice of each decision loses.

        The layer re-fitted; at ten densities, and interpolated between them. The last entry,
        nothing zero, is 0. Layers without statistics count the squared weights lost.
        """
        with limited_threads(self.threads):
            return layer_errors(self.decisions, self.original, self._layers, self.fitted)

    @kept
    def gradient_scores(self) -> dict[str, np.ndarray]:
        """Returns how much the loss rises by each choice of each decision, the layer re-fitted."""
        with limited_threads(self.threads):
            return gradient_scores(
                self.decisions, self.original, self._layers, self.fitted,
                self._affordable(self.data.labelled()), self.task,
                lambda name: self.proxy.restores_mean(name in self._norms),
            )  # fmt: skip

    def training_hooks(self, model: nn.Module) -> Sequence[TrainingHook]:
        """What every training of a network of this learner needs besides the loss."""
        own = self.options.training_hooks(model, self.original.state_dict())
        return (*super().training_hooks(model), *own)

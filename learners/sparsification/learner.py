"""Weight sparsification: zeros by magnitude, least-squares re-fit, recalibrate, evaluate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.base import Batches, Learner
from amc_compress.learners.candidates.preparation import (
    check_counts,
    check_training,
    preload,
    read_images,
)
from amc_compress.learners.candidates.proxy import Proxy, finetune_briefly, recalibrate
from amc_compress.learners.candidates.quantized_evaluator import QuantizedEvaluator
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.candidates.timing import EpisodeSeconds
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.following_norms import following_norms
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.networks.intake import plain_float
from amc_compress.learners.numerics.layout import layout_of
from amc_compress.learners.numerics.precision import resolve_precision, working_dtype
from amc_compress.learners.sparsification.building import counts_in, masked, weight_of, with_zeros
from amc_compress.learners.sparsification.curves import gradient_scores, layer_errors
from amc_compress.learners.sparsification.fitted import FittedWeights, moments_in, moments_of_layers
from amc_compress.learners.sparsification.layers import sparse_choice
from amc_compress.learners.sparsification.patterns import Pattern
from amc_compress.learners.sparsification.protocols import check_density, plan_for, scores_of
from amc_compress.learners.sparsification.schedule import GradualSparsity, SparsitySchedule
from amc_compress.learners.sparsification.storage import sparse_storage, with_header
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.hooks import TrainingHook
from amc_env.costs.costs import COSTS, CostModel, make_cost
from amc_env.costs.storage import StorageFormat
from amc_env.plan import CompressionPlan
from amc_env.threads import limited_threads

SCHEDULES = ("gradual", "one-shot")
_TYPICAL_DENSITY = 0.25


class WeightSparsification(Learner):
    """Sets weights of a trained network to zero; a plan holds one density per layer.

    Args:
        model: Any trained network; it is copied and never changed.
        example_input: One batch as the network takes it; only its shape matters.
        calibration: ``(images, labels)`` batches for statistics, from the training data, in
            random order. The first ``n_calibration`` images are used.
        validation: Batches to evaluate candidates on; not from calibration or test data.
        pattern: ``"unstructured"``, blocks like ``"block4"``, or N:M like ``"2:4"``.
        min_density: Smallest density on offer for a layer; N:M offers N/M and 1 only.
        schedule: What :meth:`finetune` does: ``"gradual"`` starts from the dense original and
            raises the sparsity while it trains, ``"one-shot"`` trains behind fixed masks.
        schedule_begin: Share of the training after which sparsity begins to rise.
        schedule_end: Share of the training at which it is reached.
        schedule_exponent: 3 is the cubic schedule of Zhu & Gupta (2017), equation 1.
        schedule_frequency: Steps between two sets of masks.
        proxy: Name in ``PROXIES``: the repairs a candidate gets before it is evaluated.
        finetune_steps: SGD steps on ``train`` before a candidate is evaluated.
        ignore: Layers (or modules that hold them) that must stay dense.
        train: Batches for ``finetune_steps``; the first ones are preloaded.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``, for evaluation; results are float32.
        device: Where to work.
        seed: Seed of every random choice.
        progress: Whether to show a progress bar while preparing.
        n_validation: Images that :meth:`evaluate` uses, a fixed random subset; all if ``None``.
        n_calibration: Images for the input statistics.
        n_recalibration: Images for batch-norm statistics, the first of the calibration images.
        threads: Threads during evaluation; ``None`` leaves PyTorch's setting alone.

    Attributes:
        name: ``"density"``, the part of a joint plan that this is.
        original: The uncompressed network, in ``eval`` mode; not to be changed.
        left_dense: Layers with weights that no decision is about -> the reason.
        pattern: As a ``Pattern``.
        schedule: ``"gradual"`` or ``"one-shot"``.
        storage: How sparse networks are stored, as costs count them.
        cost_models: Costs of the plans.
        seconds: What candidates have cost so far.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If no layer of the network can be sparse.
        ValueError: If an option has no such value.
    """

    name = "density"
    repairs_layers = True

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        calibration: Batches,
        validation: Batches,
        *,
        pattern: str = "unstructured",
        min_density: float = 0.02,
        schedule: str = "gradual",
        schedule_begin: float = 0.0,
        schedule_end: float = 0.5,
        schedule_exponent: float = 3.0,
        schedule_frequency: int = 100,
        proxy: str = "reconstruction+recalibration",
        finetune_steps: int = 0,
        ignore: Sequence[str] = (),
        train: Batches | None = None,
        precision: str = "auto",
        device: str | torch.device = "cpu",
        seed: int = 0,
        progress: bool = False,
        n_validation: int | None = 3000,
        n_calibration: int = 512,
        n_recalibration: int = 192,
        threads: int | None = 1,
    ) -> None:
        self.pattern = Pattern.parse(pattern)
        check_density("min_density", min_density)
        if schedule not in SCHEDULES:
            raise ValueError(f"Unknown schedule {schedule!r}; expected one of {list(SCHEDULES)}.")
        self.schedule = schedule
        self._ramp = SparsitySchedule(
            schedule_begin, schedule_end, schedule_exponent, schedule_frequency
        )
        self.proxy = Proxy.parse(proxy, finetune_steps)
        check_training(finetune_steps, train)
        check_counts(n_validation, n_calibration, n_recalibration)
        self._dtype = resolve_precision(precision, device)
        self.device = torch.device(device)
        self.seed = seed
        self.threads = threads
        self.seconds = EpisodeSeconds()
        self.original = self._take_in(model)
        needed = max(n_calibration, n_recalibration)
        (images, labels), held_out, n_outputs = read_images(
            self.original, calibration, validation, needed, example_input,
            n_validation=n_validation, seed=seed,
        )  # fmt: skip
        traced: TracedModel = trace(self.original, example_input.to(self.device))
        self.graph = traced.graph
        choice = sparse_choice(self.original, self.graph, self.pattern, min_density, ignore)
        self.decisions = choice.decisions
        self.left_dense = choice.left_dense
        self._training_dtype = working_dtype(self.original, precision, self.device)
        layout = layout_of(self.original, images[:1].to(self.device))
        self._data = preload(
            images[:n_recalibration], labels[:n_recalibration], train, finetune_steps,
            example_input, n_outputs, self.device, layout, seed,
        )  # fmt: skip
        with limited_threads(threads):
            # Candidates are plain networks with zeros: what runs of them is what runs of this one.
            self._evaluator = QuantizedEvaluator(
                *(self.original,) * 3, held_out,
                precision=precision, device=self.device, layout=layout,
            )  # fmt: skip
            self._norms = following_norms(self.original)
            names = [d.target for d in self.decisions]
            self._layers = moments_of_layers(
                self.original, images[:n_calibration], names, self._norms,
                device=self.device, seed=seed, progress=progress, layout=layout,
            )  # fmt: skip
        self.validation = held_out.batches
        self.original_accuracy = self._evaluator.original_accuracy
        self._fitted = FittedWeights(
            self.original, self._layers, self.pattern, self.proxy.reconstruct
        )
        self._unfitted = FittedWeights(self.original, {}, self.pattern, reconstruct=False)
        self.storage = self._measured_storage()
        self.cost_models: dict[str, CostModel] = {
            name: make_cost(name, self.graph, self.decisions, self.storage) for name in COSTS
        }

    def _measured_storage(self) -> StorageFormat:
        """Returns how sparse networks are stored; the header of the packed file is measured."""
        fits = [self._fitted]
        if self.schedule == "gradual" and self.proxy.reconstruct:
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
        weights = [weight_of(self.original, d.target) for d in self.decisions]
        full = self.graph.full()
        every = sum(layer.weights(full) for layer in self.graph.layers)
        dense = every - sum(d.size for d in self.decisions)
        scores = partial(scores_of, weights, self.pattern.scores)
        return plan_for(protocol, density, self.decisions, dense, scores)

    def kept_weights(self, plan: CompressionPlan) -> dict[str, int]:
        """Returns layer -> number of weights that stay, for every layer that loses some.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """
        values = plan.values_for(self.decisions)
        counts = {d.target: d.units(v) for d, v in zip(self.decisions, values, strict=True)}
        return {d.target: counts[d.target] for d in self.decisions if counts[d.target] < d.size}

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the proxy accuracy of a plan on the ``n_validation`` images, in [0, 1].

        A plan that keeps everything has the original accuracy: nothing needs repair.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
            TrainingDivergedError: If the candidate's outputs are not finite.
        """
        kept = self.kept_weights(plan)
        if not kept and not self.proxy.finetune_steps:
            return self.original_accuracy
        with limited_threads(self.threads):
            network = self._candidate(kept, self._dtype, self.proxy, self.seconds)
            start = time.process_time()
            accuracy = self._evaluator.accuracy(network)
        self.seconds.evaluation += time.process_time() - start
        self.seconds.episodes += 1
        return accuracy

    def evaluate_full(self, plan: CompressionPlan) -> float:
        """Returns the proxy accuracy on all validation images, in [0, 1].

        Raises:
            PlanMismatchError: If the plan does not fit this network.
            TrainingDivergedError: If the candidate's outputs are not finite.
        """
        kept = self.kept_weights(plan)
        with limited_threads(self.threads):
            network = self.original
            if kept or self.proxy.finetune_steps:
                network = self._candidate(kept, self._dtype, self.proxy)
            return self._evaluator.accuracy(network, full=True)

    def accuracy(self, network: nn.Module, *, full: bool = False) -> float:
        """Evaluates any network of these classes (``NetworkEvaluator``).

        Args:
            network: In ``eval`` mode, with masks or without.
            full: On all validation images instead of ``n_validation``.

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        with limited_threads(self.threads):
            network = plain_float(network)
            plain = finalise(network) if masked_layers(network) else network
            return self._evaluator.accuracy(plain, full=full)

    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Builds the network of a plan: masked, repaired as the proxy says, not fine-tuned.

        Always from the original weights, in the types that came; equal plans give equal networks.
        Every layer that is decided has a mask, also where it keeps everything; behind the masks
        stay the original weights. ``sparsification.finalise`` makes plain layers.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """
        return self.form.hand_back(self.apply(self.original, plan))

    def apply(self, network: nn.Module, plan: CompressionPlan, *, exact: bool = True) -> nn.Module:
        """Makes a network sparse as one part of a joint plan (``PlanPart``).

        Args:
            network: :attr:`original`, or what earlier parts made of it. In the latter masks are
                chosen by the magnitudes that are there, and the re-fit is to the outputs of the
                layers as they are, with moments of the recalibration images.
            plan: The densities.
            exact: In float32 and without SGD steps; otherwise as :meth:`evaluate` does it.

        Raises:
            PlanMismatchError: If the plan does not fit this network, or a layer is missing.
        """
        proxy = replace(self.proxy, finetune_steps=0) if exact else self.proxy
        dtype = torch.float32 if exact else self._dtype
        with limited_threads(self.threads):
            if network is self.original:
                kept, fitted = self.kept_weights(plan), self._fitted
            else:
                kept, fitted = self._fit_again(network, plan)
            return self._finish(self._masked(network, kept, fitted), kept, dtype, proxy)

    def _masked(
        self, network: nn.Module, kept: Mapping[str, int], fitted: FittedWeights
    ) -> nn.Module:
        """Returns a copy in which every layer that is decided has a mask."""
        whole = [d.target for d in self.decisions if d.target not in kept]
        return masked(network, kept, fitted, self._norms, whole)

    def unfitted(self, plan: CompressionPlan) -> nn.Module:
        """Returns the original masked and not repaired: its values are nearer to trained ones.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """
        return self._masked(self.original, self.kept_weights(plan), self._unfitted)

    def _fit_again(
        self, network: nn.Module, plan: CompressionPlan
    ) -> tuple[dict[str, int], FittedWeights]:
        """Returns what stays of a network that is not the original, and its re-fit."""
        kept = counts_in(network, self.decisions, plan)
        layers: dict[str, LayerReconstruction] = {}
        if self.proxy.reconstruct and kept:
            batches = self._data.recalibration
            layers = moments_in(network.eval(), batches, list(kept), self._norms, self.seed)
        return kept, FittedWeights(network, layers, self.pattern, self.proxy.reconstruct)

    def _candidate(
        self,
        kept: Mapping[str, int],
        dtype: torch.dtype,
        proxy: Proxy,
        seconds: EpisodeSeconds | None = None,
    ) -> nn.Module:
        """Returns a plain network with zeros to evaluate; adds what it took to ``seconds``."""
        clock = [time.process_time()]
        for name, count in kept.items():
            self._fitted.solve(name, count)
        clock.append(time.process_time())
        if proxy.finetune_steps:
            network = self._masked(self.original, kept, self._fitted)
            network = finalise(self._finish(network, kept, dtype, proxy))
            clock += [time.process_time()] * 2
        else:
            network = with_zeros(self.original, kept, self._fitted, self._norms)
            clock.append(time.process_time())
            self._finish(network, kept, dtype, proxy)
            clock.append(time.process_time())
        if seconds is not None:
            seconds.reconstruction += clock[1] - clock[0]
            seconds.finetuning += (clock[2] - clock[1]) if proxy.finetune_steps else 0.0
            seconds.slicing += 0.0 if proxy.finetune_steps else clock[2] - clock[1]
            seconds.recalibration += clock[3] - clock[2]
        return network

    def _finish(
        self, network: nn.Module, kept: Mapping[str, int], dtype: torch.dtype, proxy: Proxy
    ) -> nn.Module:
        """Trains briefly and recalibrates, in place."""
        if proxy.recalibrate and kept:
            recalibrate(network, self._data.recalibration, dtype)
        if proxy.finetune_steps:
            finetune_briefly(network, self._data.training, proxy, self._training_dtype, self.seed)
            if proxy.recalibrate:
                recalibrate(network, self._data.recalibration, dtype)
        return network

    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns the share of its layer's output that each choice of each decision loses.

        Per decision key an array over its choices: squared error over squared output, the layer
        re-fitted while all else is whole; at ten densities, and interpolated between them. The
        last entry, nothing zero, is 0. Layers without statistics count the squared weights lost.
        """
        with limited_threads(self.threads):
            return layer_errors(self.decisions, self.original, self._layers, self._fitted)

    def gradient_scores(self) -> dict[str, np.ndarray]:
        """Returns how much the loss rises by each choice of each decision, estimated in nats.

        Per decision key an array over its choices, the layer re-fitted while all else is whole;
        see ``gradient_scores``. It never rises; the last entry, nothing zero, is 0.
        """
        with limited_threads(self.threads):
            return gradient_scores(
                self.decisions, self.original, self._layers, self._fitted, self._data.labelled(),
                lambda name: self.proxy.restores_mean(name in self._norms),
            )  # fmt: skip

    def _training_hooks(self, model: nn.Module) -> Sequence[TrainingHook]:
        # Masks that keep everything need no schedule.
        is_sparse = any(layer.density() < 1.0 for layer in masked_layers(model).values())
        if self.schedule == "one-shot" or not is_sparse:
            return ()
        return (GradualSparsity(self.original.state_dict(), self.pattern, self._ramp),)

    def _training_defaults(self) -> TrainingConfig:
        return TrainingConfig(seed=self.seed)

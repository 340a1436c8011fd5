"""Channel pruning: slice, repair by least squares, recalibrate, evaluate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from amc_compress.learners.base import Batches, Learner
from amc_compress.learners.candidates.evaluator import fusion_works, settled_dtype
from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.preparation import preload
from amc_compress.learners.candidates.proxy import Proxy, finetune_briefly, recalibrate
from amc_compress.learners.candidates.reconstruction import (
    LayerReconstruction,
    prepare_reconstruction,
    write_layer,
)
from amc_compress.learners.candidates.timing import EpisodeSeconds
from amc_compress.learners.channel_pruning.criteria import Criterion, make_criterion, rank_units
from amc_compress.learners.channel_pruning.decisions import keep_ratio_decisions
from amc_compress.learners.channel_pruning.narrow import narrow_candidates
from amc_compress.learners.channel_pruning.ranking import group_contexts
from amc_compress.learners.channel_pruning.scores import Repair, gradient_scores
from amc_compress.learners.channel_pruning.sensitivity import error_curve
from amc_compress.learners.layers.following_norms import following_norms
from amc_compress.learners.networks.intake import as_float, plain_float
from amc_compress.learners.numerics.layout import laid_out, layout_name, layout_named, layout_of
from amc_compress.learners.numerics.precision import resolve_precision, working_dtype
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import check_labels, collect, count_outputs
from amc_env.plan import CompressionPlan
from amc_env.progress import no_bar
from amc_env.threads import limited_threads

_STATISTICS_BATCH = 64


class ChannelPruning(Learner):
    """Removes whole channels of a trained network; a plan holds one keep ratio per channel group.

    Args:
        model: Any trained network; it is copied and never changed.
        example_input: One batch as the network takes it; only its shape matters.
        calibration: ``(images, labels)`` batches for statistics and rankings, from the training
            data, in random order. The first ``n_calibration`` images are used.
        validation: Batches to evaluate candidates on; not from calibration or test data.
        criterion: Name in ``CRITERIA`` or a function of a ``GroupContext``: which units go first.
        proxy: Name in ``PROXIES``: the repairs a candidate gets before it is evaluated.
        finetune_steps: SGD steps on ``train`` before a candidate is evaluated.
        round_to: Kept channels come in multiples of this.
        min_ratio: Smallest keep ratio on offer.
        ignore: Layers (or prefixes of names) that must stay whole.
        train: Batches for ``finetune_steps``; the first ones are preloaded.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``, for evaluation.
        device: Where to work.
        seed: Seed of every random choice.
        progress: Whether to show a progress bar while preparing.
        n_validation: Images that :meth:`evaluate` uses, a fixed random subset; all if ``None``.
        n_calibration: Images for the input statistics.
        n_recalibration: Images for batch-norm statistics, the first of the calibration images.
        threads: Threads during evaluation; ``None`` leaves PyTorch's setting alone.

    Attributes:
        name: ``"channels"``, the part of a joint plan that this is.
        traced: The network with its channel groups; what slices.
        seconds: What candidates have cost so far.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If no channel of the network can be cut safely.
        ValueError: If an option has no such value.
    """

    name = "channels"
    repairs_layers = True

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        calibration: Batches,
        validation: Batches,
        *,
        criterion: str | Criterion = "l1",
        proxy: str = "reconstruction+recalibration",
        finetune_steps: int = 0,
        round_to: int = 8,
        min_ratio: float = 0.0,
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
        scorer = make_criterion(criterion)
        self.proxy = Proxy.parse(proxy, finetune_steps)
        if finetune_steps and train is None:
            raise ValueError(
                f"Expected training batches for finetune_steps={finetune_steps}, got none; "
                f"pass train=loader."
            )
        if min(n_calibration, n_recalibration, 1 if n_validation is None else n_validation) < 1:
            raise ValueError("Expected n_validation, n_calibration and n_recalibration >= 1.")
        self.device = torch.device(device)
        self.seed = seed
        self.threads = threads
        self.seconds = EpisodeSeconds()
        reference = self._take_in(model)
        images, labels = collect(calibration, n_calibration, "calibration", example_input, seed)
        self._held_out = HeldOut(
            validation, example_input, n_validation=n_validation, seed=seed, loader_seed=seed
        )
        n_outputs = count_outputs(reference, images[:2].to(self.device))
        check_labels(labels, n_outputs, "calibration")
        check_labels(self._held_out.labels, n_outputs, "validation")
        layout = layout_of(reference, images[:1].to(self.device))
        self._layout = layout_name(layout)

        self.traced: TracedModel = trace(
            reference, example_input.to(self.device), ignore=tuple(ignore)
        )
        self.graph = self.traced.graph
        self.decisions = keep_ratio_decisions(self.graph, round_to, min_ratio)
        with limited_threads(threads):
            # Inference in bfloat16 is faster on every network tried, depthwise ones included
            # (2.2 times on MobileNet V1); training is not, so that follows its own rule.
            self._dtype = resolve_precision(precision, self.device)
            self._training_dtype = working_dtype(reference, precision, self.device)
            self._prepare_evaluation(reference, images, layout)
            self._data = preload(
                images[:n_recalibration], labels[:n_recalibration], train, finetune_steps,
                example_input, n_outputs, self.device, layout, seed,
            )  # fmt: skip
            self._prepare_statistics(reference, images, progress)
            self.ranking = self._rank(reference, images, labels, scorer)

    def _split(self, images: Tensor) -> list[Tensor]:
        parts = torch.split(images, _STATISTICS_BATCH)
        return [laid_out(part.to(self.device), layout_named(self._layout)) for part in parts]

    def _prepare_evaluation(
        self, reference: nn.Module, images: Tensor, layout: torch.memory_format
    ) -> None:
        """Settles how candidates are evaluated, and measures the original network."""
        probe = images[:8].to(self.device)
        networks = [reference, *narrow_candidates(self.traced, self.decisions)]
        # What is fused computes channels last.
        fused = layout == torch.channels_last and all(
            fusion_works(network, probe, self._dtype) for network in networks[:2]
        )
        self._dtype = settled_dtype(networks, probe, self._dtype, fused=fused, layout=layout)
        self._held_out.settle([self._dtype], device=self.device, fused=fused, layout=layout)
        self.validation = self._held_out.batches
        self.original_accuracy = self._held_out.accuracy(reference, self._dtype)

    def _prepare_statistics(self, reference: nn.Module, images: Tensor, progress: bool) -> None:
        """Runs the original network once over the calibration images."""
        names = [layer.name for layer in self.graph.layers if layer.in_width.terms]
        self._norms = following_norms(reference)
        with tqdm(
            desc="calibrate", total=len(images), unit="image", disable=no_bar(progress)
        ) as bar:
            statistics = collect_statistics(
                reference, self._split(images), names, seed=self.seed, report=bar.update
            )
        self._layers: dict[str, LayerReconstruction] = prepare_reconstruction(
            reference, statistics, self._norms
        )

    def _rank(
        self, reference: nn.Module, images: Tensor, labels: Tensor, scorer: Criterion
    ) -> dict[str, Tensor]:
        """Orders the units of every group, those to keep longest first; for :meth:`select`."""
        labelled = zip(self._split(images), torch.split(labels, _STATISTICS_BATCH), strict=True)
        contexts = group_contexts(self.traced, reference, self._layers, list(labelled), self.seed)
        return {c.name: rank_units(scorer(c)) for c in contexts}

    def kept_units(self, plan: CompressionPlan) -> dict[str, Tensor]:
        """Returns the units that stay, sorted, for every group that loses some.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """
        kept = {}
        for decision, value in zip(self.decisions, plan.values_for(self.decisions), strict=True):
            count = decision.units(value)
            if count < decision.size:
                kept[decision.target] = self.select(decision.target, count)
        return kept

    def select(self, group: str, count: int) -> Tensor:
        """Returns the ``count`` units of a channel group that stay, sorted.

        A function of the prepared network alone: not of the plan, nor of what was asked before.

        Raises:
            ValueError: If the group has no so many units, or there is no such group.
        """
        self._check_selection(group, count)
        return self.ranking[group][:count].sort().values

    def _check_selection(self, group: str, count: int) -> None:
        if group not in self.ranking:
            raise ValueError(f"No channel group named {group!r}; groups: {sorted(self.ranking)}.")
        size = len(self.ranking[group])
        if isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= count <= size:
            raise ValueError(f"Expected 1 to {size} units of group {group!r} to stay, got {count}.")

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the proxy accuracy of a plan on the ``n_validation`` images, in [0, 1].

        A plan that cuts nothing has the original accuracy: nothing needs repair.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
            TrainingDivergedError: If the candidate's outputs are not finite.
        """
        kept = self.kept_units(plan)
        if not kept and not self.proxy.finetune_steps:
            return self.original_accuracy
        with limited_threads(self.threads):
            network = self._candidate(kept, self._dtype, self.proxy, self.seconds)
            start = time.process_time()
            accuracy = self._held_out.accuracy(network, self._dtype)
        self.seconds.evaluation += time.process_time() - start
        self.seconds.episodes += 1
        return accuracy

    def evaluate_full(self, plan: CompressionPlan) -> float:
        """Returns the proxy accuracy on all validation images, in [0, 1].

        Raises:
            PlanMismatchError: If the plan does not fit this network.
            TrainingDivergedError: If the candidate's outputs are not finite.
        """
        kept = self.kept_units(plan)
        with limited_threads(self.threads):
            if not kept and not self.proxy.finetune_steps:
                network: nn.Module = self.original
            else:
                network = self._candidate(kept, self._dtype, self.proxy)
        return self.accuracy(network, full=True)

    def accuracy(self, network: nn.Module, *, full: bool = False) -> float:
        """Evaluates any network of these classes (``NetworkEvaluator``).

        Args:
            network: In ``eval`` mode.
            full: On all validation images instead of ``n_validation``.

        Raises:
            TrainingDivergedError: If an output is not finite.
        """
        network = plain_float(network)
        with limited_threads(self.threads):
            return self._held_out.accuracy(network, self._dtype, full=full)

    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Builds the network of a plan: sliced, repaired as the proxy says, not fine-tuned.

        Always from the original weights, in the types that came; equal plans give equal networks.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """
        return self.form.hand_back(self.apply(self.original, plan))

    def recalibrate(self, network: nn.Module) -> None:
        """Measures batch-norm statistics again, in place, on the recalibration images.

        Args:
            network: Any network that takes the learner's images.
        """
        with limited_threads(self.threads), as_float(network) as plain:
            recalibrate(plain, self._data.recalibration, torch.float32)

    @property
    def original(self) -> nn.Module:
        """The uncompressed network, in ``eval`` mode; not to be changed."""
        return self.traced.model

    def apply(self, network: nn.Module, plan: CompressionPlan, *, exact: bool = True) -> nn.Module:
        """Cuts the original network as one part of a joint plan (``PlanPart``).

        Args:
            network: :attr:`original`; the moments of the repair are those of its layers, so
                channels are cut before anything else is done to it.
            plan: The keep ratios.
            exact: In float32 and without SGD steps; otherwise as :meth:`evaluate` does it.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
            ValueError: If the network is another one.
        """
        if network is not self.original:
            raise ValueError(
                "Expected the original network: channels are cut first, so give channel pruning "
                "as the first part."
            )
        kept = self.kept_units(plan)
        dtype = torch.float32 if exact else self._dtype
        proxy = replace(self.proxy, finetune_steps=0) if exact else self.proxy
        with limited_threads(self.threads):
            return self._candidate(kept, dtype, proxy)

    def _candidate(
        self,
        kept: Mapping[str, Tensor],
        dtype: torch.dtype,
        proxy: Proxy,
        seconds: EpisodeSeconds | None = None,
    ) -> nn.Module:
        """Slices and repairs; adds what it took to ``seconds``."""
        clock = [time.process_time()]
        network = self.traced.slice(kept).eval()
        clock.append(time.process_time())
        if proxy.reconstruct and kept:
            self._reconstruct(network, kept)
        clock.append(time.process_time())
        if proxy.finetune_steps:
            if proxy.recalibrate and kept:
                recalibrate(network, self._data.recalibration, dtype)
            finetune_briefly(network, self._data.training, proxy, self._training_dtype, self.seed)
        clock.append(time.process_time())
        if proxy.recalibrate and (kept or proxy.finetune_steps):
            recalibrate(network, self._data.recalibration, dtype)
        clock.append(time.process_time())
        if seconds is not None:
            seconds.add_building(clock)
        return network

    def _reconstruct(self, network: nn.Module, kept: Mapping[str, Tensor]) -> None:
        """Fits every layer that lost inputs to its original outputs."""
        modules = dict(network.named_modules())
        for name, layer in self._layers.items():
            inputs = self.traced.kept_inputs(name, kept)
            if inputs.numel() == layer.shape[1]:
                continue
            weight, shift = layer.solve(inputs, self.traced.kept_outputs(name, kept))
            write_layer(modules[name], weight, shift, modules.get(self._norms.get(name, "?")))

    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns how much of the consumers' output each choice of each decision loses.

        Per decision key an array over its choices: squared error over squared output, summed over
        the layers that read the group, each repaired by least squares while all else is whole.
        The last entry, nothing cut, is 0. Groups without statistics have zeros.
        """
        return {
            d.key: error_curve(d, self.traced, self._layers, self.select) for d in self.decisions
        }

    def gradient_scores(self) -> dict[str, np.ndarray]:
        """Returns how much the loss rises by each choice of each decision, estimated in nats.

        Per decision key an array over its choices, from gradients on the recalibration images;
        the layers that read the group are repaired, all else is whole, see
        ``gradient_scores``. It never rises; the last entry, nothing cut, is 0.
        """
        repair = Repair(self._layers, self.proxy, self._norms)
        with limited_threads(self.threads):
            return gradient_scores(
                self.decisions, self.traced, repair, self.select, self._data.labelled()
            )

    def _training_defaults(self) -> TrainingConfig:
        return TrainingConfig(seed=self.seed)

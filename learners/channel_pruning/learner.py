"""Channel pruning: slice, repair by least squares, recalibrate, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.gradient_scores import Scores
from amc_compress.learners.candidates.kept_curves import kept
from amc_compress.learners.candidates.learner import PartLearner
from amc_compress.learners.candidates.moments.pieces import FittedLayers
from amc_compress.learners.candidates.moments.wide import WideLayer, wide_layers_of
from amc_compress.learners.candidates.norms_before import norms_before
from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.preparation import Samples
from amc_compress.learners.candidates.proxy import Proxy, recalibrate
from amc_compress.learners.candidates.space import SearchSpace
from amc_compress.learners.candidates.timing import CandidateSeconds
from amc_compress.learners.channel_pruning.chains import cut_orders
from amc_compress.learners.channel_pruning.criteria import Criterion, make_criterion, rank_units
from amc_compress.learners.channel_pruning.curves import Repair, gradient_scores
from amc_compress.learners.channel_pruning.decisions import (
    decisions_about,
    keep_ratio_decisions,
    with_branches,
)
from amc_compress.learners.channel_pruning.depth.refit import StreamRefit
from amc_compress.learners.channel_pruning.narrow import narrow_candidates
from amc_compress.learners.channel_pruning.ranking import group_contexts
from amc_compress.learners.channel_pruning.sensitivity import (
    DEPTH_SCORES,
    branch_errors,
    branch_influences,
    branch_scores,
    error_curves,
)
from amc_compress.learners.layers.following_norms import following_norms
from amc_compress.learners.layers.weight_forms import write_layer
from amc_compress.learners.layers.wide_layers import is_repairable, unrepaired_note
from amc_compress.learners.networks.intake import as_float
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tracing.branches.left_out import LeftOut
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.kinds import Quantity
from amc_env.plan import CompressionPlan, Decision
from amc_env.support.threads import limited_threads
from amc_env.validation.checks import check_known, checked


@checked
@dataclass(frozen=True, kw_only=True)
class ChannelOptions(CandidateOptions):
    """What channel pruning is told; see ``CandidateOptions`` for what all learners are.

    Attributes:
        criterion: Name in ``CRITERIA`` or a function of a ``GroupContext``: which units go first.
        round_to: Kept channels come in multiples of this.
        min_ratio: Smallest keep ratio on offer; with 1 no channel is decided about, but depth.
        memory: Bytes that the moments of layers' inputs may take: the widest layers are repaired
            channel by channel so that all others fit. No limit but 5,000 columns if ``None``.
        decide_depth: Whether to decide which residual branches are there, too.
        depth_scores: What ``layer_errors`` and ``gradient_scores`` say of branches:
            ``"measured"`` leaves out one after the other, ``"influence"`` looks at what they do in
            one run.
    """

    criterion: str | Criterion = "l1"
    round_to: int = 8
    min_ratio: float = 0.0
    memory: int | None = None
    decide_depth: bool = False
    depth_scores: str = "measured"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("depth_scores", self.depth_scores, DEPTH_SCORES)
        make_criterion(self.criterion)
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"Expected memory in bytes, at least 1, got {self.memory}.")

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out a function: the ranking is done, and not every function pickles."""
        return {**vars(self), "criterion": str(self.criterion)}


class ChannelPruning(PartLearner[ChannelOptions, Mapping[str, Tensor]]):
    """Removes whole channels of a trained network; a plan holds one keep ratio per channel group.

    With ``decide_depth`` a plan also says which residual branches are there.

    The calibration images are for the statistics of the repair and for rankings; the options are
    those of :class:`ChannelOptions`.

    Attributes:
        ranking: Channel group -> its units, those that stay longest first.
    """

    name = "channels"
    repairs_layers = True
    Options = ChannelOptions
    _selects_chains: ClassVar[bool] = True
    """Whether a choice keeps what smaller ones keep."""

    @classmethod
    def decide(cls, traced: TracedModel, options: ChannelOptions) -> SearchSpace:
        """Returns one keep ratio per channel group that can be cut, and depths if asked for."""
        if options.min_ratio == 1.0 and not options.decide_depth:
            raise ValueError(
                "Expected min_ratio below 1, or decide_depth, got 1 without it: every channel "
                "stays, and nothing is left to decide."
            )
        ratios = (
            keep_ratio_decisions(traced.graph, options.round_to, options.min_ratio)
            if options.min_ratio < 1.0
            else ()
        )
        if not options.decide_depth:
            return SearchSpace(ratios)
        return SearchSpace(with_branches(traced.graph, ratios))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the network, with the layers that no cut repairs."""
        cut = unrepaired_note(self.graph, self.original) if self._ratios else ()
        return (*super().notes, *cut)

    def _trace(self, network: nn.Module, example: Inputs) -> TracedModel:
        given = self.options
        return trace(
            network,
            example,
            ignore=tuple(given.ignore),
            part=given.part,
            branches=given.decide_depth,
        )

    def _prepare(self, samples: Samples) -> None:
        # Inference in bfloat16 is faster on every network tried, depthwise ones included (2.2
        # times on MobileNet V1); training is not, so that follows its own rule.
        self._prepare_evaluator(samples, narrow_candidates(self.traced, self._ratios))
        self._norms = following_norms(self.original)
        self._layers = FittedLayers(self.original, [], [], {}, seed=self.seed)
        self._wide: dict[str, WideLayer] = {}
        self.ranking: dict[str, Tensor] = {}
        self._stream: StreamRefit | None = None
        if self._depths and self.proxy.reconstruct:
            self._stream = StreamRefit(self.traced, samples.batches())
        if self._ratios:
            self._collect(samples)

    def _collect(self, samples: Samples) -> None:
        """Collects what rankings, and repairs of cut layers, need of the original network."""
        modules = dict(self.original.named_modules())
        effort = self._effort(samples)
        n_samples = effort.n_samples or samples.n_calibration
        wide = wide_layers_of(
            self.traced, n_samples, seed=self.seed, norms=self._norms, memory=self.options.memory
        )
        self._layers = FittedLayers(
            self.original,
            samples.inputs(),
            # What least squares would write into a computed weight is not what the layer uses.
            [
                x.name
                for x in self.graph.layers
                if x.in_width.terms
                and x.name not in self.graph.computed
                and is_repairable(modules.get(x.name))
                and x.name not in wide
            ],
            self._norms,
            seed=self.seed,
            effort=effort,
            also={modules[name]: layer for name, layer in wide.items()},
            progress=self.options.progress,
            room=self.options.room(),
        )
        self._wide = {name: layer for name, layer in wide.items() if layer.is_ready}
        self.by_channel = frozenset(self._wide)
        for name, norm in norms_before(self.original, samples.example, self._layers).items():
            self._layers.tell(name, norm=norm)
        self.ranking = self._rank(samples)
        if self._selects_chains:
            orders = cut_orders(self.traced, self._ratios, self._layers, self.select)
            for name, order in orders.items():
                self._layers.tell(name, order=order)

    def _rank(self, samples: Samples) -> dict[str, Tensor]:
        """Orders the units of every group, those to keep longest first; for :meth:`select`."""
        scorer = make_criterion(self.options.criterion)
        contexts = group_contexts(
            self.traced, self.original, self._layers, samples.batches(), self.seed, self.task
        )
        return {c.name: rank_units(scorer(c)) for c in contexts}

    @property
    def _ratios(self) -> tuple[Decision, ...]:
        """The decisions about channel groups."""
        return decisions_about(Quantity.WIDTH, self.decisions)

    @property
    def _depths(self) -> tuple[Decision, ...]:
        """The decisions about branches."""
        return decisions_about(Quantity.PRESENCE, self.decisions)

    def kept_units(self, plan: CompressionPlan) -> dict[str, Tensor]:
        """Returns the units that stay, sorted, for every group that loses some.

        A branch that is left out has none, under the key of its decision; its groups are not
        listed.
        """
        snapped = plan.values_for(self.decisions)
        values = {d.key: value for d, value in zip(self.decisions, snapped, strict=True)}
        out = [d for d in self._depths if not values[d.key]]
        kept = {d.key: torch.zeros(0, dtype=torch.int64) for d in out}
        gone = {name for d in out for name in self.graph.branch(d.target).groups}
        for decision in self._ratios:
            count = decision.units(values[decision.key])
            if count < decision.size and decision.target not in gone:
                kept[decision.target] = self.select(decision.target, count)
        return kept

    def _read(self, plan: CompressionPlan) -> dict[str, Tensor]:
        return self.kept_units(plan)

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

    def recalibrate(self, network: nn.Module) -> None:
        """Measures batch-norm statistics again, in place, on the recalibration images.

        Args:
            network: Any network that takes the learner's images.
        """
        with limited_threads(self.threads), as_float(network) as plain:
            recalibrate(plain, self.data.recalibration, torch.float32)

    def apply(self, network: nn.Module, plan: CompressionPlan, *, exact: bool = True) -> nn.Module:
        """Cuts :attr:`original` as the first part of a joint plan.

        Raises:
            ValueError: If the network is another one: the moments of the repair are those of the
                original's layers.
        """
        if network is not self.original:
            raise ValueError(
                "Expected the original network: channels are cut first, so give channel pruning "
                "as the first part."
            )
        kept = self.kept_units(plan)
        with limited_threads(self.threads):
            if not exact:
                return self._candidate(kept, CandidateSeconds())
            proxy = replace(self.proxy, finetune_steps=0)
            return self._build(kept, torch.float32, proxy, CandidateSeconds())

    def _candidate(
        self, choice: Mapping[str, Tensor], seconds: CandidateSeconds, *, trained: bool = True
    ) -> nn.Module:
        proxy = self.proxy if trained else replace(self.proxy, finetune_steps=0)
        return self._build(choice, self.evaluator.dtype, proxy, seconds)

    def _build(
        self,
        kept: Mapping[str, Tensor],
        dtype: torch.dtype,
        proxy: Proxy,
        seconds: CandidateSeconds,
    ) -> nn.Module:
        """Slices and repairs."""
        with seconds.measure("slicing"):
            network = self.traced.slice(kept).eval()
        with seconds.measure("reconstruction"):
            if proxy.reconstruct and kept:
                self._reconstruct(network, kept)
                if self._stream is not None:
                    self._stream.apply(network, lambda n: self.traced.kept_outputs(n, kept))
        with seconds.measure("finetuning"):
            if proxy.finetune_steps:
                if proxy.recalibrate and kept:
                    recalibrate(network, self.data.recalibration, dtype)
                self._train_briefly(network)
        with seconds.measure("recalibration"):
            if proxy.recalibrate and (kept or proxy.finetune_steps):
                recalibrate(network, self.data.recalibration, dtype)
        return network

    def _reconstruct(self, network: nn.Module, kept: Mapping[str, Tensor]) -> None:
        """Fits every layer that lost inputs to its original outputs."""
        modules = dict(network.named_modules())
        for name in (*self._layers, *self._wide):
            if name not in modules or isinstance(modules[name], LeftOut):
                continue
            inputs = self.traced.kept_inputs(name, kept)
            is_wide = name in self._wide
            whole = self._wide[name].shape if is_wide else self._layers.shapes[name]
            if inputs.numel() == whole[1]:
                continue
            layer = self._wide[name] if is_wide else self._layers[name]
            weight, shift = layer.solve(inputs, self.traced.kept_outputs(name, kept))
            write_layer(modules[name], weight, shift, modules.get(self._norms.get(name, "?")))

    @kept
    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns how much of the consumers' output each choice of each decision loses.

        Summed over the layers that read the group, each repaired by least squares. Groups without
        statistics have zeros. Of a branch it is what the network's output loses.
        """
        batches = self._affordable(self.data.recalibration)
        with limited_threads(self.threads):
            curves = error_curves(self._ratios, self.traced, self._layers, self.select)
            curves |= self._of_branches(lambda some: branch_errors(some, self.traced, batches))
        return {d.key: curves[d.key] for d in self.decisions}

    @kept
    def gradient_scores(self) -> dict[str, np.ndarray]:
        """Returns how much the loss rises by each choice, the layers behind it repaired.

        Of a branch the rise is measured.
        """
        repair = Repair(self._layers, self.proxy, self._norms)
        with limited_threads(self.threads):
            batches = self._affordable(self.data.labelled())
            scores: Scores = {}
            if self._ratios:
                scores = gradient_scores(
                    self._ratios,
                    self.traced,
                    repair,
                    self.select,
                    batches,
                    self.task,
                    progress=self.options.progress,
                )
            scores |= self._of_branches(
                lambda some: branch_scores(some, self.traced, batches, self.task)
            )
        return {d.key: scores[d.key] for d in self.decisions}

    def _of_branches(self, measure: Callable[[Sequence[Decision]], Scores]) -> Scores:
        """Returns what is lost without each branch, as the options say."""
        if not self._depths:
            return {}
        if self.options.depth_scores == "measured":
            return measure(self._depths)
        batches = self._affordable(self.data.recalibration)
        return branch_influences(self._depths, self.traced, batches, measure)

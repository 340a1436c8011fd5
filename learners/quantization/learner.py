"""Base of quantization learners: calibrate once, quantize, match, evaluate."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.kept_curves import kept
from amc_compress.learners.candidates.learner import PartLearner
from amc_compress.learners.candidates.preparation import Samples, check_not_constant
from amc_compress.learners.candidates.proxy import batch_norms
from amc_compress.learners.candidates.space import SearchSpace
from amc_compress.learners.candidates.timing import CandidateSeconds
from amc_compress.learners.layers.bit_layers import BitLayers, bit_layers
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.shared_weights import sharing_weights
from amc_compress.learners.layers.structure import (
    foldable_norms,
    folded_copy,
    folded_like,
    layer_weights,
    quantize_layers,
    same_state,
    same_weights,
)
from amc_compress.learners.networks.intake import plain_float
from amc_compress.learners.packing.sizes import header_bytes, stored_bytes
from amc_compress.learners.quantization.calibration import Observation, match_outputs, observe
from amc_compress.learners.quantization.curves import Rounded, gradient_scores, layer_errors
from amc_compress.learners.quantization.decisions import BitChoice, BitPair, is_float
from amc_compress.learners.quantization.fitted import FittedQuantizers
from amc_compress.learners.quantization.inputs import input_quantizer
from amc_compress.learners.quantization.options import QuantizationOptions
from amc_compress.learners.quantization.preparation import quantized_training
from amc_compress.learners.quantization.streams import (
    Streams,
    find_streams,
    match_streams,
    stream_means,
)
from amc_compress.learners.tasks.inputs import Inputs, Split, count, rows
from amc_compress.learners.tracing.branches.left_out import layers_there
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_compress.learners.training.config import TrainingConfig
from amc_env.costs.costs import BytesCost, make_cost
from amc_env.costs.storage import OFF_BITS
from amc_env.errors import UntraceableModelError
from amc_env.plan import CompressionPlan
from amc_env.support.threads import limited_threads

_COSTS = ("bytes", "bops", "mean_bits", "params")


class QuantizationLearner(PartLearner[QuantizationOptions, Mapping[str, BitPair]]):
    """Quantizes weights and inputs of layers; a plan holds bits per layer.

    The calibration images are for ranges of activations; the options are those of
    :class:`QuantizationOptions`. What :meth:`compress` builds is folded and quantized; its
    quantized layers are trainable by :meth:`finetune`.

    Attributes:
        layers: What is quantized, in network order.
        float_network: The original with its norms folded.
        fitted: Quantizers of its layers for all bits on offer.
    """

    name = "bits"
    Options = QuantizationOptions
    # Outputs are matched on all recalibration images at once.
    _recalibration_batch = None

    @classmethod
    def decide(cls, traced: TracedModel, options: QuantizationOptions) -> SearchSpace:
        """Returns the bits that are decided, and how layers of such bits are stored."""
        found = _quantizable(traced, options)
        choice = _choice(traced, options, found)
        storage = options.storage(choice, foldable_norms(traced.model))
        return SearchSpace(choice.decisions, storage, found.left, found.notes())

    def _prepare(self, samples: Samples) -> None:
        check_not_constant(samples.calibration)
        batches = [x for x, _ in samples.batches()]
        self.float_network, self._folded = folded_copy(self.original, rows(batches[0], slice(0, 8)))
        self._observe(batches)
        self._collect(samples)
        self._choice = _choice(self.traced, self.options, self._places)
        self.decisions = self._choice.decisions
        self.fitted = FittedQuantizers(
            self.layers,
            self._choice,
            lambda name, bits: self._make_weight_quantizer(
                name, *layer_weights(self.float_network, name), bits
            ),
            lambda name, bits: self._make_input_quantizer(name, bits, self._observation),
        )
        self._measure_header()
        bits = self._choice.read(CompressionPlan.full(self.decisions))
        most = self._build(self.float_network, bits, self._observation, shares=True)
        self._prepare_evaluator(samples, [most])

    def _observe(self, batches: Sequence[Inputs]) -> None:
        """Runs the float network over the calibration images: what never runs stays in float."""
        found = _quantizable(self.traced, self.options)
        names = list(found.layers)
        seen = observe(
            self.float_network, batches, names, seed=self.seed, progress=self.options.progress
        )
        self._streams: Streams = {}
        if not batch_norms(self.original):
            self._streams = find_streams(self.float_network, self._recalibration, names)
        there = self._seen(self.float_network, names)
        self._observation = replace(there, inputs=seen.inputs)
        self._places = found.without([name for name in names if name not in seen.calls])
        self.layers = tuple(self._places.layers)
        if not self.layers:
            raise _nothing(self.traced, self.options)

    def _collect(self, samples: Samples) -> None:
        """Collects what :meth:`_round` needs of the original network, where it does anything."""

    def _round(self, network: nn.Module, folded: nn.Module) -> None:
        """Rounds the weights of a quantized network better than to the nearest value, in place.

        Args:
            network: Quantized by :meth:`_build`.
            folded: The float network that it was made of.
        """

    @property
    def left_float(self) -> Mapping[str, str]:
        """Weights that stay in float, by layer or parameter -> the reason."""
        return self._places.left

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the network: what stays in float, too."""
        return (*super().notes, *self._places.notes())

    def axis(self, name: str) -> int:
        """Returns the axis of a layer's weights along which its channels lie.

        Groups of a table are of its rows, each of which is read alone.
        """
        place = self._places.layers[name]
        return 0 if self.options.granularity == "group" and not place.has_input else place.axis

    @property
    def _recalibration(self) -> Inputs:
        return self._matched()[0]

    def _matched(self) -> Split:
        """Returns the batch that outputs are matched on; of several sizes the most samples."""
        return max(self.data.labelled(), key=count)

    @abstractmethod
    def _make_weight_quantizer(
        self, name: str, weight: Tensor, mask: Tensor | None, bits: int
    ) -> Quantizer:
        """Returns the quantizer of a layer's weights, fitted to those that count."""

    def _make_input_quantizer(self, name: str, bits: int, seen: Observation) -> Quantizer:
        return input_quantizer(seen.inputs[name], bits, self.options.activation_range, name)

    def _measure_header(self) -> None:
        """Sets the costs; header and ranges of the packed file are measured, not estimated."""
        form = self.options.storage(self._choice, self._folded)
        # Not on what is "off": costs may count more for it than a file holds.
        plan = self.most_bits()
        bits = self._choice.read(plan)
        network = self._build(self.float_network, bits, self._observation, shares=True)
        tensors = BytesCost(self.graph, self.decisions, form)(plan.values_for(self.decisions))
        self.storage = replace(form, fixed_bytes=header_bytes(network, plan, tensors))
        self.cost_models = {
            name: make_cost(name, self.graph, self.decisions, self.storage) for name in _COSTS
        }

    def fixed_plan(self, weight_bits: int, activation_bits: int | None = None) -> CompressionPlan:
        """Returns the plan with the same bits for all decided layers; the most if ``None``.

        Raises:
            PlanMismatchError: If that is no choice of a decision.
        """
        return self._choice.fixed_plan(weight_bits, activation_bits)

    def weight_bits(self, plan: CompressionPlan) -> dict[str, int]:
        """Returns layer -> bits of its weights, of all layers that are quantized."""
        return {name: bits.weights for name, bits in self._choice.read(plan).items()}

    def most_bits(self) -> CompressionPlan:
        """Returns the plan of the most bits that are not "off", where there are such."""
        return self._choice.most_bits()

    def apply(self, network: nn.Module, plan: CompressionPlan, *, exact: bool = True) -> nn.Module:
        """Quantizes a network as the last part of a joint plan (``learners.joint.parts.PlanPart``).

        The same way for a candidate and for good. Weights that earlier parts have changed get
        ranges of their own, and so do activations: they are calibrated on the network at hand,
        once, and static from then on.
        """
        return self.quantize(network, plan, recalibrate=self.proxy.recalibrate)

    def quantize(
        self, network: nn.Module, plan: CompressionPlan, *, recalibrate: bool = True
    ) -> nn.Module:
        """Quantizes a network with the original's module names, a sliced one for example.

        Args:
            network: The network, in float, its norms not yet folded; it is copied. Masks stay,
                and only the weights that count are fitted. Layers that went with a branch get none.
            plan: Bits for the learner's decisions.
            recalibrate: Whether to match the outputs of every layer to those of ``network``.

        Raises:
            PlanMismatchError: If the plan does not fit, or the network lacks a layer.
        """
        return self._quantized(network, plan, self._round, recalibrate=recalibrate)

    def _quantized(
        self,
        network: nn.Module,
        plan: CompressionPlan,
        rounds: Callable[[nn.Module, nn.Module], None],
        *,
        recalibrate: bool,
    ) -> nn.Module:
        """See :meth:`quantize`; ``rounds`` does what :meth:`_round` does."""
        there = layers_there(network, self.layers)
        every = self._choice.read(plan)
        bits = {name: every[name] for name in there}
        folded = folded_like(plain_float(network), self._folded, there)
        with limited_threads(self.threads):
            seen = self._observation
            if not same_state(folded, self.float_network):
                seen = self._seen(folded, there)
            quantized = self._build(folded, bits, seen)
            rounds(quantized, folded)
            if recalibrate:
                self._match(quantized, seen)
        return quantized

    def _build(
        self,
        folded: nn.Module,
        bits: Mapping[str, BitPair],
        seen: Observation,
        *,
        shares: bool = False,
    ) -> nn.Module:
        """Returns a quantized copy of a folded network.

        Args:
            folded: The network; it is not changed.
            bits: Of its layers.
            seen: What they read.
            shares: Whether weights that nothing changes later are shared with it: in a network that
                is evaluated and let go.
        """
        chosen: dict[str, tuple[Quantizer | None, Quantizer | None]] = {}
        for name, layer in bits.items():
            weights = inputs = None
            if layer.weights != OFF_BITS:
                if same_weights(folded, self.float_network, name):
                    weights = self.fitted.weights(name, layer.weights)
                else:
                    given = layer_weights(folded, name)
                    weights = self._make_weight_quantizer(name, *given, layer.weights)
            if layer.inputs != OFF_BITS:
                if seen is self._observation:
                    inputs = self.fitted.inputs(name, layer.inputs)
                else:
                    inputs = self._make_input_quantizer(name, layer.inputs, seen)
            chosen[name] = (weights, inputs)
        if shares:
            # The scales of folded layers are matched, and their weights with them.
            copied = sharing_weights(folded, but=[*self._folded.values()])
        else:
            copied = copy.deepcopy(folded)
        return quantize_layers(copied, chosen)

    def stored_bytes(self, network: nn.Module) -> dict[str, dict[int, int]]:
        """Returns layer -> bits -> bytes of its weights on disk, see ``entropy.stored_bytes``."""
        folded = folded_like(network, self._folded, self.layers)
        widths = {n: self._choice.used(n)[0] - {OFF_BITS} for n in self.layers}
        return stored_bytes(folded, widths, self._make_weight_quantizer)

    def _seen(self, network: nn.Module, layers: Sequence[str]) -> Observation:
        """Returns what is matched of a float network, and what its layers read."""
        found = observe(network, [self._recalibration], layers, seed=self.seed)
        there = dict(network.named_modules())
        norms = [n for n, layer in self._streams.items() if layer in layers and n in there]
        if not norms:
            return found
        return replace(found, streams=stream_means(network, self._recalibration, norms))

    def _match(self, network: nn.Module, seen: Observation) -> None:
        if seen.streams:
            match_streams(network, self._recalibration, self._streams, seen.streams)
            return
        folded = [*self._folded.values()]
        match_outputs(network, self._recalibration, seen.once(), folded, torch.float32)

    def _read(self, plan: CompressionPlan) -> dict[str, BitPair]:
        return self._choice.read(plan)

    def _is_untouched(self, choice: Mapping[str, BitPair]) -> bool:
        return is_float(choice)

    def _candidate(
        self, choice: Mapping[str, BitPair], seconds: CandidateSeconds, *, trained: bool = True
    ) -> nn.Module:
        with seconds.measure("slicing"):
            shares = not (trained and self.proxy.finetune_steps)
            network = self._build(self.float_network, choice, self._observation, shares=shares)
        with seconds.measure("reconstruction"):
            self._round(network, self.float_network)
        with seconds.measure("recalibration"):
            if self.proxy.recalibrate:
                self._match(network, self._observation)
        with seconds.measure("finetuning"):
            if trained and self.proxy.finetune_steps:
                self._train_briefly(network)
        return network

    def _of_choices(self) -> Mapping[str, Sequence[Rounded | None]]:
        """Returns decision key -> what each choice makes of weights or inputs, None for float."""
        return self.fitted.of_choices(self.decisions)

    @kept
    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns the share of its layer's output that each choice of each decision loses.

        Of the output without its mean, while all else is float.
        """
        with limited_threads(self.threads):
            return layer_errors(
                self.float_network, self._recalibration, self.decisions, self._of_choices()
            )

    @kept
    def gradient_scores(self) -> dict[str, np.ndarray]:
        """Returns how much the loss rises by each choice, 0 for float."""
        inputs, targets = self._matched()
        matched: Collection[str] = self._streams.values() or self._observation.once()
        matched = matched if self.proxy.recalibrate else ()
        with limited_threads(self.threads):
            return gradient_scores(
                self.float_network,
                inputs,
                targets,
                self.decisions,
                self._of_choices(),
                matched,
                self.task,
            )

    def training_defaults(self) -> TrainingConfig:
        """The settings of :meth:`finetune` where none are given."""
        return quantized_training(self.seed)


def _quantizable(traced: TracedModel, options: QuantizationOptions) -> BitLayers:
    """Returns the layers that can be quantized, in network order, and why others cannot."""
    if masked := list(masked_layers(traced.model)):
        # Their costs are not those of the network that is traced.
        raise ValueError(
            f"Expected a network without masks to prepare a quantizer for, got masked layers "
            f"{masked[:3]}; prepare it for the dense network and give the sparse one to "
            f"quantize(network, plan), or decide densities and bits with deep_compression."
        )
    found = bit_layers(traced.model, traced.graph, options.ignore)
    if not found.layers:
        raise _nothing(traced, options)
    return found


def _nothing(traced: TracedModel, options: QuantizationOptions) -> UntraceableModelError:
    return UntraceableModelError(
        f"Expected a layer with weights that runs, to quantize it; of the layers "
        f"{[layer.name for layer in traced.graph.layers]} none is one (ignored: "
        f"{list(options.ignore)})."
    )


def _choice(traced: TracedModel, options: QuantizationOptions, found: BitLayers) -> BitChoice:
    sizes = {n: layer_weights(traced.model, n)[0].numel() for n in found.layers}
    without_inputs = [n for n, layer in found.layers.items() if not layer.has_input]
    tables = [layer.name for layer in traced.graph.layers if layer.kind == "embedding"]
    return options.choice(sizes, without_inputs, tables)

"""Base of quantization learners: calibrate once, quantize, match, evaluate."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.base import Batches, Learner
from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.candidates.preparation import check_counts, read_images, training_batches
from amc_compress.learners.candidates.proxy import finetune_briefly
from amc_compress.learners.candidates.quantized_evaluator import QuantizedEvaluator
from amc_compress.learners.candidates.timing import EpisodeSeconds
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.structure import (
    folded_copy,
    folded_like,
    layer_weights,
    quantize_layers,
    same_state,
    same_weights,
)
from amc_compress.learners.networks.intake import plain_float
from amc_compress.learners.numerics.layout import laid_out, layout_of, owned
from amc_compress.learners.numerics.precision import working_dtype
from amc_compress.learners.packing.sizes import header_bytes, stored_bytes
from amc_compress.learners.quantization.calibration import Observation, match_outputs, observe
from amc_compress.learners.quantization.decisions import BitPair, Bits, bit_choice, is_float
from amc_compress.learners.quantization.errors import layer_errors
from amc_compress.learners.quantization.fitted import FittedQuantizers
from amc_compress.learners.quantization.inputs import input_quantizer
from amc_compress.learners.quantization.preparation import (
    check_bit_options,
    check_dense,
    check_evaluation,
    check_fitting,
    observe_layers,
    quantized_proxy,
    quantized_training,
)
from amc_compress.learners.quantization.scores import gradient_scores
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.learners.training.config import TrainingConfig
from amc_env.costs.costs import BytesCost, CostModel, make_cost
from amc_env.costs.storage import OFF_BITS, StorageFormat
from amc_env.plan import CompressionPlan
from amc_env.threads import limited_threads

_COSTS = ("bytes", "bops", "mean_bits", "params")


class QuantizationLearner(Learner):
    """Quantizes weights and inputs of layers; a plan holds bits per layer.

    Args:
        model: Any trained network; it is copied and never changed.
        example_input: One batch as the network takes it; only its shape matters.
        calibration: ``(images, labels)`` batches for ranges, from the training data, in random
            order. The first ``n_calibration`` images are used.
        validation: Batches to evaluate candidates on; not from calibration or test data.
        weight_bits: Bits of weights, 2 to 8 or 16 (float). A sequence is decided layer by layer,
            one number is fixed for all.
        activation_bits: Bits of every layer's input, likewise.
        first_last_bits: Bits of the first and the last layer, which are then not decided; ``None``
            treats them like the others. What is float everywhere else is float there too.
        granularity: What shares a scale or codebook of weights: ``"tensor"``, ``"channel"`` (an
            output channel) or ``"split"`` (``bucket_size`` consecutive weights).
        bucket_size: Weights per bucket of ``"split"``.
        activation_range: Name in ``RANGE_RULES``: how the range of activations is found.
        proxy: ``"recalibration"`` matches the moments of every layer's output to the float
            network's before a candidate is evaluated (and in :meth:`compress`); ``"none"`` does
            not.
        finetune_steps: SGD steps on ``train`` before a candidate is evaluated.
        ignore: Layers (or modules that hold them) that stay in float.
        train: Batches for ``finetune_steps``; the first ones are preloaded.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``, for evaluation; results are float32.
        device: Where to work.
        seed: Seed of every random choice.
        progress: Whether to show a progress bar while preparing.
        n_validation: Images that :meth:`evaluate` uses, a fixed random subset; all if ``None``.
        n_calibration: Images for the activation ranges.
        n_recalibration: Images for the moments of outputs, the first of the calibration images.
        threads: Threads during evaluation; ``None`` leaves PyTorch's setting alone.

    Attributes:
        traced: The network with its layers and channel groups.
        storage: How quantized layers are stored, as costs count them.
        cost_models: Costs that know bits, for the environment.
        seconds: What candidates have cost so far.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If no layer of the network can be quantized.
        ValueError: If an option has no such value, or the network has masks.
    """

    cost_models: Mapping[str, CostModel]

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        calibration: Batches,
        validation: Batches,
        *,
        weight_bits: Bits = (2, 3, 4, 5, 6, 7, 8),
        activation_bits: Bits = 8,
        first_last_bits: int | None = 8,
        granularity: str = "channel",
        bucket_size: int = 256,
        activation_range: str = "mse",
        proxy: str = "recalibration",
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
        check_bit_options(weight_bits, activation_bits, first_last_bits)
        check_fitting(granularity, bucket_size, activation_range)
        check_evaluation(proxy, finetune_steps, train, precision)
        check_counts(n_validation, n_calibration, n_recalibration)
        self.proxy = quantized_proxy(proxy, finetune_steps)
        self.granularity = granularity
        self.bucket_size = bucket_size
        self.activation_range = activation_range
        self.device = torch.device(device)
        self.seed = seed
        self.threads = threads
        self.seconds = EpisodeSeconds()
        self._precision = precision
        reference = self._reference = self._take_in(model)
        check_dense(reference)
        (images, labels), held_out, n_outputs = read_images(
            reference, calibration, validation, n_calibration, example_input,
            n_validation=n_validation, seed=seed,
        )  # fmt: skip
        self._labels = owned(labels[:n_recalibration])
        images = images.to(self.device)
        layout = layout_of(reference, images[:1])
        self.traced: TracedModel = trace(reference, example_input.to(self.device))
        self.graph = self.traced.graph
        with limited_threads(threads):
            self._float, self._folded = folded_copy(reference, laid_out(images[:8], layout))
            self._recalibration, self._observation, self.layers = observe_layers(
                self._float, self.graph, images, n_recalibration, ignore,
                layout=layout, seed=seed, progress=progress,
            )  # fmt: skip
            self._choose(weight_bits, activation_bits, first_last_bits)
            self._prepare_quantizers()
            self._price()
            self._prepare_evaluator(held_out, layout)
        self._training_dtype = working_dtype(self._float, precision, self.device)
        self._training = training_batches(
            train, finetune_steps, example_input, n_outputs, self.device,
            layout=layout, seed=seed,
        )  # fmt: skip

    def _choose(self, weight_bits: Bits, activation_bits: Bits, first_last: int | None) -> None:
        """Says what is decided."""
        sizes = {n: layer_weights(self._float, n)[0].numel() for n in self.layers}
        self._choice = bit_choice(sizes, weight_bits, activation_bits, first_last)
        self.decisions = self._choice.decisions

    def _stored_form(self) -> StorageFormat:
        """Returns how layers are stored, without the file's header: a scale for every bucket."""
        return StorageFormat(
            weight_bits={k: float(v) for k, v in self._choice.fixed_weights.items()},
            activation_bits={k: float(v) for k, v in self._choice.fixed_inputs.items()},
            granularity=self.granularity,
            bucket_size=self.bucket_size,
            folded=self._folded,
        )

    @abstractmethod
    def _make_weight_quantizer(
        self, name: str, weight: Tensor, mask: Tensor | None, bits: int
    ) -> Quantizer:
        """Returns the quantizer of a layer's weights, fitted to those that count."""

    def _make_input_quantizer(self, name: str, bits: int, seen: Observation) -> Quantizer:
        return input_quantizer(seen.inputs[name], bits, self.activation_range, name)

    def _prepare_quantizers(self) -> None:
        """Fits the quantizers of all layers and bits."""
        self._fitted = FittedQuantizers(
            self.layers,
            self._choice,
            lambda name, bits: self._make_weight_quantizer(
                name, *layer_weights(self._float, name), bits
            ),
            lambda name, bits: self._make_input_quantizer(name, bits, self._observation),
        )

    def _price(self) -> None:
        """Sets the costs; header and ranges of the packed file are measured, not estimated."""
        form = self._stored_form()
        # Not on what is "off": costs may count more for it than a file holds.
        plan = self.most_bits()
        network = self._build(self._float, self._choice.read(plan), self._observation)
        tensors = BytesCost(self.graph, self.decisions, form)(plan.values_for(self.decisions))
        header = header_bytes(network, plan, tensors)
        self.storage: StorageFormat = replace(form, fixed_bytes=header)
        self.cost_models = {
            name: make_cost(name, self.graph, self.decisions, self.storage) for name in _COSTS
        }

    def _prepare_evaluator(self, held_out: HeldOut, layout: torch.memory_format) -> None:
        """Settles how candidates are evaluated, and measures the original network."""
        bits = self._choice.read(CompressionPlan.full(self.decisions))
        of_weights = {n: BitPair(b.weights, OFF_BITS) for n, b in bits.items()}
        self._evaluator = QuantizedEvaluator(
            self._reference,
            self._build(self._float, bits, self._observation),
            self._build(self._float, of_weights, self._observation),
            held_out,
            precision=self._precision,
            device=self.device,
            layout=layout,
        )
        self.validation = held_out.batches
        self.original_accuracy = self._evaluator.original_accuracy

    def fixed_plan(self, weight_bits: int, activation_bits: int | None = None) -> CompressionPlan:
        """Returns the plan with the same bits for all decided layers; the most if ``None``.

        Raises:
            PlanMismatchError: If that is no choice of a decision.
        """
        return self._choice.fixed_plan(weight_bits, activation_bits)

    def most_bits(self) -> CompressionPlan:
        """Returns the plan of the most bits that are not "off", where there are such."""
        return self._choice.most_bits()

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the proxy accuracy of a plan on the ``n_validation`` images, in [0, 1].

        A plan that quantizes nothing has the original accuracy.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
            TrainingDivergedError: If the candidate's outputs are not finite.
        """
        bits = self._choice.read(plan)
        if is_float(bits) and not self.proxy.finetune_steps:
            return self.original_accuracy
        with limited_threads(self.threads):
            network = self._candidate(bits, self.seconds)
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
        bits = self._choice.read(plan)
        with limited_threads(self.threads):
            if is_float(bits) and not self.proxy.finetune_steps:
                return self._evaluator.accuracy(self._reference, full=True)
            return self._evaluator.accuracy(self._candidate(bits), full=True)

    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Builds the network of a plan: folded, quantized, recalibrated as the proxy says.

        Its quantized layers are trainable by :meth:`finetune`; equal plans give equal networks.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """
        return self.quantize(self._reference, plan, recalibrate=self.proxy.recalibrate)

    def quantize(
        self, network: nn.Module, plan: CompressionPlan, *, recalibrate: bool = True
    ) -> nn.Module:
        """Quantizes a network with the original's module names, a sliced one for example.

        Args:
            network: The network, in float, its norms not yet folded; it is copied. Masks stay,
                and only the weights that count are fitted.
            plan: Bits for the learner's decisions.
            recalibrate: Whether to match the outputs of every layer to those of ``network``.

        Raises:
            PlanMismatchError: If the plan does not fit, or the network lacks a layer.
        """
        bits = self._choice.read(plan)
        folded = folded_like(plain_float(network), self._folded, self.layers)
        with limited_threads(self.threads):
            seen = self._observation
            if not same_state(folded, self._float):
                seen = observe(folded, [self._recalibration], self.layers, seed=self.seed)
            quantized = self._build(folded, bits, seen)
            if recalibrate:
                self._match(quantized, seen)
        return quantized

    def _build(
        self, folded: nn.Module, bits: Mapping[str, BitPair], seen: Observation
    ) -> nn.Module:
        """Returns a quantized copy of a folded network."""
        chosen: dict[str, tuple[Quantizer | None, Quantizer | None]] = {}
        for name, layer in bits.items():
            weights = inputs = None
            if layer.weights != OFF_BITS:
                if same_weights(folded, self._float, name):
                    weights = self._fitted.weights(name, layer.weights)
                else:
                    given = layer_weights(folded, name)
                    weights = self._make_weight_quantizer(name, *given, layer.weights)
            if layer.inputs != OFF_BITS:
                if seen is self._observation:
                    inputs = self._fitted.inputs(name, layer.inputs)
                else:
                    inputs = self._make_input_quantizer(name, layer.inputs, seen)
            chosen[name] = (weights, inputs)
        return quantize_layers(copy.deepcopy(folded), chosen)

    def stored_bytes(self, network: nn.Module) -> dict[str, dict[int, int]]:
        """Returns layer -> bits -> bytes of its weights on disk, see ``entropy.stored_bytes``."""
        folded = folded_like(network, self._folded, self.layers)
        widths = {n: self._choice.used(n)[0] - {OFF_BITS} for n in self.layers}
        return stored_bytes(folded, widths, self._make_weight_quantizer)

    def _match(self, network: nn.Module, seen: Observation) -> None:
        folded = [*self._folded.values()]
        match_outputs(network, self._recalibration, seen.once(), folded, torch.float32)

    def _candidate(
        self, bits: Mapping[str, BitPair], seconds: EpisodeSeconds | None = None
    ) -> nn.Module:
        """Quantizes and repairs; adds what it took to ``seconds``."""
        clock = [time.process_time()]
        network = self._build(self._float, bits, self._observation)
        clock.append(time.process_time())
        if self.proxy.recalibrate:
            self._match(network, self._observation)
        clock.append(time.process_time())
        if self.proxy.finetune_steps:
            finetune_briefly(network, self._training, self.proxy, self._training_dtype, self.seed)
        clock.append(time.process_time())
        if seconds is not None:
            seconds.slicing += clock[1] - clock[0]
            seconds.recalibration += clock[2] - clock[1]
            seconds.finetuning += clock[3] - clock[2]
        return network

    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns the share of its layer's output that each choice of each decision loses.

        Per decision key an array over its choices: squared error over squared output (without its
        mean) on calibration images, while all else is float.
        """
        quantizers = self._fitted.of_choices(self.decisions)
        with limited_threads(self.threads):
            return layer_errors(self._float, self._recalibration, self.decisions, quantizers)

    def gradient_scores(self) -> dict[str, np.ndarray]:
        """Returns how much the loss rises by each choice of each decision, estimated in nats.

        Per decision key an array over its choices, while all else is float; see
        ``amc_compress.learners.candidates.gradient_scores``. It never rises, and is 0 for float.
        """
        images, quantizers = self._recalibration, self._fitted.of_choices(self.decisions)
        matched = self._observation.once() if self.proxy.recalibrate else ()
        with limited_threads(self.threads):
            return gradient_scores(
                self._float, images, self._labels, self.decisions, quantizers, matched
            )

    def _training_defaults(self) -> TrainingConfig:
        return quantized_training(self.seed)

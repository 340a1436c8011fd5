"""Uniform quantization of weights and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.moments.effort import USUAL, Effort, effort_for
from amc_compress.learners.candidates.moments.pieces import FittedLayers
from amc_compress.learners.candidates.preparation import Samples
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.candidates.second_order.levels import Key, Level, Levels
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.masked import mask_of, masked_layers
from amc_compress.learners.layers.quantized import QuantizedLayer
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.shared_weights import holders_of
from amc_compress.learners.layers.structure import same_state
from amc_compress.learners.quantization.calibration import Observation
from amc_compress.learners.quantization.curves import Rounded
from amc_compress.learners.quantization.decisions import BitChoice
from amc_compress.learners.quantization.inputs import input_quantizer
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.quantization.options import QuantizationOptions
from amc_compress.learners.quantization.uniform.gptq import Pruned, Rounding, weight_of, write_level
from amc_compress.learners.quantization.uniform.quantizer import SCALE_TYPES, UniformQuantizer
from amc_compress.learners.quantization.uniform.ranges import check_rule
from amc_compress.learners.quantization.uniform.scales import weight_scales
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tracing.branches.left_out import layers_there
from amc_env.costs.storage import StorageFormat
from amc_env.plan import CompressionPlan, DecisionKind
from amc_env.validation.checks import check_known, checked
from amc_env.validation.sentences import some

ROUNDINGS = ("nearest", "gptq")


@checked
@dataclass(frozen=True, kw_only=True)
class UniformOptions(QuantizationOptions):
    """What uniform quantization is told besides; see :class:`QuantizationOptions`.

    Attributes:
        symmetric: Whether weights are signed with zero point 0 (what integer kernels are fast
            at), or affine.
        weight_range: Name in ``RANGE_RULES``: how the range of weights is found.
        learned_steps: Whether ``finetune`` trains the scales of weights and activations too (LSQ,
            Esser et al. 2020); the weights' scales then start at ``2 <|w|> / sqrt(Q_p)`` if
            ``weight_range`` is ``"lsq"``.
        rounding: ``"nearest"``, or ``"gptq"``: what rounding an input's weights does to the outputs
            is taken up by those of the inputs after it, from the moments of the calibration data.
        act_order: Whether ``"gptq"`` rounds the weights of the largest inputs first.
        scale_type: ``"float32"``, ``"float16"`` or ``"bfloat16"``: what scales of weights are
            rounded to, and stored as. ``"auto"``: those of groups float16 unless they are learned,
            as most files of language models have it, and all others float32.
    """

    symmetric: bool = True
    weight_range: str = "mse"
    learned_steps: bool = False
    rounding: str = "nearest"
    act_order: bool = False
    scale_type: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_range != "lsq":
            check_rule(self.weight_range)
        check_known("rounding", self.rounding, ROUNDINGS)
        if self.act_order and self.rounding != "gptq":
            raise ValueError("Expected act_order with rounding='gptq' alone, got it without.")
        check_known("scale_type", self.scale_type, ("auto", *SCALE_TYPES))
        if self.learned_steps and self.scales_are != "float32":
            raise ValueError(
                f"Expected scale_type 'float32' with learned_steps, which trains the scales, got "
                f"{self.scale_type!r}."
            )

    @property
    def scales_are(self) -> str:
        """What scales of weights are stored as."""
        if self.scale_type != "auto":
            return self.scale_type
        small = self.granularity == "group" and not self.learned_steps
        return "float16" if small else "float32"

    def storage(self, choice: BitChoice, folded: Mapping[str, str]) -> StorageFormat:
        """Returns how layers are stored; zero points as one byte, they are at most 255."""
        form = super().storage(choice, folded)
        scale = SCALE_TYPES[self.scales_are].itemsize
        return replace(form, bytes_per_bucket=scale + (0.0 if self.symmetric else 1.0))


class UniformQuantization(QuantizationLearner):
    """Equally spaced values for weights and activations; a plan holds bits per layer.

    The options are those of :class:`UniformOptions`.
    """

    Options = UniformOptions
    options: UniformOptions
    levels: Levels
    _layers: Mapping[str, LayerReconstruction]

    def _collect(self, samples: Samples) -> None:
        self.levels, self._layers = self.options.levels(self.device), {}
        if self.options.rounding == "nearest":
            return
        effort = effort_for(self.graph, samples.n_calibration, torch.float32)
        self.cautions += effort.notes(samples.n_calibration)
        if effort.n_samples is not None:
            samples = samples.limited(effort.n_samples)
        self._layers = self._moments(self.float_network, samples.inputs(), effort)

    def _moments(
        self, network: nn.Module, inputs: Sequence[Inputs], effort: Effort = USUAL
    ) -> FittedLayers:
        """Returns the moments of those layers whose weights are theirs alone."""
        owners = holders_of(network.modules())
        places = self._places.layers
        own = [
            name
            for name in layers_there(network, places)
            if places[name].has_input
            and owners[id(network.get_submodule(places[name].module).weight)] == 1
        ]
        return FittedLayers(
            network,
            inputs,
            own,
            {},
            seed=self.seed,
            effort=effort,
            progress=self.options.progress,
            room=self.options.room(),
        )

    def sweeps(self, name: str) -> bool:
        """Whether a layer of the original is rounded in a sweep over its inputs."""
        return name in self._layers

    def prune_and_round(
        self, network: nn.Module, plan: CompressionPlan, pruned: Mapping[str, tuple[int, Pruned]]
    ) -> nn.Module:
        """Quantizes a network as :meth:`apply` does, and sets weights to zero in the same sweeps.

        Args:
            network: See :meth:`quantize`.
            plan: Bits for the learner's decisions, fewer than 16 for the layers below.
            pruned: Layer that :meth:`sweeps` knows -> how many weights stay, and which. For one
                number the choice is always the same.
        """
        rounds = partial(self._round, pruned=pruned)
        return self._quantized(network, plan, rounds, recalibrate=self.proxy.recalibrate)

    def _round(
        self,
        network: nn.Module,
        folded: nn.Module,
        pruned: Mapping[str, tuple[int, Pruned]] | None = None,
    ) -> None:
        if self.options.rounding == "nearest":
            return
        known = folded is self.float_network or same_state(folded, self.float_network)
        layers = self._layers
        if not known:
            plain = finalise(folded) if masked_layers(folded) else folded
            layers = self._moments(plain, [self._recalibration])
        for name in layers:
            module = network.get_submodule(self._places.layers[name].module)
            assert isinstance(module, QuantizedLayer)
            nearest = module.weight_quantizer
            if isinstance(nearest, UniformQuantizer):
                chosen = (pruned or {}).get(name)
                if known:
                    level = self._level(name, nearest, chosen)
                else:
                    zeros = None if chosen is None else chosen[1]
                    level = self._rounding.solve(layers[name], nearest, mask_of(module), zeros)
                write_level(module, level)

    @property
    def _rounding(self) -> Rounding:
        return Rounding(self.options.weight_range, self.options.act_order)

    def _level(
        self, name: str, nearest: UniformQuantizer, pruned: tuple[int, Pruned] | None = None
    ) -> Level:
        """Returns a layer of the original in so many bits, solved once."""
        key: Key = (name, nearest.bits)
        zeros = None
        if pruned is not None:
            count, zeros = pruned
            key = (*key, count)
        return self.levels.get(
            key, lambda: self._rounding.solve(self._layers[name], nearest, pruned=zeros)
        )

    def _of_choices(self) -> Mapping[str, Sequence[Rounded | None]]:
        found = dict(super()._of_choices())
        for d in self.decisions:
            if d.kind is DecisionKind.WEIGHT_BITS and d.target in self._layers:
                found[d.key] = [q and self._solved(d.target, q) for q in found[d.key]]
        return found

    def _solved(self, name: str, nearest: Rounded) -> Rounded:
        assert isinstance(nearest, UniformQuantizer)
        return lambda weight: weight_of(self._level(name, nearest), nearest).to(weight)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the network: what is rounded to the nearest value, too."""
        if self.options.rounding == "nearest":
            return super().notes
        rest = [name for name in self.layers if name not in self._layers]
        told = (
            f"weights that are rounded to the nearest value (of tables, recurrent and very wide "
            f"layers, and those that several layers share): {some(rest)}."
        )
        own = (told,) if rest else ()
        return (*super().notes, *own)

    def _make_weight_quantizer(
        self, name: str, weight: Tensor, mask: Tensor | None, bits: int
    ) -> Quantizer:
        scale, zero = weight_scales(
            weight,
            bits,
            self.options.weight_range,
            symmetric=self.options.symmetric,
            granularity=self.options.granularity,
            bucket_size=self.options.per_bucket,
            axis=self.axis(name),
            name=f"the weights of layer {name!r}",
            mask=mask,
        )
        # LSQ divides by the root of the numbers that share a scale; masked ones have no part in it.
        numbers = None if mask is None else max(1, int(mask.sum()) // scale.numel())
        return UniformQuantizer(
            bits,
            scale,
            zero,
            symmetric=self.options.symmetric,
            granularity=self.options.granularity,
            bucket_size=self.options.per_bucket,
            axis=self.axis(name),
            learned=self.options.learned_steps,
            numbers=numbers,
            scale_type=self.options.scales_are,
        )

    def _make_input_quantizer(self, name: str, bits: int, seen: Observation) -> Quantizer:
        return input_quantizer(
            seen.inputs[name],
            bits,
            self.options.activation_range,
            name,
            learned=self.options.learned_steps,
        )

"""Learners by name: what each is made of, which options it reads, and what it decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from amc_env.errors import UntraceableModelError
from amc_env.plan import Decision
from amc_env.storage import StorageFormat
from experiments.bit_widths import as_choice, parse_bits
from experiments.configs import LEARNERS, QUANTIZERS, RunConfig
from experiments.data import DataSplits
from learners.base import Learner
from learners.channel_pruning.decisions import keep_ratio_decisions
from learners.parts import interleaved
from learners.quantization.decisions import bit_choice
from learners.quantization.structure import foldable_norms, quantizable_layers
from learners.tracing import TracedModel

_PRUNING = ("criterion", "round_to", "min_ratio")
_BITS = (
    "weight_bits", "activation_bits", "first_last_bits", "granularity", "bucket_size",
    "activation_range",
)  # fmt: skip
_UNIFORM = ("weight_range", "affine_weights", "learned_steps")
_CODEBOOK = ("codebook_mode", "codebook_init")

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "channels": _PRUNING,
    "uniform": (*_BITS, *_UNIFORM),
    "codebook": (*_BITS, *_CODEBOOK),
}


def make_learner(
    config: RunConfig, data: DataSplits, model: nn.Module, *, progress: bool = False
) -> Learner:
    """Prepares the learner that the options name.

    Args:
        config: The options.
        data: Calibration, validation and training images.
        model: The trained network; it is not changed.
        progress: Whether to show progress bars.
    """
    example = data.calibration.images[:1]
    shared: dict[str, Any] = {
        "finetune_steps": config.finetune_steps,
        "n_validation": config.n_validation,
        "train": data.train,
        "precision": config.precision,
        "device": config.device,
        "seed": config.seed,
        "progress": progress,
    }
    if config.learner == "channels":
        from learners.channel_pruning import ChannelPruning

        return ChannelPruning(
            model,
            example,
            data.calibration,
            data.validation,
            proxy=config.proxy,
            **pruning_options(config),
            **shared,
        )
    if config.learner == "joint":
        from learners.joint import joint_compression

        return joint_compression(
            model,
            example,
            data.calibration,
            data.validation,
            quantizer=config.quantizer,
            proxy=config.proxy,
            pruning=pruning_options(config),
            quantization=bit_options(config),
            **shared,
        )
    from learners.joint import quantizer_named

    return quantizer_named(config.learner)(
        model,
        example,
        data.calibration,
        data.validation,
        # Only cut layers are reconstructed: here there is nothing to repair that way.
        proxy="recalibration" if "recalibration" in config.proxy else "none",
        **bit_options(config),
        **shared,
    )


def pruning_options(config: RunConfig) -> dict[str, Any]:
    """Returns the options of channel pruning."""
    return {
        "criterion": config.criterion,
        "round_to": config.round_to,
        "min_ratio": config.min_ratio,
        "ignore": config.ignore,
    }


def bit_options(config: RunConfig) -> dict[str, Any]:
    """Returns the options of the run's kind of quantization."""
    options: dict[str, Any] = {
        "weight_bits": as_choice(parse_bits("--weight-bits", config.weight_bits)),
        "activation_bits": as_choice(parse_bits("--activation-bits", config.activation_bits)),
        "first_last_bits": config.first_last_bits,
        "granularity": config.granularity,
        "bucket_size": config.bucket_size,
        "activation_range": config.activation_range,
        "ignore": config.ignore,
    }
    if config.quantization == "uniform":
        return options | {
            "symmetric": not config.affine_weights,
            "weight_range": config.weight_range,
            "learned_steps": config.learned_steps,
        }
    return options | {"mode": config.codebook_mode, "init": config.codebook_init}


def options_of(learner: str, quantizer: str) -> set[str]:
    """Returns the options that not all learners read, and this one does."""
    if learner != "joint":
        return set(_OPTIONS[learner])
    return {"quantizer", *_OPTIONS["channels"], *_OPTIONS[quantizer]}


def check_options(config: RunConfig) -> None:
    """Refuses options that would have no effect, for they were given in vain.

    Raises:
        ValueError: With the learners that do read them.
    """
    default = RunConfig()
    readers = {kind: set().union(*(options_of(kind, q) for q in QUANTIZERS)) for kind in LEARNERS}
    own = options_of(config.learner, config.quantizer)
    for name in sorted(set().union(*readers.values()) - own):
        if getattr(config, name) == getattr(default, name):
            continue
        others = [k for k, names in readers.items() if name in names and k != config.learner]
        which = f" with --quantizer {config.quantizer}" if config.learner == "joint" else ""
        raise ValueError(
            f"--{name.replace('_', '-')} has no effect on --learner {config.learner}{which}; it "
            f"is an option of --learner {' and '.join(others)}."
        )
    if config.bucket_size != default.bucket_size and config.granularity != "split":
        raise ValueError(
            f"--bucket-size has no effect with --granularity {config.granularity}; it is an option "
            f"of --granularity split."
        )
    if config.learner in ("uniform", "codebook") and config.proxy == "reconstruction":
        raise ValueError(
            "--proxy reconstruction repairs cut layers, and --learner "
            f"{config.learner} cuts none; choose recalibration or none."
        )


def plan_facts(
    config: RunConfig, traced: TracedModel
) -> tuple[tuple[Decision, ...], StorageFormat | None]:
    """Returns what a learner of these options will decide, and how it stores networks.

    Needs no data: budgets are checked with it before any work is done. The learner itself says
    the same (``decisions``, ``storage``) once it is prepared; it has measured the header of the
    packed file as well, which is missing here (see ``experiments.packed_header``).

    Args:
        config: The options.
        traced: The original network.

    Raises:
        UntraceableModelError: If nothing of the network can be cut, and cutting is asked for.
    """
    channels: tuple[Decision, ...] = ()
    if config.prunes:
        channels = keep_ratio_decisions(traced.graph, config.round_to, config.min_ratio)
    if not config.quantizes:
        return channels, None
    bits, storage = _bit_facts(config, traced)
    return interleaved(traced.graph, (channels, bits)), storage


def _bit_facts(
    config: RunConfig, traced: TracedModel
) -> tuple[tuple[Decision, ...], StorageFormat]:
    """As ``QuantizationLearner`` finds them, with the network in place of images."""
    options = bit_options(config)
    try:
        names = quantizable_layers(traced.model, traced.graph, config.ignore)
    except ValueError as error:
        raise ValueError(
            f"{error} Give --ignore one of these, or a module that holds some."
        ) from error
    sizes = {name: traced.model.get_parameter(f"{name}.weight").numel() for name in names}
    if not sizes:
        raise UntraceableModelError(
            f"Expected at least one nn.Conv2d or nn.Linear to quantize, found none among the "
            f"layers {[layer.name for layer in traced.graph.layers]} (--ignore: "
            f"{', '.join(config.ignore) or 'none'})."
        )
    choice = bit_choice(
        sizes, options["weight_bits"], options["activation_bits"], config.first_last_bits
    )
    codebook = config.quantization == "codebook"
    return choice.decisions, StorageFormat(
        weight_bits={name: float(bits) for name, bits in choice.fixed_weights.items()},
        activation_bits={name: float(bits) for name, bits in choice.fixed_inputs.items()},
        granularity=config.granularity,
        bucket_size=config.bucket_size,
        bytes_per_bucket=0.0 if codebook else 5.0 if config.affine_weights else 4.0,
        codebook=codebook,
        # Channels that share a codebook have a factor each.
        bytes_per_channel=4.0 if codebook and config.granularity == "tensor" else 0.0,
        folded=foldable_norms(traced.model),
    )

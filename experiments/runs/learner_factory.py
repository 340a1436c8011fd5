"""Learners by name: what each is made of, and what it decides."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from amc_compress.config.bit_widths import as_choice, parse_bits
from amc_compress.config.run_config import RunConfig
from amc_compress.config.values import CHANNEL_LEARNERS
from amc_compress.data import DataSplits
from amc_compress.learners.base import Learner
from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.learners.channel_pruning.decisions import keep_ratio_decisions
from amc_compress.learners.joint.parts import in_network_order
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.structure import foldable_norms, quantizable_layers
from amc_compress.learners.quantization.decisions import bit_choice
from amc_compress.learners.sparsification.layers import sparse_choice
from amc_compress.learners.sparsification.patterns import Pattern
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_compress.learners.training.hooks import TrainingHook
from amc_env.costs.storage import StorageFormat
from amc_env.errors import UntraceableModelError
from amc_env.plan import Decision

# Steps from one set of masks to the next (Zhu & Gupta 2017 take 100 to 1000), and how many sets
# there are at least: in a short training one hundred steps are all of it.
_FREQUENCY, _LEAST_UPDATES = 100, 20


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
    if config.learner in CHANNEL_LEARNERS:
        return make_channel_learner(config, data, model, progress=progress)
    given: dict[str, Any] = {
        "model": model,
        "example_input": data.calibration.images[:1],
        "calibration": data.calibration,
        "validation": data.validation,
        **_shared_options(config, data, progress),
    }
    if config.learner == "sparse":
        from amc_compress.learners.sparsification import WeightSparsification

        schedule = schedule_options(config, max(config.epochs, 1) * len(data.train))
        return WeightSparsification(
            proxy=config.proxy, **density_options(config), **schedule, **given
        )
    if config.learner == "joint":
        return _joint_learner(config, given)
    if config.learner == "deep":
        from amc_compress.learners.joint.deep import deep_compression

        schedule = schedule_options(config, config.retraining_epochs * len(data.train))
        return deep_compression(
            proxy=config.proxy,
            sparsification=density_options(config) | schedule,
            quantization=bit_options(config),
            **given,
        )
    from amc_compress.learners.joint.prepare import quantizer_named

    # Only cut layers are reconstructed: here there is nothing to repair that way.
    proxy = "recalibration" if "recalibration" in config.proxy else "none"
    return quantizer_named(config.learner)(proxy=proxy, **bit_options(config), **given)


def _joint_learner(config: RunConfig, given: Mapping[str, Any]) -> Learner:
    from amc_compress.learners.joint.prepare import joint_compression

    return joint_compression(
        quantizer=config.quantizer,
        proxy=config.proxy,
        pruning=pruning_options(config),
        quantization=bit_options(config),
        sparsification=density_options(config) if config.density else None,
        **given,
    )


def make_channel_learner(
    config: RunConfig, data: DataSplits, model: nn.Module, *, progress: bool = False
) -> ChannelPruning:
    """As :func:`make_learner`, for learners that only cut channels."""
    return channel_learner(config.learner)(
        model,
        data.calibration.images[:1],
        data.calibration,
        data.validation,
        proxy=config.proxy,
        **pruning_options(config),
        **_shared_options(config, data, progress),
    )


def _shared_options(config: RunConfig, data: DataSplits, progress: bool) -> dict[str, Any]:
    """Returns the options that all learners know."""
    return {
        "finetune_steps": config.finetune_steps,
        "n_validation": config.n_validation,
        "train": data.train,
        "precision": config.precision,
        "device": config.device,
        "seed": config.seed,
        "progress": progress,
    }


_CHANNEL_CLASSES: Mapping[str, tuple[str, str]] = {
    "channels": ("learner", "ChannelPruning"),
    "group-lasso": ("group_lasso", "GroupLassoPruning"),
    "remastered": ("remastered", "RemasteredPruning"),
    "discrimination": ("discrimination", "DiscriminationAwarePruning"),
}
"""Module in ``channel_pruning`` and class of every learner that cuts channels."""


def channel_learner(name: str) -> type[ChannelPruning]:
    """Returns the class of a learner that cuts channels, by its name on the command line."""
    module, kind = _CHANNEL_CLASSES[name]
    found: type[ChannelPruning] = getattr(
        importlib.import_module(f"amc_compress.learners.channel_pruning.{module}"), kind
    )
    return found


def pruning_options(config: RunConfig) -> dict[str, Any]:
    """Returns the options of channel pruning that the run's learner knows."""
    options: dict[str, Any] = {
        "round_to": config.round_to,
        "min_ratio": config.min_ratio,
        "ignore": config.ignore,
    }
    if config.learner in ("channels", "joint"):
        options["criterion"] = config.criterion
    if config.learner == "discrimination":
        options["stages"] = config.discrimination_stages
        options["block_steps"] = config.block_steps
    return options


def density_options(config: RunConfig) -> dict[str, Any]:
    """Returns which densities are on offer."""
    return {
        "pattern": config.pattern,
        "min_density": config.min_density,
        "ignore": config.ignore,
    }


def schedule_options(config: RunConfig, total_steps: int) -> dict[str, Any]:
    """Returns how zeros grow in a training of so many steps."""
    steps = (config.schedule_end - config.schedule_begin) * total_steps
    return {
        "schedule": config.schedule,
        "schedule_begin": config.schedule_begin,
        "schedule_end": config.schedule_end,
        "schedule_exponent": config.schedule_exponent,
        "schedule_frequency": config.schedule_frequency
        or min(_FREQUENCY, max(1, int(steps / _LEAST_UPDATES))),
    }


def training_hooks(
    config: RunConfig, original: nn.Module, model: nn.Module, total_steps: int
) -> tuple[TrainingHook, ...]:
    """Returns what a fine-tuning needs besides the loss, as the run's learner has it.

    Without the learner, whose preparation takes longer than an epoch on a small network.

    Args:
        config: The options.
        original: The uncompressed network.
        model: The network to be trained.
        total_steps: Of the training.
    """
    if config.learner != "sparse" or config.schedule != "gradual":
        return ()
    if all(layer.density() == 1.0 for layer in masked_layers(model).values()):
        return ()
    from amc_compress.learners.sparsification.schedule import GradualSparsity, SparsitySchedule

    options = schedule_options(config, total_steps)
    schedule = SparsitySchedule(
        options["schedule_begin"],
        options["schedule_end"],
        options["schedule_exponent"],
        options["schedule_frequency"],
    )
    return (GradualSparsity(original.state_dict(), Pattern.parse(config.pattern), schedule),)


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


def plan_facts(
    config: RunConfig, traced: TracedModel
) -> tuple[tuple[Decision, ...], StorageFormat | None]:
    """Returns what a learner of these options will decide, and how it stores networks.

    Needs no data: budgets are checked with it before any work is done. The learner itself says
    the same (``decisions``, ``storage``) once it is prepared; it has measured the header of the
    packed file as well, which is missing here (see ``amc_compress.runs.packed_header``).

    Args:
        config: The options.
        traced: The original network.

    Raises:
        UntraceableModelError: If nothing of the network can be cut, and cutting is asked for.
    """
    channels: tuple[Decision, ...] = ()
    densities: tuple[Decision, ...] = ()
    if config.sparsifies:
        densities = _sparse_decisions(config, traced)
    if config.prunes:
        channels = keep_ratio_decisions(traced.graph, config.round_to, config.min_ratio)
    if not config.quantizes:
        return channels + densities, None
    bits, storage = _bit_facts(config, traced)
    return in_network_order(
        traced.graph, [part for part in (channels, densities, bits) if part]
    ), storage


def _sparse_decisions(config: RunConfig, traced: TracedModel) -> tuple[Decision, ...]:
    """As ``WeightSparsification`` finds them."""
    pattern = Pattern.parse(config.pattern)
    return sparse_choice(
        traced.model, traced.graph, pattern, config.min_density, config.ignore
    ).decisions


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

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
from amc_compress.learners.candidates.learner import SearchSpace
from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_compress.learners.training.hooks import TrainingHook

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
    from amc_compress.learners.joint.options import quantizer_named

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
    if config.learner != "sparse":
        return ()
    from amc_compress.learners.sparsification.learner import SparseOptions

    options = SparseOptions(**density_options(config), **schedule_options(config, total_steps))
    return options.training_hooks(model, original.state_dict())


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


def search_space(config: RunConfig, traced: TracedModel) -> SearchSpace:
    """Returns what the learner of these options decides, and how it stores networks.

    Needs no data: budgets are checked with it before any work is done. A prepared learner says the
    same (``decisions``, ``storage``) and has measured the header of the packed file as well, which
    is missing here (see ``amc_compress.runs.packed_header``).

    Args:
        config: The options.
        traced: The original network.

    Raises:
        UntraceableModelError: If there is nothing to decide about the network.
        ValueError: If a layer to ignore is not there.
    """
    kind, given = _kind_and_options(config)
    options = kind.Options(**given)
    try:
        space: SearchSpace = kind.decide(traced, options)
    except ValueError as error:
        if not config.quantizes:
            raise
        raise ValueError(
            f"{error} Give --ignore one of these, or a module that holds some."
        ) from error
    return space


def _kind_and_options(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """Returns the class of a learner, and those of its options that decide."""
    from amc_compress.learners.joint.learner import JointCompression
    from amc_compress.learners.joint.options import quantizer_named
    from amc_compress.learners.sparsification import WeightSparsification

    if config.learner in CHANNEL_LEARNERS:
        return channel_learner(config.learner), pruning_options(config)
    if config.learner == "sparse":
        return WeightSparsification, density_options(config)
    if config.learner not in ("joint", "deep"):
        return quantizer_named(config.learner), bit_options(config)
    return JointCompression, {
        "quantizer": config.quantization,
        "pruning": pruning_options(config) if config.prunes else None,
        "sparsification": density_options(config) if config.sparsifies else None,
        "quantization": bit_options(config),
    }

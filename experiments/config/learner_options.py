"""Which learner reads which option, and the rejection of options that would have no effect."""

from __future__ import annotations

from amc_compress.config.option import Option, flag
from amc_compress.config.run_config import OPTIONS, RunConfig
from amc_compress.config.values import LEARNERS, OWN_TEACHERS, QUANTIZERS, of_how_many
from amc_env import Budget


def options_of(learner: str, quantizer: str) -> set[str]:
    """Returns the options that not all learners read, and this one does."""
    own = {learner, quantizer} if learner == "joint" else {learner}
    return {name for name, option in OPTIONS.items() if own.intersection(option.learners)}


def readers_of(option: Option) -> tuple[str, ...]:
    """Returns the learners that read an option, ``joint`` through its quantizer as well."""
    quantizes = set(QUANTIZERS).intersection(option.learners)
    return tuple(k for k in LEARNERS if k in option.learners or (k == "joint" and quantizes))


def check_options(config: RunConfig) -> None:
    """Rejects options that the selected learner ignores.

    Raises:
        ValueError: With the learners that do read them, or the option that they depend on.
    """
    own = options_of(config.learner, config.quantizer)
    for name in sorted(OPTIONS):
        readers = readers_of(OPTIONS[name])
        if not readers or name in own or not _is_given(config, name):
            continue
        others = [kind for kind in readers if kind != config.learner]
        which = f" with --quantizer {config.quantizer}" if config.learner == "joint" else ""
        raise ValueError(
            f"{flag(name)} has no effect on --learner {config.learner}{which}; it is an option "
            f"of --learner {' and '.join(others)}."
        )
    _check_dependent(config)
    _check_stages(config)
    _check_teacher(config)
    if not (config.prunes or config.sparsifies) and config.proxy == "reconstruction":
        raise ValueError(
            "--proxy reconstruction repairs cut layers, and --learner "
            f"{config.learner} cuts none; choose recalibration or none."
        )


def _is_given(config: RunConfig, name: str) -> bool:
    """Whether an option has another value than where nothing is said."""
    return bool(getattr(config, name) != getattr(RunConfig(), name))


def _check_dependent(config: RunConfig) -> None:
    """Rejects options that another option makes void."""
    for name, other, needed in (
        ("bucket_size", "granularity", "split"),
        *((name, "schedule", "gradual") for name in OPTIONS if name.startswith("schedule_")),
    ):
        found = getattr(config, other)
        if found != needed and _is_given(config, name):
            raise ValueError(
                f"{flag(name)} has no effect with {flag(other)} {found}; it is an option of "
                f"{flag(other)} {needed}."
            )
    if config.learner == "joint" and not config.density:
        for name in ("pattern", "min_density"):
            if _is_given(config, name):
                raise ValueError(
                    f"{flag(name)} has no effect with --learner joint without --density, which "
                    f"decides densities as well."
                )
    if config.learner == "deep" and not config.epochs:
        raise ValueError(
            "Expected --epochs >= 1 with --learner deep, whose codebooks are made to be trained; "
            "--learner joint --density makes both at once."
        )
    if of_how_many(config.pattern) is not None and _is_given(config, "min_density"):
        raise ValueError(
            f"--min-density has no effect with --pattern {config.pattern}, of which a layer keeps "
            f"that share or all."
        )
    bounds = Budget.parse(config.budget).bounds
    if config.protocol != "searched" and list(bounds) != ["density"]:
        raise ValueError(
            f"--protocol {config.protocol} distributes one density over the layers; expected "
            f"--budget density=0.25 or the like, got {config.budget}. An agent meets other "
            f"budgets: --protocol searched."
        )


def _check_stages(config: RunConfig) -> None:
    """Rejects pruning options that exclude each other, and epochs without their stage."""
    ways = {
        "sparse_epochs": (config.sparse_training != "none", "--sparse-training growing"),
        "sparse_strength": (config.sparse_training != "none", "--sparse-training growing"),
        "group_epochs": (config.finetune_groups > 1, "--finetune-groups 3"),
        "stage_epochs": (config.is_progressive, "--progressive 3"),
    }
    for name, (asked, example) in ways.items():
        if not asked and _is_given(config, name):
            raise ValueError(f"{flag(name)} has no effect without {example} or the like.")
    used = list(dict.fromkeys(example.split()[0] for asked, example in ways.values() if asked))
    if config.stages and config.progressive > 1:
        used = ["--progressive", "--stages"]
    if len(used) > 1:
        raise ValueError(
            f"{' and '.join(used)} exclude each other: each is a way of its own to cut; choose one."
        )
    if config.is_progressive and (config.cost_table or config.cost):
        raise ValueError(
            f"--cost{'-table' if config.cost_table else ''} counts by the layers of the original "
            f"network, and --progressive searches smaller ones; give a budget in macs, params or "
            f"bytes."
        )


def _check_teacher(config: RunConfig) -> None:
    """Rejects weights without a teacher, and distillation losses without one."""
    own = config.teacher in OWN_TEACHERS
    if own and config.teacher_weights is not None:
        raise ValueError(
            f"--teacher-weights has no effect with --teacher {config.teacher}; give the network "
            f"they belong to, e.g. --teacher resnet56."
        )
    if config.learner == "deep" and config.feature_matching:
        raise ValueError(
            "--feature-matching has no effect on --learner deep, whose two trainings learn answers "
            "only."
        )
    if config.teacher == "none" and config.feature_matching:
        raise ValueError(
            "--feature-matching has no effect with --teacher none; it needs a teacher."
        )

"""Checks of a run's options that need more than one of them, or another package."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path

from amc_compress.config.learner_specs import LEARNERS, LearnerSpec
from amc_compress.config.option import Option, declared, flag
from amc_compress.config.options import Options
from amc_compress.config.stage_budgets import stage_budgets
from amc_compress.config.texts import is_factory, is_text, memory, snapshots
from amc_compress.config.values import (
    ONNX_BYTES,
    OWN_TEACHERS,
    check_augmentations,
    check_normalisation,
    of_how_many,
    own_cost_references,
)
from amc_env.actions import ACTION_MAPPINGS
from amc_env.costs.cost_table import CostTable
from amc_env.costs.costs import COSTS, FURTHER_COSTS
from amc_env.reward import REWARDS, resolve_reward
from amc_env.validation.checks import check_known
from amc_env.validation.references import FORM, is_reference
from amc_env.validation.sentences import joined


def readers_of(option: Option) -> tuple[str, ...]:
    """Returns the learners that read an option, some through those that they build upon."""
    return tuple(
        name for name, spec in LEARNERS.items() if {name, *spec.reads}.intersection(option.learners)
    )


def validate(spec: LearnerSpec, stages: Collection[str]) -> None:
    """Checks the options of a run before any work is done; what is cheap to check comes first.

    Args:
        spec: The learner with the options.
        stages: Those that will be run.

    Raises:
        ValueError: If options contradict each other, one has no effect on the learner, or a name
            is unknown.
    """
    _check_effects(spec)
    spec.check()
    _check_dependent(spec)
    _check_ways_to_cut(spec)
    _check_teacher(spec.options)
    _check_own_data(spec)
    if "search" in stages:
        _check_search(spec)
    if "finetune" in stages:
        spec.training_config()
    from amc_compress.learners.numerics.precision import check_device

    check_device(spec.options.device)


def _check_effects(spec: LearnerSpec) -> None:
    """Rejects options that the selected learner ignores."""
    for name, option in sorted(declared(Options).items()):
        if not option.learners or {*spec.kinds}.intersection(option.learners):
            continue
        if spec.is_given(name):
            others = [reader for reader in readers_of(option) if reader != spec.name]
            through = (
                f" with --quantizer {spec.quantization}" if spec.name in readers_of(option) else ""
            )
            raise ValueError(
                f"{flag(name)} has no effect on --learner {spec.name}{through}; it is an option "
                f"of --learner {joined(others)}."
            )


def _check_dependent(spec: LearnerSpec) -> None:
    """Rejects options that another option makes void."""
    for name, other, needed in (
        ("bucket_size", "granularity", "split"),
        ("group_size", "granularity", "group"),
        ("act_order", "rounding", "gptq"),
        *((n, "schedule", "gradual") for n in declared(Options) if n.startswith("schedule_")),
    ):
        found = getattr(spec.options, other)
        if found != needed and spec.is_given(name):
            raise ValueError(
                f"{flag(name)} has no effect with {flag(other)} {found}; it is an option of "
                f"{flag(other)} {needed}."
            )
    if spec.quantization == "codebook" and spec.options.granularity == "group":
        raise ValueError(
            "--granularity group has no effect on codebooks, which would take more bytes than "
            "the codes of a group; take --granularity split with a large --bucket-size."
        )
    pattern = spec.options.pattern
    if spec.options.repair == "sparsegpt":
        _check_sweep(pattern, spec.options.proxy)
    if of_how_many(pattern) is not None and spec.is_given("min_density"):
        raise ValueError(
            f"--min-density has no effect with --pattern {pattern}, of which a layer keeps "
            f"that share or all."
        )


def _check_sweep(pattern: str, proxy: str) -> None:
    """Rejects zeros that a sweep cannot choose."""
    if pattern.startswith("block"):
        raise ValueError(
            f"--repair sparsegpt has no effect with --pattern {pattern}; it is an option of "
            f"--pattern unstructured and of 2:4 and the like."
        )
    if "reconstruction" not in proxy:
        raise ValueError(
            f"--repair sparsegpt has no effect with --proxy {proxy}; it is an option of --proxy "
            f"reconstruction and reconstruction+recalibration."
        )


def _check_ways_to_cut(spec: LearnerSpec) -> None:
    """Rejects ways to cut that exclude each other, and epochs of what is not asked for."""
    options = spec.options
    ways = {
        "sparse_epochs": (options.sparse_training != "none", "--sparse-training growing"),
        "sparse_strength": (options.sparse_training != "none", "--sparse-training growing"),
        "group_epochs": (options.finetune_groups > 1, "--finetune-groups 3"),
        "stage_epochs": (options.is_progressive, "--progressive 3"),
    }
    for name, (asked, example) in ways.items():
        if not asked and spec.is_given(name):
            raise ValueError(f"{flag(name)} has no effect without {example} or the like.")
    used = list(dict.fromkeys(example.split()[0] for asked, example in ways.values() if asked))
    if options.stages and options.progressive > 1:
        used = ["--progressive", "--stages"]
    if len(used) > 1:
        raise ValueError(
            f"{' and '.join(used)} exclude each other: each is a way of its own to cut; choose one."
        )
    if options.is_progressive and (options.cost_table or options.cost):
        raise ValueError(
            f"--cost{'-table' if options.cost_table else ''} counts by the layers of the original "
            f"network, and --progressive searches smaller ones; give a budget in macs, params or "
            f"bytes."
        )


def _check_teacher(options: Options) -> None:
    """Rejects weights without their teacher, and distillation losses without any."""
    if options.teacher in OWN_TEACHERS and options.teacher_weights is not None:
        raise ValueError(
            f"--teacher-weights has no effect with --teacher {options.teacher}; give the network "
            f"they belong to, e.g. --teacher resnet56."
        )
    if options.teacher == "none" and options.feature_matching:
        raise ValueError(
            "--feature-matching has no effect with --teacher none; its loss needs a teacher."
        )


def _check_own_data(spec: LearnerSpec) -> None:
    """Rejects what has no effect on data of the user's that are no images."""
    data, reasons = spec.options.data, dict[str, str]()
    if is_text(data):
        reasons = dict.fromkeys(("augment", "memory"), "which is text")
    else:
        reasons["tokens"] = "which is no text"
    if is_factory(data):
        its = "whose factory decides what is done to its samples"
        reasons |= dict.fromkeys(("augment", "memory"), its)
    for name, reason in reasons.items():
        if spec.is_given(name):
            raise ValueError(
                f"{flag(name)} has no effect on --data {data}, {reason}; leave it out."
            )


_UNCOUNTED = "quantizes, so that only the quantizer of the export settles the nodes of the file"


def _check_search(spec: LearnerSpec) -> None:
    """Rejects names that the search does not know, and budgets that cannot be reached in stages."""
    options = spec.options
    _check_costs(options)
    _check_goal(spec)
    _check_depth(spec)
    _check_staged(options)
    named = (*options.budget.names, options.minimize)
    if ONNX_BYTES in named and (spec.quantizes or options.is_progressive):
        raise ValueError(
            f"{ONNX_BYTES} is counted for float32 networks that are cut once, and --learner "
            f"{spec.name} {_UNCOUNTED if spec.quantizes else 'cuts in stages'}; bound bytes, "
            f"those of the {'packed' if spec.packs else 'safetensors'} file."
        )
    if options.is_progressive and not options.budget.limits:  # those await the network
        stage_budgets(options.budget, options.stages or options.progressive)
    check_known("--action", options.action, ACTION_MAPPINGS)
    if not is_reference(options.reward):
        check_known("--reward", options.reward, REWARDS, f", or {FORM} for your own")
    resolve_reward(options.reward)
    # Not above: these take a second to import, and most mistakes are found without them.
    from amc_compress.agents import agent_from_label
    from amc_compress.learners.candidates.proxy import Proxy
    from amc_compress.learners.channel_pruning.criteria import make_criterion

    if options.learner_class is not None:
        spec.learner()
    agent_from_label(options.agent)
    make_criterion(options.criterion)
    Proxy.parse(options.proxy, options.finetune_steps)


def _check_staged(options: Options) -> None:
    """Rejects what compares plans by something else than their scores on all samples."""
    others = {
        "--max-drop": options.max_drop is not None,
        "--progressive": options.is_progressive,
        f"--reward {options.reward}": options.reward not in ("accuracy", "score"),
    }
    if options.staged and (used := _first_used(others)):
        raise ValueError(
            f"Expected --staged or {used}, got both: a plan is stopped where its score is below "
            f"the best one's; leave one of them out."
        )


def _check_depth(spec: LearnerSpec) -> None:
    """Rejects what knows channels alone, and options of depth where it is not decided."""
    options = spec.options
    if spec.is_given("depth_scores") and not options.depth:
        raise ValueError("--depth-scores has no effect without --depth.")
    others = {
        "--sparse-training": options.sparse_training != "none",
        "--finetune-groups": options.finetune_groups > 1,
    }
    if options.depth and (used := _first_used(others)):
        raise ValueError(
            f"Expected --depth or {used}, got both: {used} knows channels alone; leave one of them "
            f"out."
        )


def _first_used(options: Mapping[str, bool]) -> str | None:
    return next((name for name, is_used in options.items() if is_used), None)


def _check_goal(spec: LearnerSpec) -> None:
    """Rejects goals and limits that nothing reads."""
    options = spec.options
    goals = ("max_drop_after", "minimize") if options.max_drop is None else ()
    for name in goals:
        if spec.is_given(name):
            raise ValueError(f"{flag(name)} has no effect without --max-drop.")
    asked = {"--max-drop": options.max_drop is not None, "--time-limit": bool(options.time_limit)}
    for name in (name for name, is_asked in asked.items() if is_asked):
        if options.is_progressive or not spec.decides:
            why = "--progressive" if options.is_progressive else "a plan that nothing searches for"
            raise ValueError(f"{name} is of one search by an agent and has no effect on {why}.")
    if options.max_drop is None:
        return
    if options.reward not in ("accuracy", "score"):
        raise ValueError(
            f"--max-drop is about the score; leave --reward {options.reward} out, or the drop."
        )
    if options.max_drop_after == "finetune":
        _check_ways_of_levels(spec)


def _check_ways_of_levels(spec: LearnerSpec) -> None:
    """Rejects fine-tunings that are more than a training of one cut network."""
    options = spec.options
    if not options.epochs:
        raise ValueError("--max-drop-after finetune needs a fine-tuning; give --epochs.")
    more = {
        "--learner deep": spec.in_steps,
        "--sparse-training": options.sparse_training != "none",
        "--finetune-groups": options.finetune_groups > 1,
    }
    if used := [name for name, is_used in more.items() if is_used]:
        raise ValueError(
            f"--max-drop-after finetune fine-tunes every candidate in one go, which {used[0]} does "
            f"not; choose --max-drop-after search."
        )


def _check_costs(options: Options) -> None:
    """Rejects a budget of unknown costs."""
    known = [*COSTS, ONNX_BYTES, *own_cost_references(options.cost)]
    known += FURTHER_COSTS if options.depth else ()
    known += [CostTable.read(Path(path)).quantity for path in options.cost_table]
    for cost in (*options.budget.names, *filter(None, [options.minimize])):
        if cost not in known:
            where = "--minimize" if cost == options.minimize else "--budget"
            raise ValueError(
                f"Unknown cost {cost!r} in {where}; expected one of {', '.join(known)}, one from "
                f"a table given by --cost-table (`amc latency-table` measures latency), or one of "
                f"your own, --cost {cost}=module:Class."
            )


def check_values(options: Options) -> None:
    """Checks what the declaration of a single option does not say.

    Raises:
        ValueError: With what was expected.
    """
    of_how_many(options.pattern)
    snapshots("--snapshot-every", options.snapshot_every)
    for name in ("memory", "moments_memory", "scratch_disk"):
        memory(flag(name), getattr(options, name))
    check_augmentations(options.augment)
    own_cost_references(options.cost)
    check_normalisation(options.mean, options.std)
    _check_teacher_is_known(options)
    _check_schedule(options)
    stages = (1.0, *options.stages, 0.0)
    if not all(later < sooner for sooner, later in itertools.pairwise(stages)):
        raise ValueError(
            f"Expected --stages as falling shares between 1 and 0, e.g. 0.75,0.5, got "
            f"{','.join(f'{share:g}' for share in options.stages)}."
        )


def _check_teacher_is_known(options: Options) -> None:
    if options.teacher in OWN_TEACHERS or options.teacher_weights or ":" in options.teacher:
        return
    raise ValueError(
        f"Expected --teacher as original, none or another network, which needs --teacher-weights "
        f"FILE to know anything; got {options.teacher!r} without. Only a factory of yours "
        f"(package.module:factory) may bring its own."
    )


def _check_schedule(options: Options) -> None:
    if options.schedule_begin > options.schedule_end:
        raise ValueError(
            f"Expected --schedule-begin no later than --schedule-end, got "
            f"{options.schedule_begin:g} and {options.schedule_end:g}; shares of the training."
        )

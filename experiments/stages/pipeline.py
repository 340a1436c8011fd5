"""Runs the stages in order: ``amc compress``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amc_compress.config.goals import drop_text
from amc_compress.config.run_config import RunConfig
from amc_compress.config.stage_budgets import stage_budgets
from amc_compress.config.texts import is_own
from amc_compress.data.given import GivenData
from amc_compress.report.summary import cost_text, read_summary
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.given import Given
from amc_compress.runs.networks import build_with_weights
from amc_compress.runs.problem import check_against
from amc_compress.runs.storage.occupied import check_place
from amc_compress.runs.storage.trust import CODE, NOTHING, Trust
from amc_compress.runs.task import Task, facts_of, load_splits, stored_splits
from amc_compress.runs.teachers import load_teacher
from amc_compress.runs.warm_start import check_warm_start
from amc_compress.stages.evaluate import run_evaluate
from amc_compress.stages.export import run_export
from amc_compress.stages.finetuning.stage import run_finetune
from amc_compress.stages.search import run_search
from amc_compress.stages.train import run_train
from amc_env.scores.metric import Metric
from amc_env.validation.sentences import counted

Say = Callable[[str], None]


def say(text: str) -> None:
    """Prints progress on stderr, along with the progress bars."""
    print(text, file=sys.stderr, flush=True)


def silent(text: str) -> None:
    """Prints nothing."""


def open_task(
    out: Path,
    config: RunConfig,
    *,
    resume: bool,
    stages: Sequence[str],
    quiet: bool = False,
    talk: Say | None = None,
) -> Task:
    """Checks the options against folder, data and network, then makes (or continues) the folder.

    Before hours are spent and before a folder is made.

    Args:
        out: The run folder.
        config: The options, validated.
        resume: Whether a used folder is continued.
        stages: What will be run, to know what to check.
        quiet: Whether to hide progress bars and notes.
        talk: Is told the notes, if not the user.
    """
    talk = talk or (silent if quiet else say)
    check_place(out, "--out")
    if "search" in stages:
        check_warm_start(config, out)
    data = load_splits(config, talk)
    if is_own(config.data):  # a task that was guessed is the run's from now on
        config = replace(config, task=data.task)
    facts = facts_of(data)
    built = build_with_weights(
        config.model, facts, config.weights, config.model_args, allow_pickle=config.allow_pickle
    )
    remarks = check_against(
        config,
        built.network,
        facts,
        search="search" in stages,
        task=config.spec.task(data.task),
        example=data.example if facts.image_shape is None else None,
    )
    _tell(config, built.notes, remarks, talk)
    if "finetune" in stages:
        load_teacher(config, facts, allow_pickle=config.allow_pickle)
    folder = RunFolder.create_or_resume(out, config, facts, resume=resume)
    return _begun(Task(folder, data, progress=not quiet))


def open_given_task(
    out: Path,
    config: RunConfig,
    data: GivenData,
    given: Given,
    *,
    resume: bool,
    talk: Say = say,
    progress: bool = True,
) -> Task:
    """As :func:`open_task`, for a run on objects instead of names.

    Args:
        out: The run folder.
        config: The options, validated.
        data: The loaders.
        given: The network, and whatever else options could only name.
        resume: Whether a used folder is continued.
        talk: Is told what the user should know.
        progress: Whether to show progress bars.
    """
    check_place(out, "--out")
    check_warm_start(config, out)
    facts = facts_of(data)
    remarks = check_against(
        config, given.network, facts, search=True, task=given.task, example=given.example
    )
    _tell(config, given.notes, remarks, talk)
    folder = RunFolder.create_or_resume(out, config, facts, resume=resume, given=given)
    return _begun(Task(folder, data, progress=progress))


def _begun(task: Task) -> Task:
    """Notes what scores of the run are made from; returns the task."""
    with task.folder.closed_on_error():
        task.folder.measure_by(Metric.of(task.purpose))
    return task


def _tell(config: RunConfig, notes: Sequence[str], remarks: Sequence[str], talk: Say) -> None:
    for note in notes:
        talk(f"{config.model}: {note}; the files of the run hold plain float32 networks")
    for remark in remarks:
        talk(f"note: {remark}")


def reopen_task(
    directory: Path,
    *,
    trust: Trust = NOTHING,
    uses: Collection[str] = CODE,
    quiet: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Task:
    """Opens the run in a folder with its data, to continue it.

    Args:
        directory: The folder.
        trust: Which code that the folder names may be run.
        uses: The options of the folder whose code will be run.
        quiet: Whether to hide progress bars.
        options: Some in place of the folder's, of those that may change at any time.

    Raises:
        RunFolderError: If it is no run folder, its data have changed, or it names code that may not
            be run.
    """
    folder = RunFolder.open(directory, lock=True, trust=trust, uses=uses)
    with folder.closed_on_error():
        folder.config = replace(folder.config, **(options or {}))
        data = stored_splits(folder, silent if quiet else say)
    return Task(folder, data, progress=not quiet)


def run_stages(
    task: Task,
    stages: Sequence[str],
    talk: Say = say,
    *,
    elsewhere: Callable[[str], None] | None = None,
) -> None:
    """Runs the stages that are not done yet.

    Args:
        task: The run.
        stages: Their names, in order.
        talk: Is told what is done.
        elsewhere: Runs a stage that trains by other processes, which work in the run folder
            meanwhile; None where this one does.
    """
    from amc_compress.report.page import run_report

    runners: dict[str, Callable[[Task], None]] = {
        "train": run_train,
        "search": run_search,
        "finetune": run_finetune,
        "export": run_export,
        "evaluate": run_evaluate,
        "report": lambda task: run_report(task.folder),
    }
    for number, stage in enumerate(stages, start=1):
        head = f"[{number}/{len(stages)}] {stage}"
        if task.folder.is_done(stage) and stage not in ("evaluate", "report"):
            talk(f"{head}: done before")
            continue
        talk(f"{head}: {describe(stage, task)}")
        started = time.perf_counter()
        if elsewhere is not None and _trains(stage, task.config):
            task.folder.close()
            try:
                elsewhere(stage)
            finally:
                task.folder.reopen()  # and read what they have done
        else:
            runners[stage](task)
        talk(f"    {outcome(stage, task)} ({time.perf_counter() - started:.1f} s)")
        if stage == "evaluate":
            for caution in read_summary(task.folder.path).get("cautions", ()):
                talk(f"    note: {caution}")


def _trains(stage: str, config: RunConfig) -> bool:
    """Whether a stage of a run by names is a training."""
    if stage == "train":
        return config.weights is None and config.train_epochs > 0
    return stage == "finetune"


def describe(stage: str, task: Task) -> str:
    """Returns what a stage is about to do, in one line."""
    config, folder = task.config, task.folder
    texts = {
        "train": _train_text(config, given=folder.given is not None),
        "search": f"{_stages_text(config)}{config.agent}, {config.evaluations} evaluations, "
        f"{_goal_text(config)}{_limit_text(config)}{_workers_text(config)}"
        if config.spec.decides
        else f"nothing to choose: {config.spec.fixed_choice()}",
        "finetune": f"{_before_finetuning(config)}{counted(config.epochs, 'epoch')}, "
        f"teacher: {_teacher_text(task)}"
        if config.epochs
        else f"{_before_finetuning(config)}no training (0 epochs)",
        "export": f"ONNX{' with integers' if config.spec.quantizes else ''}, compared with torch, "
        f"timed on one thread",
        "evaluate": f"both networks on {_test_text(task)}",
        "report": str(folder / "report.html"),
    }
    return texts[stage]


def _train_text(config: RunConfig, *, given: bool) -> str:
    if given:
        return f"taking {config.model} as it was given"
    if config.weights is not None:
        return f"taking the weights of {config.model} from {config.weights}"
    if not config.train_epochs:
        return f"no training (0 epochs) of {config.model}"
    return f"{config.model} on {config.data}, {counted(config.train_epochs, 'epoch')}"


def _test_text(task: Task) -> str:
    count = getattr(task.data.test, "n_images", None)
    if count is not None:
        return f"{count} test images"
    return f"the {'test' if task.data.has_test else 'validation'} data"


def _teacher_text(task: Task) -> str:
    if task.config.teacher == "original" and not task.purpose.distils:
        return f"none, as {task.purpose.name} has no distillation loss"
    return task.config.teacher


def _stages_text(config: RunConfig) -> str:
    if not config.is_progressive:
        return ""
    if config.budget.limits:  # shares of costs that are not counted yet
        return f"{len(config.stages) + 1 if config.stages else config.progressive} stages, each: "
    budgets = stage_budgets(config.budget, config.stages or config.progressive)
    return f"{len(budgets)} stages ({'; '.join(map(str, budgets))}), each: "


def _goal_text(config: RunConfig) -> str:
    if config.max_drop is None:
        return f"budget {config.budget}"
    return (
        f"least {config.minimize} within a drop of {drop_text(config.max_drop)} after "
        f"{'fine-tuning' if config.max_drop_after == 'finetune' else 'the search'}, budget "
        f"{config.budget}"
    )


def _workers_text(config: RunConfig) -> str:
    at_a_time = f", {config.parallel} plans at a time" if (config.parallel or 1) > 1 else ""
    workers = f", {config.workers} workers" if config.workers > 1 else ""
    return f"{at_a_time}{workers}{'' if config.ray is None else f', Ray {config.ray}'}"


def _limit_text(config: RunConfig) -> str:
    return f", at most {config.time_limit:g} s" if config.time_limit else ""


def _before_finetuning(config: RunConfig) -> str:
    if config.spec.in_steps:
        return f"{counted(config.retraining_epochs, 'epoch')} in float, then quantized, then "
    if config.sparse_training != "none":
        return f"{counted(config.sparse_epochs, 'epoch')} until the channels have faded, then "
    if config.finetune_groups > 1:
        between = counted(config.group_epochs, "epoch")
        return f"{config.finetune_groups} groups, {between} in between, then "
    return ""


def outcome(stage: str, task: Task) -> str:
    """Returns the result of a stage in one line."""
    folder, metric = task.folder, task.folder.metric
    if stage == "report":
        return f"open {folder / 'report.html'}"
    result = folder.results(stage)
    if stage == "train" and not result["epochs"]:
        return result.get("taken") or "weights taken"
    if stage == "train":
        return f"validation {metric.said(result['validation_score'])}"
    if stage == "search":
        return _search_outcome(task.config, metric, result)
    if stage == "finetune":
        before, after = result["validation_score_before"], result["validation_score"]
        original = result.get("validation_score_original")  # of no earlier release
        of_original = "" if original is None else f" (original {metric.text(original)})"
        if not task.config.epochs:
            return f"skipped, 0 epochs: validation {metric.said(after)}, as after the search"
        if before is None:
            return f"validation {metric.said(after)}{of_original}"
        return f"validation {metric.said(before)} -> {metric.text(after)}{of_original}"
    if stage == "export":
        return _export_outcome(task, result)
    score = result["score"]
    seen = "test" if folder.facts.has_test else "validation"
    return f"{seen} {metric.said(score['original'])} -> {metric.text(score['compressed'])}"


def _search_outcome(config: RunConfig, metric: Metric, result: Mapping[str, Any]) -> str:
    best, uniform = result["best"], result["uniform"]
    costs = ", ".join(cost_text(name, best["cost_ratio"][name]) for name in config.shown_costs)
    head = f"best plan: {costs}" if config.spec.decides else costs
    tail = f" (uniform plan {metric.text(uniform['score'])})" if config.spec.decides else ""
    return f"{head}; proxy {metric.said(best['score'])}{tail}"


def _export_outcome(task: Task, result: Mapping[str, Any]) -> str:
    if "refused" in result:
        return f"no ONNX file: {result['refused']}"
    latency = result["latency_ms"]
    agreement = f"largest difference to torch {result['max_difference']:.1g}"
    if task.config.spec.quantizes:
        same, count = f"{result['agreement']:.1%}", result["n_images"]
        agreement = f"agrees with torch by {same} on {count} samples"
        if task.purpose.name == "classification":
            agreement = f"same class as torch for {same} of {count} images"
    times = [
        f"batch {size}: {before:.3g} -> {latency['compressed'][size]:.3g} ms"
        for size, before in latency["original"].items()
    ]
    return ", ".join([*([result["note"]] if "note" in result else []), *times, agreement])

"""``amc_compress.compress``: ``amc compress`` for objects instead of names."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from amc_compress.agents.base import Agent
from amc_compress.config.data_defaults import LOADERS
from amc_compress.config.learner_specs import LEARNERS
from amc_compress.config.run_config import OPTIONS, RunConfig
from amc_compress.data.batches import to_batches
from amc_compress.data.given import GivenData, Loader, first_batch, given_data
from amc_compress.front.columns import for_network
from amc_compress.front.options import options_from, words_of_python
from amc_compress.front.result import Result
from amc_compress.learners.base import Learner
from amc_compress.learners.networks.intake import TakenIn, take_in
from amc_compress.learners.tasks.guess import TaskNotGuessedError, guess_task
from amc_compress.learners.tasks.ready.custom import Custom
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.identity import digest_of, fingerprint
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.given import Given, agent_text
from amc_compress.runs.storage.occupied import is_used
from amc_compress.stages.pipeline import Say, open_given_task, run_stages, say, silent
from amc_compress.temporary import TemporaryFolder
from amc_env.errors import ArgumentError
from amc_env.validation.checks import checked
from amc_env.validation.references import is_reference, resolve


@checked
@words_of_python()
def compress(
    model: nn.Module,
    train: Any,
    validation: Any,
    *,
    budget: Any = None,
    task: str | Task | None = None,
    metric: Any = None,
    loss: Any = None,
    learner: str | type[Learner] | Learner = RunConfig.learner,
    agent: str | Agent = RunConfig.agent,
    teacher: str | nn.Module = RunConfig.teacher,
    test: Any = None,
    calibration: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Searches for the best plan within a budget, and cuts it out of a network.

    What ``amc compress`` does, with objects in place of names: what comes back holds the smaller
    network, and fine-tunes, exports and reports it when asked to.

    Args:
        model: Any trained network; it is copied and never changed.
        train: Batches to train and calibrate on: a ``DataLoader``, a list of batches, a data set
            with an index (``torch.utils.data``), or a ``datasets.Dataset`` of tensors and numbers.
        validation: Batches that plans are evaluated on, likewise.
        budget: Hard limits: ``"macs=0.5,bytes=0.3"``, a mapping, a ``Budget`` or a number.
        task: What the network is for, by name or as an object; None guesses from the first batch
            of ``train``, and says it.
        metric: For the score instead of the task's: a ``torchmetrics.Metric``, a function of
            outputs and targets, or ``"package.module:name"``. A function needs
            ``higher_is_better=`` or an attribute of that name.
        loss: Instead of the task's: a function of outputs and targets, or its name.
        learner: What is done to the network: a name, a class (one of yours derives from a
            learner's, and is at the top of a module), or a learner that was prepared with this
            network.
        agent: What searches, by name or as an object.
        teacher: What the smaller network learns from: ``"original"``, ``"none"``, or a network.
        test: Batches that are looked at once, for the report; those of ``validation`` if not given.
        calibration: Batches for statistics instead of those of ``train``.
        out: The run folder, which an interrupted run is resumed from, and which holds report and
            TensorBoard events. None for a folder that goes away with the result.
        resume: Whether to continue the run in ``out``; network and data must be the same.
        quiet: Whether to show neither progress nor notes.
        **options: All other options of ``amc compress`` (docs/options.md), e.g.
            ``evaluations=200, round_to=4``.

    Raises:
        ArgumentError: If an option is unknown.
        InfeasibleBudgetError: If no plan meets the budget.
        InputDataError: If network, batches and task do not go together.
        RunFolderError: If ``out`` is used, or began with another network or other data.
        ValueError: If an option has no such value, or options contradict each other.

    Example:
        >>> result = compress(model, train, validation, budget="macs=0.5")   # doctest: +SKIP
        >>> result.finetune(epochs=30).export("small.onnx")                  # doctest: +SKIP
    """
    talk: Say = silent if quiet else say
    taken = take_in(model, "cpu")
    higher, options = _direction(metric, options)
    chosen = _Chosen.of(task, metric, loss, learner, agent, teacher, higher)
    before = _later_options(Path(out)) if out is not None and resume else {}
    config = _config(chosen, type(model).__name__, {"budget": budget, **options}, before)
    given_batches = {
        "train": train, "validation": validation, "test": test, "calibration": calibration
    }  # fmt: skip
    loaders = _loaders(given_batches, taken.network, config)
    purpose = _purpose(config, chosen, taken.network, loaders["train"], talk)
    config = replace(config, task=purpose.name)
    data = _data(loaders, taken, purpose, chosen)
    given = _given(config, data, taken, purpose, chosen)
    temporary = None
    if out is None:
        temporary = TemporaryFolder("run")
        out = temporary.path / "run"
    started = open_given_task(
        Path(out), config, data, given, resume=resume, talk=talk, progress=not quiet
    )
    with started.folder:
        run_stages(started, ("train", "search"), talk)
    return Result(started, talk, temporary)


@dataclass(frozen=True)
class _Chosen:
    """What can be given by name or as an object: options for the names, and the objects."""

    options: Mapping[str, str]
    metric: Any
    loss: Any
    task: Task | None
    learner: Learner | None
    agent: Agent | None
    teacher: nn.Module | None
    higher_is_better: bool | None

    @classmethod
    def of(
        cls,
        task: str | Task | None,
        metric: Any,
        loss: Any,
        learner: str | type[Learner] | Learner,
        agent: str | Agent,
        teacher: str | nn.Module,
        higher_is_better: bool | None,
    ) -> _Chosen:
        """Tells names from objects."""
        options = {
            **({"learner": learner} if isinstance(learner, str) else _words_for(learner)),
            "agent": agent_text(agent),
            # As a name it would need weights: an object brings its own.
            "teacher": teacher
            if isinstance(teacher, str)
            else f"{type(teacher).__module__}:{type(teacher).__qualname__}",
        }
        options |= {
            name: value
            for name, value in (("task", task), ("metric", metric), ("loss", loss))
            if isinstance(value, str)
        }
        return cls(
            options,
            metric,
            loss,
            task if isinstance(task, Task) else None,
            learner if isinstance(learner, Learner) else None,
            agent if isinstance(agent, Agent) else None,
            teacher if isinstance(teacher, nn.Module) else None,
            higher_is_better,
        )


def _direction(metric: Any, options: dict[str, Any]) -> tuple[bool | None, dict[str, Any]]:
    """Returns whether more of a metric is better, None if not said, and the options that say it."""
    rest = dict(options)
    higher, lower = rest.pop("higher_is_better", None), rest.get("lower_is_better")
    if higher is not None and lower is not None:
        raise ArgumentError("Expected higher_is_better or lower_is_better, got both.")
    if higher is not None:
        rest["lower_is_better"] = not higher
    elif lower or (lower is not None and metric is not None):  # False alone is its default
        higher = not lower
    return higher, rest


def _words_for(learner: type[Learner] | Learner) -> dict[str, str]:
    """The options that say on the command line what a learner's class, or an object of it, is."""
    kind = learner if isinstance(learner, type) else type(learner)
    specs = [RunConfig(learner=name).spec for name in LEARNERS]
    names = {spec.learner(): spec.name for spec in specs if not spec.in_steps}
    parent = next((known for known in kind.__mro__ if known in names), None)
    if parent is None:
        raise ArgumentError(
            f"Expected a learner, or a class that derives from one of "
            f"{', '.join(sorted(known.__name__ for known in names))}, got {kind.__name__}: a run "
            f"trains, packs and exports networks as these do. For any other one use CompressionEnv "
            f"and an agent."
        )
    if parent is kind:
        return {"learner": names[parent]}
    reference = f"{kind.__module__}:{kind.__qualname__}"
    if not is_reference(reference) or resolve(reference, "learner class") is not kind:
        raise ArgumentError(
            f"Expected a learner class at the top of a module, got {kind.__qualname__}: a run is "
            f"resumed with the class of that name, so define it there."
        )
    return {"learner": names[parent], "learner_class": reference}


def _later_options(out: Path) -> dict[str, Any]:
    """Options of stages after the search that a run was given by its result, not by this call."""
    if not is_used(out.expanduser()):
        return {}
    stored = RunFolder.open(out, uses=()).config
    return {n: getattr(stored, n) for n, o in OPTIONS.items() if o.stage == "finetune"}


def _config(
    chosen: _Chosen, model: str, values: Mapping[str, Any], before: Mapping[str, Any]
) -> RunConfig:
    given = {key: value for key, value in values.items() if key != "budget" or value is not None}
    own = {**before, **options_from(given), **chosen.options}
    own |= {"model": model, "data": LOADERS}
    if chosen.learner is not None:
        told = getattr(chosen.learner, "options", None)
        spec = LEARNERS[own["learner"]]
        own = {
            n: getattr(told, n) for n in (*spec.takes, "proxy", "seed") if hasattr(told, n)
        } | own
    config = RunConfig(**own)
    # The words that stand for an agent that was given are none that could be built from.
    checked_as = config if chosen.agent is None else replace(config, agent=RunConfig.agent)
    checked_as.validate(("search", "finetune"))
    return config


def _purpose(
    config: RunConfig, chosen: _Chosen, network: nn.Module, train: Loader, talk: Say
) -> Task:
    """The task with the metric and loss that were given; one that is not given is guessed."""
    task = chosen.task or config.task
    if task is None and chosen.learner is not None:
        task = chosen.learner.task
    if task is None:
        task = _guessed(network, first_batch(train, "train"), chosen, talk)
    return make_task(
        task,
        metric=chosen.metric,
        loss=chosen.loss,
        higher_is_better=chosen.higher_is_better,
    )


def _guessed(network: nn.Module, batch: Any, chosen: _Chosen, talk: Say) -> Task:
    """The task that the first batch looks like; with metric and loss given any batch will do."""
    try:
        task, reason = guess_task(network, batch)
    except TaskNotGuessedError:
        if chosen.metric is None or chosen.loss is None:
            raise
        talk("Taking the task 'custom', since metric and loss are given; say otherwise with task=.")
        return Custom()
    talk(reason)
    return task


def _loaders(given: Mapping[str, Any], network: nn.Module, config: RunConfig) -> dict[str, Loader]:
    return {
        name: to_batches(
            for_network(data, name, network),
            name,
            batch_size=config.batch_size,
            shuffle=name == "train",
            workers=config.data_workers,
        )
        for name, data in given.items()
        if data is not None
    }


def _data(loaders: Mapping[str, Loader], taken: TakenIn, task: Task, chosen: _Chosen) -> GivenData:
    """The loaders as a run takes them."""
    data = given_data(
        loaders["train"],
        loaders["validation"],
        task,
        test=loaders.get("test"),
        calibration=loaders.get("calibration"),
    )
    return replace(data, content=_content(data, taken, task, chosen), task=task.name)


def _given(
    config: RunConfig, data: GivenData, taken: TakenIn, task: Task, chosen: _Chosen
) -> Given:
    """What the run works on in place of names."""
    return Given(
        network=taken.network,
        example=data.example,
        task=task,
        form=taken.form,
        call=_call(config),
        teacher=None if chosen.teacher is None else take_in(chosen.teacher, "cpu").network,
        agent=chosen.agent,
        learner=chosen.learner,
        notes=taken.form.notes,
    )


def _content(data: GivenData, taken: TakenIn, task: Task, chosen: _Chosen) -> dict[str, str]:
    """What the objects are: a run is resumed with the same ones only."""
    found = {
        **{f"{name} data": text for name, text in data.content.items()},
        "network": f"{fingerprint(taken.network)}, {digest_of(taken.network)}",
        "task": json.dumps(task.identity(), sort_keys=True),
    }
    if chosen.teacher is not None:
        found["teacher"] = f"{fingerprint(chosen.teacher)}, {digest_of(chosen.teacher)}"
    return found


def _call(config: RunConfig) -> str:
    """The call in words, with the options that are not usual."""
    usual = RunConfig(learner=config.learner).to_dict()
    told = {k: v for k, v in config.to_dict().items() if k not in ("model", "data")}
    said = [f"{key}={value!r}" for key, value in told.items() if value != usual[key]]
    script = f"  # in {Path(sys.argv[0]).name}" if sys.argv and sys.argv[0] else ""
    return f"compress({', '.join([config.model, 'train', 'validation', *said])}){script}"

"""Agents by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amc_compress.agents.actor_critic.algorithms import (
    DDPG,
    SAC,
    TD3,
    TQC,
    CrossQ,
    OneShotDDPG,
    OneShotTD3,
)
from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.curves.sensitivity import (
    GradientScores,
    LayerErrors,
    Sensitivity,
    SensitivityThreshold,
)
from amc_compress.agents.heuristics.evolution import Evolution
from amc_compress.agents.heuristics.evopress import EvoPress
from amc_compress.agents.heuristics.handcrafted import DeepHeavy, ShallowHeavy, Uniform
from amc_compress.agents.heuristics.local_search import LocalSearch
from amc_compress.agents.heuristics.random_search import RandomSearch
from amc_compress.agents.options import check_options, hints_of, words_of
from amc_compress.agents.own import FORM, import_agent, is_own, make_own, own_head
from amc_compress.agents.samplers.optuna_search import CMAES, NSGA2, TPE, GaussianProcess
from amc_compress.agents.seeded import Seeded
from amc_env.validation.checks import checked, unknown
from amc_env.validation.json_text import parse_json


def ddpg_seeded_by_sensitivity(
    *, points: int = 3, finalists: int = DEFAULT_FINALISTS, **options: Any
) -> Agent:
    """Builds ``ddpg-sensitivity``: curves of the single decisions, then one-shot DDPG.

    Args:
        points: Evaluations per decision for the curves.
        finalists: See :class:`Agent`.
        **options: Those of :class:`OneShotDDPG`.
    """
    return Seeded(
        Sensitivity(points=points), OneShotDDPG(**options), "ddpg-sensitivity", finalists=finalists
    )


AGENTS: dict[str, Callable[..., Agent]] = {
    "ddpg": DDPG,
    "ddpg-one-shot": OneShotDDPG,
    "ddpg-sensitivity": ddpg_seeded_by_sensitivity,
    "td3": TD3,
    "td3-one-shot": OneShotTD3,
    "sac": SAC,
    "tqc": TQC,
    "crossq": CrossQ,
    "tpe": TPE,
    "gp": GaussianProcess,
    "cmaes": CMAES,
    "nsga2": NSGA2,
    "evolution": Evolution,
    "evopress": EvoPress,
    "local": LocalSearch,
    "sensitivity": Sensitivity,
    "sensitivity-threshold": SensitivityThreshold,
    "gradient": GradientScores,
    "layer-errors": LayerErrors,
    "random": RandomSearch,
    "uniform": Uniform,
    "deep-heavy": DeepHeavy,
    "shallow-heavy": ShallowHeavy,
}
"""Name -> factory taking the agent's options."""


@checked
def make_agent(name: str, **options: Any) -> Agent:
    """Builds an agent.

    Args:
        name: One of :data:`AGENTS`, or ``"package.module:Class"`` for a user-defined agent
            (older form: ``"package.module.Class"``).
        **options: The agent's own settings.

    Raises:
        ValueError: If the name is unknown or cannot be imported, or an option is unknown, of
            another type or out of range.
    """
    if is_own(name):
        return make_own(name, options)
    factory = _known(name)
    check_options(options, hints_of(factory))
    try:
        return factory(**options)
    except TypeError as error:
        raise ValueError(f"The agent {name!r} does not take these options: {error}") from error


def _hints_for(name: str) -> dict[str, Any]:
    if is_own(name):
        return hints_of(import_agent(name))
    return hints_of(AGENTS[name]) if name in AGENTS else {}


def _known(name: str) -> Callable[..., Agent]:
    if name not in AGENTS:
        raise ValueError(unknown("agent", name, sorted(AGENTS), f", or {FORM} for your own"))
    return AGENTS[name]


@checked
def is_deterministic(label: str) -> bool:
    """Returns whether the agent of a label declares that its seeds change nothing.

    Nothing is built, so that a package which only the agent needs may be missing.

    Args:
        label: As :func:`agent_from_label` takes it. A name that is not one of ours says nothing
            of chance, so the answer is no.
    """
    name = split_label(label)[0]
    return bool(getattr(AGENTS.get(name), "deterministic", False))


@checked
def read_label(label: str) -> tuple[str, dict[str, Any]]:
    """Reads ``"name"`` or ``"name:option=value,option=value"``; nothing is built or imported.

    Raises:
        ValueError: If the label has another form.
    """
    return split_label(label)[0], {key: _value(text) for key, text in _texts(label).items()}


def split_label(label: str) -> tuple[str, str]:
    """Returns the name and the text of the options of a label.

    The name of a user-defined agent has a colon too: ``"my.module:Mine:option=value"``.
    """
    head = label.partition(":")[0].strip()
    own = None if head in AGENTS else own_head(label)
    if own is None:
        return head, label.partition(":")[2]
    return own.strip(), label[len(own) :].removeprefix(":")


_RENAMED = {"rejudge": "finalists"}  # in labels of older results


def _texts(label: str) -> dict[str, str]:
    """The options of a label, unparsed."""
    texts: dict[str, str] = {}
    for part in filter(None, split_label(label)[1].split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(
                f"Expected an agent like 'ddpg' or 'ddpg:elite_share=0.2,warmup=random', got "
                f"{label!r}."
            )
        texts[_RENAMED.get(key.strip(), key.strip())] = value.strip()
    return texts


@checked
def agent_from_label(label: str, prefix: str = "") -> tuple[Agent, dict[str, Any]]:
    """Builds an agent from ``"name"`` or ``"name:option=value,option=value"``.

    Args:
        label: Values are numbers, ``true``, ``false`` or words.
        prefix: Options that begin with it belong to the caller; they are returned without it.

    Returns:
        The agent, and the options that begin with the prefix.

    Raises:
        ValueError: If the label has another form, or the agent does not take an option.
    """
    name, texts = split_label(label)[0], _texts(label)
    words = words_of(_hints_for(name))  # worker=1 is the worker called "1"
    options = {key: text if key in words else _value(text) for key, text in texts.items()}
    others = {k for k in options if prefix and k.startswith(prefix)}
    own = {k: v for k, v in options.items() if k not in others}
    return make_agent(name, **own), {k.removeprefix(prefix): options[k] for k in others}


def _value(text: str) -> Any:
    if text in ("True", "False"):  # as Python spells them
        return text == "True"
    try:
        value = parse_json(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text

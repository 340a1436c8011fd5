"""Objects that a run works on in place of the names of its options: ``amc_compress.compress``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from amc_compress.learners.base import Learner
from amc_compress.learners.networks.intake import Form
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tasks.task import Task

if TYPE_CHECKING:
    from amc_compress.agents.base import Agent


@dataclass(frozen=True)
class Given:
    """What the caller of a run holds in its hands.

    Options say the same in words, for the folder and the report; where an object is None they are
    all there is.

    Args:
        network: The original: plain, float32, in eval mode.
        example: One sample as it takes it.
        task: What it is for.
        form: In which form it came.
        call: How the run was called, for the report.
        teacher: Another network that teaches.
        agent: What searches.
        learner: The learner of the search, prepared by the caller.
        notes: What was done to make a plain float32 network.
    """

    network: nn.Module
    example: Inputs
    task: Task
    form: Form = field(default_factory=Form)
    call: str = ""
    teacher: nn.Module | None = None
    agent: Agent | None = None
    learner: Learner | None = None
    notes: tuple[str, ...] = ()


def agent_text(agent: str | Agent) -> str:
    """Returns an agent in words: its label, or its name and its settings."""
    if isinstance(agent, str):
        return agent
    settings = (f"{key}={value!r}" for key, value in agent.hyperparameters().items())
    # What prints its address is another in every process.
    return f"{agent.name}({', '.join(text for text in settings if ' at 0x' not in text)})"


def made_agent(agent: str | Agent) -> Agent:
    """Returns the agent of a label, or itself."""
    from amc_compress.agents import agent_from_label

    return agent_from_label(agent)[0] if isinstance(agent, str) else agent

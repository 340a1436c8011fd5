"""Agent labels: the agent, its options, and its options for the environment.

``"ddpg:sigma=0.3,env.action=interval"`` is ``ddpg`` with ``sigma=0.3`` in an environment that reads
actions as positions in the feasible interval. Only what leaves the problem as it is may be asked
for: another reward, or a wider budget, would make results that cannot be ranked with others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from amc_compress.agents import AGENTS, Agent, agent_from_label
from amc_compress.agents.registry import read_label
from amc_env import Budget
from amc_env.actions import ACTION_MAPPINGS
from amc_env.budgets.budget import Bounds
from amc_env.costs.costs import COSTS

_ENV = "env."
_OUTSIDE = ("storage", "study", "worker", "policy")
"""Options by which a search knows what others found: its seeds would not be independent, nor its
evaluations equal in number."""


@dataclass(frozen=True)
class EnvOptions:
    """What a label asks of the environment.

    Args:
        action: Name of the action mapping; None for the task's.
        bounds: Cost name -> bounds that take the place of the task's, or join them.
        staged: Whether plans are evaluated in stages.
    """

    action: str | None = None
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    staged: bool = False

    def within(self, budget: Budget) -> Budget:
        """Returns the budget of a task, narrowed to what the label asks for.

        Raises:
            ValueError: If the label would allow what the task forbids.
        """
        for name, (lower, upper) in self.bounds.items():
            if name not in budget.bounds and name not in COSTS:
                known = ", ".join(dict.fromkeys((*budget.bounds, *COSTS)))
                raise ValueError(f"Expected env.budget to bound one of {known}, got {name!r}.")
            least, most = budget.bounds.get(name, (0.0, 1.0))
            if lower < least or upper > most:
                raise ValueError(
                    f"Expected env.budget within the task's {budget}, got {name} from {lower:g} to "
                    f"{upper:g}; such plans are worth nothing in this comparison. Narrow the "
                    f"budget, or compare on a task that allows it."
                )
        return Budget(**{**budget.bounds, **self.bounds})


def parse_label(label: str) -> tuple[Agent, EnvOptions]:
    """Builds an agent, and reads what its label asks of the environment.

    Args:
        label: ``"name"`` or ``"name:option=value,..."``; options that begin with ``env.`` are the
            environment's.

    Raises:
        ValueError: If the label has another form, or an option is unknown, changes what is
            compared, or has no such value.
        MissingDependencyError: If the agent needs a package that is not installed.
    """
    requests = env_options(label)  # first, for the agent may not be installed
    name, options = read_label(label)
    shared = [option for option in _OUTSIDE if option in options and name in AGENTS]
    if shared:
        raise ValueError(
            f"Expected an agent whose searches know nothing of each other, got {label!r}: with "
            f"{', '.join(shared)} it would learn from evaluations that are not its own. Leave that "
            f"out, or search with `amc search`."
        )
    return agent_from_label(label, _ENV)[0], requests


def env_options(label: str) -> EnvOptions:
    """Reads what a label asks of the environment.

    Raises:
        ValueError: As :func:`parse_label`.
    """
    options = read_label(label)[1].items()
    requests = {k.removeprefix(_ENV): str(v) for k, v in options if k.startswith(_ENV)}
    if unknown := sorted(requests.keys() - {"action", "budget", "staged"}):
        raise ValueError(
            f"Expected env.action, env.budget or env.staged in {label!r}, got "
            f"{', '.join(_ENV + name for name in unknown)}; everything else would be another "
            f"problem than the other agents have."
        )
    action = requests.get("action")
    if action is not None and action not in ACTION_MAPPINGS:
        raise ValueError(
            f"Expected env.action to be one of {', '.join(ACTION_MAPPINGS)}, got {action!r} in "
            f"{label!r}."
        )
    if (staged := requests.get("staged", "False")) not in ("True", "False"):
        raise ValueError(f"Expected env.staged to be True or False, got {staged!r} in {label!r}.")
    if (text := requests.get("budget")) is None:
        return EnvOptions(action, staged=staged == "True")
    if (budget := Budget.parse(text)).limits:
        raise ValueError(f"Expected env.budget in shares of the original, got {text!r}.")
    return EnvOptions(action, budget.bounds, staged == "True")

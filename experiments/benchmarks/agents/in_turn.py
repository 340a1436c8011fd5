r"""An agent for comparisons: kinds of decisions one after the other, or some of them alone.

    amc compare --task minilm-joint --agent evopress,uniform \
        --agent amc_compress.benchmarks.agents.in_turn:InTurn:kinds=width \
        --agent amc_compress.benchmarks.agents.in_turn:InTurn:kinds=width+weight_bits

So joint decisions, one kind alone and two stages are compared on one task, at equal evaluations,
with the statistics of every comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amc_compress.agents import Agent, make_agent
from amc_compress.agents.base import DEFAULT_FINALISTS
from amc_compress.agents.rollout import Search
from amc_compress.benchmarks.learners.fixed_decisions import whole_costs
from amc_env import CompressionEnv, CompressionPlan
from amc_env.kinds import Quantity
from amc_env.plan import CURVES
from amc_env.validation.checks import check_known

_METRIC = ("metric", "higher_is_better", "best_score")


class InTurn(Agent):
    """Another agent decides one kind after the other, each with an equal part of the evaluations.

    Decisions of kinds that are not named are as in the uniform plan. While one kind is decided,
    those that come later have their most and are counted with their least: a bound asks no more
    than that the later ones can still meet it.

    Args:
        kinds: What is decided, in this order: ``"width"``, ``"weight_bits"``,
            ``"width+weight_bits"``, and whatever else :class:`Quantity` names.
        agent: Name of the agent that decides each.
        finalists: See :class:`Agent`.

    Raises:
        ValueError: If there is no such kind or agent.
    """

    name = "in-turn"

    def __init__(
        self, *, kinds: str, agent: str = "evopress", finalists: int = DEFAULT_FINALISTS
    ) -> None:
        super().__init__(finalists=finalists)
        self.kinds = kinds
        self.agent = agent
        self._stages = tuple(
            Quantity(check_known("kind", text, [quantity.value for quantity in Quantity]))
            for text in kinds.split("+")
        )
        make_agent(agent)

    def run(self, search: Search) -> None:  # noqa: D102
        env = search.env
        values = dict(search.uniform().plan)
        for number, quantity in enumerate(self._stages):
            later = self._stages[number + 1 :]
            fixed, assumed = {}, {}
            for decision in env.decisions:
                if decision.kind.quantity in later:
                    fixed[decision.key] = decision.choices[-1]
                    assumed[decision.key] = decision.choices[0]
                elif decision.kind.quantity is not quantity:
                    fixed[decision.key] = values[decision.key]
            share = search.remaining // (1 + len(later))
            if share and len(fixed) < len(env.decisions):
                values |= self._decided(search, fixed, assumed, share)

    def _decided(
        self, search: Search, fixed: Mapping[str, float], assumed: Mapping[str, float], share: int
    ) -> Mapping[str, float]:
        """Returns what the other agent decides about the decisions that are not fixed."""
        view = _Rest(search, fixed, assumed, self.name)
        agent = make_agent(self.agent, finalists=0)
        found = agent.search(CompressionEnv(view, search.env.budget), share, search.seed)
        return view.whole(found.plan)


class _Rest:
    """The learner of a search with some decisions fixed; evaluations are those of the search."""

    def __init__(
        self,
        search: Search,
        fixed: Mapping[str, float],
        assumed: Mapping[str, float],
        source: str,
    ) -> None:
        self._search = search
        self._source = source
        self._fixed = dict(fixed)
        learner = search.env.learner
        self.graph = learner.graph
        self.original_score = search.env.original_score
        self.decisions = tuple(d for d in search.env.decisions if d.key not in fixed)
        self.cost_models = whole_costs(learner, {**fixed, **assumed})

    def __getattr__(self, name: str) -> Any:
        """Offers the metric of the learner, and its curves of the decisions that are free."""
        if name not in (*CURVES, *_METRIC):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        found = getattr(self._search.env.learner, name)
        if name in _METRIC:
            return found
        return lambda: {d.key: found()[d.key] for d in self.decisions}

    def whole(self, plan: CompressionPlan) -> CompressionPlan:
        """Returns the plan with the fixed decisions."""
        values = {**self._fixed, **plan}
        return CompressionPlan({d.key: values[d.key] for d in self._search.env.decisions})

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the score of the whole plan, which is spent only where it is not known."""
        whole = self.whole(plan)
        known = self._search.find(whole)
        return (known or self._search.probe(whole, self._source)).score

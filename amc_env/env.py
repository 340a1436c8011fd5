"""The environment: orchestrates budget, action mapping, observation and reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded

from amc_env.actions import ACTION_MAPPINGS, Translation
from amc_env.budgets.budget import Budget, BudgetLike
from amc_env.budgets.feasible import FeasibleSet
from amc_env.budgets.upper import UpperBounds
from amc_env.costs.canonical import CanonicalPlans
from amc_env.costs.cost_model import CostFunction
from amc_env.costs.entered_cost import original_costs
from amc_env.costs.own_costs import all_costs
from amc_env.costs.products import CostSums
from amc_env.errors import ArgumentError
from amc_env.observation import Observation, ObservationEncoder, features_for, scaled
from amc_env.plan import CompressionPlan
from amc_env.render import plan_picture, plan_table
from amc_env.reward import Result, RewardFunction, resolve_reward
from amc_env.scores.compressible import Compressible, OlderCompressible, original_score_of
from amc_env.scores.evaluations import Evaluation, Evaluations, InProcess, KnownScores
from amc_env.scores.metric import Metric
from amc_env.scores.outcome import Outcome
from amc_env.support.copies import copied
from amc_env.support.deprecation import renamed_arguments
from amc_env.validation.answers import actions_of, checked_reward, request_of
from amc_env.validation.checks import check_known, check_numbers, checked, shown

Action = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]

DEFAULT_ACTION_MAPPING = "centred"


@checked
class CompressionEnv(gym.Env[Observation, Action]):
    """Chooses one compression decision after the other, in network order, under a hard budget.

    **Action.** ``Box(0, 1, (1,))``, float32. Its meaning is the *action mapping*:

    ========== ==================================================================================
    absolute   the value itself (the ratio; from the fewest to the most bits), projected onto
               the feasible choices
    interval   the position inside the feasible interval
    centred    0.5 is the ratio that, given to every remaining decision, spends exactly what is
               left; 0 and 1 are the ends of the feasible interval (default)
    ========== ==================================================================================

    Whatever is asked, the executed value is a grid point from which every bound of the budget can
    still be met, above and below; ``info["executed_action"]`` is the action that means it.

    **Observation.** ``Box(0, 1, (22,))``, float32, 27 entries if bits are decided, 28 if densities
    come together with something else; see ``amc_env.observation.features_for`` for name and meaning
    of each. All zeros after the last decision.

    **Reward.** 0 until the last step, then the reward function of the plan (by default its score).

    **Start.** Nothing decided. Deterministic; ``reset(options={"budget": "macs=0.4"})`` changes
    the budget for this episode and the following ones.

    **End.** ``terminated`` after the last of ``n_decisions`` steps; never ``truncated``. A learner
    without decisions has no episode: :meth:`evaluate` its only plan, ``CompressionPlan({})``.

    **Info.** Every step: ``decision`` (key), ``value`` (executed), ``executed_action``,
    ``interval``. Last step, in addition: ``score``, and the same by the name and in the sign of its
    metric (``accuracy``, ``mean_iou``, ``perplexity``); ``cost_ratio``, ``cost`` and ``plan``.

    Args:
        learner: What compresses and evaluates, e.g. ``amc_compress.learners.ChannelPruning``.
        budget: The bounds in any form that ``Budget.of`` reads: ``Budget(macs=0.5)``,
            ``"macs=0.5,bytes<=100kB"``, ``{"macs": [0.45, 0.5]}``, or ``0.5``, which means
            ``macs=0.5``. Absolute limits become shares of the original's costs:
            ``env.budget`` has shares alone.
        action: Name of the action mapping.
        reward: Name from ``amc_env.reward.REWARDS``, a function of a ``Result``, or where one is:
            ``"package.module:name"``.
        cost_models: Further costs by name (say ``{"latency": table}``), usable in budget and
            reward besides those of ``amc_env.COSTS`` and the learner's own, which they replace; or
            where their classes are, ``{"energy": "package.module:Energy"}``.
        render_mode: ``"ansi"`` (table), ``"rgb_array"`` (picture) or None.
        evaluations: Where plans are evaluated; by default in this process.

    Attributes:
        metric: What a score is made from.
        original_score: That of the uncompressed network.

    Raises:
        EvaluationError: If the original score is no finite number.
        InfeasibleBudgetError: If no plan meets the budget; the message names the reachable range.
        ValueError: If a name is unknown.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        learner: Compressible | OlderCompressible,
        budget: BudgetLike,
        *,
        action: str = DEFAULT_ACTION_MAPPING,
        reward: str | RewardFunction = "accuracy",
        cost_models: Mapping[str, CostFunction | str] | None = None,
        render_mode: str | None = None,
        evaluations: Evaluations | None = None,
    ) -> None:
        check_known("action mapping", action, ACTION_MAPPINGS)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"Unknown render mode {render_mode!r}; see env.metadata.")
        self.learner = cast(Compressible, learner)
        self.metric = Metric.of(learner)
        self.original_score = original_score_of(learner)
        self.graph = learner.graph
        self.decisions = tuple(learner.decisions)
        self.n_decisions = len(self.decisions)
        self.render_mode = render_mode
        self.action_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        n_features = len(features_for(self.decisions))
        self.observation_space = gym.spaces.Box(0.0, 1.0, (n_features,), np.float32)
        self._action_mapping = ACTION_MAPPINGS[action]
        self._reward = resolve_reward(reward)
        self.costs = all_costs(learner, cost_models or {})
        self.original_cost = original_costs(self.costs, self.decisions)
        self._sums = CostSums.build(self.costs, self.decisions)
        self._plans = CanonicalPlans(self.graph, self.decisions, self._cost_of)
        self.scores = KnownScores(evaluations or InProcess(self.learner))
        self._values: list[float] | None = None
        self.set_budget(budget)
        # Asks for every cost the reward needs, so that a missing one is an error here and now.
        self.outcome(CompressionPlan.full(self.decisions), self.original_score)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns an environment with an episode of its own and the same learner."""
        shared = (self.learner, self.graph, self.scores.service, *self.costs.values())
        return copied(self, memo, shared)

    @checked
    def set_budget(self, budget: BudgetLike) -> None:
        """Changes the budget; a running episode is dropped.

        Raises:
            InfeasibleBudgetError: If no plan meets it; the old budget stays.
            ValueError: If it has a form that ``Budget.of`` does not read.
        """
        asked = Budget.of(budget)
        self._feasible = FeasibleSet(asked, self.costs, self.decisions, self.graph, self._sums)
        self.budget = new = self._feasible.budget
        self.upper_bounds = UpperBounds(self.costs, self.original_cost, new.bounds, self._sums)
        self._encoder = ObservationEncoder(self.graph, self.decisions, new, self._feasible)
        self._translation = Translation(self._action_mapping, self._feasible, self.decisions)
        self._values = None

    @checked
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Accepted for the interface; the environment draws nothing at random.
            options: ``{"budget": "macs=0.4"}`` changes the budget from this episode on.
        """
        if not self.decisions:
            raise ValueError(
                f"Expected a learner with decisions to make, but {type(self.learner).__name__} has "
                f"none; env.evaluate(CompressionPlan({{}})) gives the outcome of its only plan."
            )
        super().reset(seed=seed)
        if options and "budget" in options:
            self.set_budget(options["budget"])
        self._values = []
        self._context = self._translation.context(())
        return self._encode(), {"decision": self.decisions[0].key}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Executes one decision.

        Args:
            action: The agent's request, shape ``(1,)``, in [0, 1].

        Returns:
            ``(observation, reward, terminated, truncated, info)`` as the class describes.

        Raises:
            ResetNeeded: If no decision is waiting.
            InvalidAction: If the action is not in the action space (NaN included).
        """
        if self._values is None or len(self._values) == self.n_decisions:
            raise ResetNeeded("No decision is waiting; call reset() first.")
        request = request_of(action)
        decision, context = self.decisions[len(self._values)], self._context
        value = self._translation.value(self._values, request, context)
        executed = self._translation.action(value, context)
        self._values.append(value)
        info: dict[str, Any] = {
            "decision": decision.key,
            "value": value,
            "executed_action": np.array([executed], dtype=np.float32),
            "interval": context.interval,
        }
        if len(self._values) < self.n_decisions:
            self._context = self._translation.context(self._values)
            return self._encode(), 0.0, False, False, info

        outcome = self._evaluated(self._values)
        info |= outcome.info(self.metric)
        return self._encoder.terminal(), outcome.reward, True, False, info

    def finished_by(self, action: Action) -> CompressionPlan | None:
        """Returns the plan that a step with this action would finish, None if it would not."""
        if self._values is None or len(self._values) != self.n_decisions - 1:
            return None
        last = self._translation.value(self._values, request_of(action), self._context)
        return self._plans.of([*self._values, last])

    def evaluate(self, plan: CompressionPlan) -> Outcome:
        """Evaluates a complete plan without an episode; equal plans are evaluated once.

        A plan that the service could not evaluate has the worst score, and is not feasible.
        """
        return self._evaluated(self._values_of(plan))

    def _evaluated(self, values: Sequence[float]) -> Outcome:
        found = self.scores.find(self._plans.of(values), self._may_win)
        score = self.metric.worst(self.original_score) if found.score is None else found.score
        return self._outcome(found.plan, values, score, found)

    def _may_win(self, plan: CompressionPlan) -> bool:
        return self.budget.is_met(self.cost_ratio(plan))

    def submit(self, plans: Sequence[CompressionPlan]) -> None:
        """Asks for complete plans, so that :meth:`evaluate` need not wait for one after the other.

        Where evaluations run in parallel, this is how many are under way at a time.
        """
        self.scores.submit([*map(self.canonical, plans)], self._may_win)

    def canonical(self, plan: CompressionPlan) -> CompressionPlan:
        """Returns the plan of the same network that is as the original within left-out branches."""
        return self._plans.of(self._values_of(plan))

    @renamed_arguments(accuracy="score", removed_in="0.2")
    def outcome(self, plan: CompressionPlan, score: float) -> Outcome:
        """Returns costs and reward of a complete plan whose score is known from elsewhere."""
        return self._outcome(plan, self._values_of(plan), score)

    def _outcome(
        self,
        plan: CompressionPlan,
        values: Sequence[float],
        score: float,
        evaluation: Evaluation | None = None,
    ) -> Outcome:
        score, cost = self.metric.checked(score, "the evaluation of a plan"), self._cost_of(values)
        ratio = {name: value / self.original_cost[name] for name, value in cost.items()}
        targets = {name: upper for name, (_, upper) in self.budget.bounds.items()}
        best = self.metric.best_score
        result = Result(score, self.original_score, cost, ratio, targets, best)
        reward = checked_reward(self._reward(result))
        failed = evaluation is not None and bool(evaluation.failure)
        feasible = not failed and self.budget.is_met(ratio)
        return Outcome(plan, score, cost, ratio, reward, feasible, evaluation)

    @property
    def n_evaluations(self) -> int:
        """How many different plans the learner has evaluated so far."""
        return len(self.scores)

    @renamed_arguments(accuracy="score", removed_in="0.2")
    def remember(self, plan: CompressionPlan, score: float, failure: str = "") -> None:
        """Caches an earlier evaluation, so that a resumed run does not repeat it.

        Args:
            plan: Complete.
            score: Its score.
            failure: Why it could not be evaluated; it has no score of its own then.
        """
        number = self.metric.checked(score, "the record of a plan")
        self.scores.add(Evaluation(self.canonical(plan), None if failure else number, failure))

    def cost(self, plan: CompressionPlan) -> dict[str, float]:
        """Returns the absolute cost of a complete plan, for every cost model."""
        return self._cost_of(self._values_of(plan))

    def _cost_of(self, values: Sequence[float]) -> dict[str, float]:
        known = self._sums.of_plan(values)
        return {n: known[n] if n in known else model(values) for n, model in self.costs.items()}

    def cost_ratio(self, plan: CompressionPlan) -> dict[str, float]:
        """Returns cost / original cost of a complete plan, for every cost model."""
        return {name: cost / self.original_cost[name] for name, cost in self.cost(plan).items()}

    def decode(self, actions: Sequence[float] | npt.NDArray[Any]) -> CompressionPlan:
        """Returns the plan that an episode with these actions ends with; nothing is evaluated.

        Args:
            actions: One action per decision, shape ``(n_decisions,)``.

        Raises:
            ArgumentError: If they are not one number in [0, 1] per decision.
        """
        return self._plans.of(self._translation.values(actions_of(actions, self.n_decisions)))

    def decode_all(
        self, actions: Sequence[Sequence[float] | Matrix] | Matrix
    ) -> list[CompressionPlan]:
        """Returns the plans of many rows of actions: those of :meth:`decode`, and much faster.

        Args:
            actions: One row per plan, shape ``(n_plans, n_decisions)``.

        Raises:
            ArgumentError: As :meth:`decode`.
        """
        rows = [actions_of(row, self.n_decisions) for row in actions]
        return [*map(self._plans.of, self._translation.all_values(rows))]

    def encode(self, plan: CompressionPlan) -> npt.NDArray[np.float32]:
        """Returns the actions, shape ``(n_decisions,)``, that lead to a feasible plan."""
        values = self._values_of(plan)
        actions = [
            self._translation.action(value, self._translation.context(values[:i]))
            for i, value in enumerate(values)
        ]
        return np.array(actions, dtype=np.float32)

    def trajectory(self, plan: CompressionPlan) -> tuple[Observation, npt.NDArray[np.float32]]:
        """Returns what an agent sees and does in the episode that ends with a feasible plan.

        Arithmetic only: nothing is evaluated, and an episode under way is not disturbed.

        Args:
            plan: Complete and within the budget.

        Returns:
            Observations before each decision, shape ``(n_decisions, n_features)``, and the
            executed actions, shape ``(n_decisions,)``, both float32.
        """
        values = self._values_of(plan)
        observations, actions = [], []
        for i, value in enumerate(values):
            context = self._translation.context(values[:i])
            balanced = scaled(context.balanced, context.span)
            observations.append(self._encoder.encode(values[:i], context.interval, balanced))
            actions.append(self._translation.action(value, context))
        return np.stack(observations), np.array(actions, dtype=np.float32)

    def project(self, values: Sequence[float] | npt.NDArray[Any]) -> CompressionPlan:
        """Returns the feasible plan nearest to the requested values, decision by decision.

        Raises:
            ArgumentError: If they are not one finite number per decision.
        """
        return self.project_all([values])[0]

    def project_all(
        self, values: Sequence[Sequence[float] | Matrix] | Matrix
    ) -> list[CompressionPlan]:
        """Returns the plans of many rows of values: those of :meth:`project`, and much faster.

        Raises:
            ArgumentError: As :meth:`project`.
        """
        asked = [check_numbers("values", row, self.n_decisions).tolist() for row in values]
        return [*map(self._plans.of, self._translation.projected(asked))]

    def uniform_plan(self) -> CompressionPlan:
        """Returns the plan in which every decision takes the ratio that spends what is left."""
        return self._plans.of(self._translation.balanced_values())

    def render(self) -> Any:
        """Returns the plan so far, layer by layer against the original, as text or picture."""
        if self.render_mode is None:
            raise ValueError('Nothing to render: make the environment with render_mode="ansi".')
        values = self._values or []
        if self.render_mode == "ansi":
            return plan_table(self.graph, self.decisions, values, self.costs)
        return plan_picture(self.graph, self.decisions, values)

    def _values_of(self, plan: CompressionPlan) -> list[float]:
        """The values of a complete plan in decision order."""
        if not isinstance(plan, CompressionPlan):
            raise ArgumentError(
                f"Expected a CompressionPlan, got {shown(plan)}; CompressionPlan(values) makes one."
            )
        return plan.values_for(self.decisions)

    def _encode(self) -> Observation:
        assert self._values is not None
        return self._encoder.encode(
            self._values, self._context.interval, scaled(self._context.balanced, self._context.span)
        )

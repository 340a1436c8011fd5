"""Asks a study for plans, some at a time, and tells it what they are worth."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from amc_compress.agents.determinism import one_thread
from amc_compress.agents.heuristics.local_search import neighbour
from amc_compress.agents.rollout import Search
from amc_compress.agents.samplers.shared_study import GoalsOf, SharedStudy
from amc_compress.agents.samplers.space import RequestSpace
from amc_compress.agents.trials import Trial
from amc_env import CompressionPlan

if TYPE_CHECKING:
    import optuna

_MAX_REPEATS = 10
_REACH = 0.35


class Asking:
    """The exchange between a search and a study.

    A plan that the study asks for while it is under way is told when its result comes; until then
    the study knows that it waits for it.

    Args:
        search: The running search.
        study: Asks.
        space: Parameters -> plan.
        goals: A trial -> reward and costs.
        source: Name of the proposer.
        generation: After so many the study has to know all results before it asks again; None:
            never.
    """

    def __init__(
        self,
        search: Search,
        study: SharedStudy,
        space: RequestSpace,
        goals: GoalsOf,
        source: str,
        generation: int | None = None,
    ) -> None:
        self._search = search
        self._study = study
        self._space = space
        self._goals = goals
        self._source = source
        self._generation = generation
        self._n_asked = 0
        self._repeats = 0
        # Plans under way and who asked for them: none where it was not the study.
        self._waiting: deque[tuple[CompressionPlan, list[optuna.Trial]]] = deque()

    def run(self) -> None:
        """Spends the evaluations; where others share the study, the last one on their best plan."""
        search = self._search
        while not search.is_over:
            while search.has_room:
                if search.remaining == 1 and self._study.is_shared:
                    self._drain()
                    if (best := self._study.best_of_others(search)) is not None:
                        search.evaluate(best, "another worker")
                        return
                self._propose()
            if self._waiting:
                self._take_result()

    def add(self, trial: Trial, *, own: bool) -> None:
        """Tells of a plan that the study did not ask for.

        Args:
            trial: Its evaluation.
            own: Whether this search spent an evaluation on it.
        """
        parameters = dict(zip(self._space.names, self._space.parameters(trial.plan), strict=True))
        self._study.add(parameters, trial, self._goals(trial), own=own)

    def _propose(self) -> None:
        """Asks once: for a new plan, for one that is known, or for one under way."""
        if self._generation is not None and self._n_asked % self._generation == 0:
            self._drain()
        with one_thread():
            asked = self._study.ask(self._space.names)
        self._n_asked += 1
        plan = self._space.plan([asked.params[name] for name in self._space.names])
        known = self._search.find(plan)
        under_way = next((others for other, others in self._waiting if other == plan), None)
        self._repeats = 0 if known is None and under_way is None else self._repeats + 1
        if known is not None:
            self._study.tell(asked, known, self._goals(known))
        elif under_way is not None:
            under_way.append(asked)
        else:
            self._submit(plan, [asked])
        if self._repeats > _MAX_REPEATS:
            self._repeats = 0
            self._submit(self._unseen_near(plan), [])

    def _submit(self, plan: CompressionPlan, asked: list[optuna.Trial]) -> None:
        self._search.submit(plan, self._source)
        self._waiting.append((plan, asked))

    def _take_result(self) -> None:
        trial = self._search.result()
        _, asked = self._waiting.popleft()
        for one in asked:
            self._study.tell(one, trial, self._goals(trial))
        if not asked:
            self.add(trial, own=True)

    def _drain(self) -> None:
        while self._waiting:
            self._take_result()

    def _unseen_near(self, plan: CompressionPlan) -> CompressionPlan:
        for _ in range(_MAX_REPEATS):
            near = neighbour(self._search.env, plan, self._search.rng, _REACH)
            if not self._search.has_seen(near):
                break
        return near

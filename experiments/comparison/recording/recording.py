"""Records a task: evaluates plans once and fits a surrogate for all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from amc_compress.comparison.origins import origin_of
from amc_compress.comparison.recording.refinement import (
    REFINING_SEEDS,
    Refinement,
    sample,
    search_surrogate,
)
from amc_compress.comparison.recording.surrogate import Array, Plans, SurrogateModel, fit_model
from amc_compress.comparison.recording.surrogate_quality import (
    FOLDS,
    YARDSTICKS,
    Agreement,
    Quality,
    choose,
    cross_validated,
    of_model,
    of_yardstick,
    predictions,
)
from amc_compress.comparison.searches.evaluation_store import EvaluationStore
from amc_compress.comparison.searches.plan_evaluation import (
    Choices,
    evaluate_plans,
    latin_hypercube,
    single_decisions,
    trials_of,
)
from amc_compress.evaluations.where import Where
from amc_env import CompressionEnv, CompressionError, Evaluations, make_cost
from amc_env.costs.costs import COSTS, CostModel, costs_for, original_cost
from amc_env.plan import CURVES
from amc_env.recorded_tasks.recorded_file import RecordedTask

__all__ = [
    "RecordingOptions",
    "evaluate_plans",
    "latin_hypercube",
    "origin_of",
    "record",
    "trials_of",
]

HYPERCUBE = "latin hypercube"
REFINING = "refinement"
SINGLE = "single decisions"

_COST_TOLERANCE = 1e-9
_N_FIT_TRIED = 500  # twelve fits: enough to rank warps and targets


@dataclass(frozen=True)
class RecordingOptions:
    """How a task is recorded.

    Args:
        n_plans: Plans of the Latin hypercube.
        seed: Draws them, and everything else.
        refinement: Searches on the surrogate whose plans are evaluated as well.
        points: Choices of every decision that are evaluated alone, all else whole.
        n_fit: Plans that hyperparameters are fitted to.
        check_seeds: Searches on the finished surrogate whose winners are evaluated for real, with
            the seeds 0, 1, ...; nothing is fitted to them.
        check_episodes: Episodes of each.
    """

    n_plans: int = 2000
    seed: int = 0
    refinement: Refinement = field(default_factory=Refinement)
    points: int = 8
    n_fit: int = 1000
    check_seeds: int = 20
    check_episodes: int = 300


def record(
    env: CompressionEnv,
    store: EvaluationStore,
    *,
    name: str,
    trials: Mapping[str, Mapping[Choices, float]] | None = None,
    options: RecordingOptions | None = None,
    where: Where | None = None,
    progress: bool = False,
) -> RecordedTask:
    """Records a task: evaluates, refines, fits, and measures what the surrogate is worth.

    Everything follows from the seed and the evaluations, and every evaluation is stored as it is
    made: a killed recording resumes where it stopped when it is started again.

    Args:
        env: The task; its budget is the recorded one.
        store: Where evaluations are kept; its origin is that of the record.
        name: Of the recorded task.
        trials: Agent -> plan -> score, as :func:`trials_of` returns them. The surrogate is
            first measured on them, then fitted to them as well.
        options: How many plans, and how they are chosen.
        where: What evaluates; this process if None.
        progress: Whether to show progress bars.

    Returns:
        The record; ``amc_env.recorded_tasks.recorded_file.write_recorded`` makes a file of it.

    Raises:
        CompressionError: If the costs that the budget bounds do not follow from the facts that a
            record keeps, before anything is evaluated; or if the budget leaves too few plans.
    """
    options = options or RecordingOptions()
    _check_costs(env)
    where = where or Where()
    with where.evaluations(env.learner) as service:
        elsewhere = None if where.is_here else service
        return _recorded(_Recorder(env, store, name, options, elsewhere, progress), trials or {})


def _recorded(recorder: _Recorder, trials: Mapping[str, Mapping[Choices, float]]) -> RecordedTask:
    recorder.evaluate_hypercube()
    for number in range(recorder.options.refinement.rounds):
        recorder.refine(number)
    if trials:
        recorder.measure_on(trials)
    for agent, evaluated in trials.items():
        recorder.pool.add(evaluated, agent)
    return recorder.finish()


class _Pool:
    """Distinct evaluated plans, each with the source that had it first."""

    def __init__(self) -> None:
        self.evaluated: dict[Choices, float] = {}
        self.source: dict[Choices, str] = {}

    def add(self, evaluated: Mapping[Choices, float], source: str) -> None:
        for plan, score in evaluated.items():
            if plan not in self.evaluated:
                self.evaluated[plan], self.source[plan] = score, source

    @property
    def plans(self) -> Plans:
        return np.array(list(self.evaluated))

    @property
    def scores(self) -> Array:
        return np.array(list(self.evaluated.values()))


class _Recorder:
    """A running recording."""

    def __init__(
        self,
        env: CompressionEnv,
        store: EvaluationStore,
        name: str,
        options: RecordingOptions,
        service: Evaluations | None,
        progress: bool,
    ) -> None:
        self.env, self.store, self.name = env, store, name
        self.options, self.service, self.progress = options, service, progress
        self.pool = _Pool()
        self.quality: dict[str, Any] = {"refinement": [], "searches": {}}
        self.warp, self.target = "", ""

    def evaluate_hypercube(self) -> None:
        """Evaluates the Latin hypercube, and chooses warp and target by it."""
        decisions, seed = self.env.decisions, self.options.seed
        plans = latin_hypercube(self.env, self.options.n_plans, seed)
        self.pool.add(self._evaluated([p.choices_for(decisions) for p in plans]), HYPERCUBE)
        n_fit = min(self.options.n_fit, _N_FIT_TRIED)
        tried = choose(
            decisions, self.pool.plans, self.pool.scores, n_fit=n_fit, seed=seed,
            metric=self.env.metric,
        )  # fmt: skip
        self.warp, self.target = tried[0].warp, tried[0].target
        self.quality["tried"] = [asdict(choice) for choice in tried]

    def refine(self, number: int) -> None:
        """Searches the current surrogate and evaluates the plans that were tried."""
        r, rng = self.options.refinement, np.random.default_rng((self.options.seed, number))
        task = self._task(self._model())
        first = REFINING_SEEDS + number * r.searches
        searches = [
            search_surrogate(task, str(self.env.budget), r.agent, r.episodes, seed)
            for seed in range(first, first + r.searches)
        ]
        wanted = dict.fromkeys(p for search in searches for p in sample(search, r.plans, rng))
        evaluated = self._evaluated(list(wanted))
        winners = [(search.predicted[0], evaluated[search.plans[0]]) for search in searches]
        self.quality["refinement"].append(
            {
                "new_plans": len(evaluated.keys() - self.pool.evaluated.keys()),
                **_of_winners(winners),
            }
        )
        self.pool.add(evaluated, REFINING)

    def measure_on(self, trials: Mapping[str, Mapping[Choices, float]]) -> None:
        """Measures how well each agent's trials are predicted by a surrogate not fitted to them."""
        surrogate = self._model().fit(self.pool.plans, self.pool.scores)
        for agent, evaluated in trials.items():
            new = [plan for plan in evaluated if plan not in self.pool.evaluated]
            if len(new) > 1:
                predicted = predictions(surrogate, np.array(new))
                real = np.array([evaluated[plan] for plan in new])
                self.quality["searches"][agent] = asdict(Quality.of(real, predicted))

    def finish(self) -> RecordedTask:
        """Fits to everything, cross-validates, and checks the winners of fresh searches.

        Single decisions are outside the budget and have the highest scores of all: they join
        when hyperparameters and figures are those of the plans that searches meet.
        """
        o, plans, scores = self.options, self.pool.plans, self.pool.scores
        model = self._model()
        predictors = {"surrogate": of_model(model)}
        predictors |= {name: of_yardstick(name, o.seed) for name in YARDSTICKS}
        self.quality["cross_validation"] = {
            name: asdict(cross_validated(predict, plans, scores, o.seed))
            for name, predict in predictors.items()
        }
        self.quality["cross_validation"]["folds"] = FOLDS
        self.quality["kernel"] = {
            "warp": model.warp, "noise": model.noise, "n_fit": o.n_fit, "seed": o.seed,
        }  # fmt: skip
        singles = single_decisions(self.env, o.points)
        self.pool.add(self._evaluated(singles), SINGLE)
        task = self._task(model)
        agent, episodes = o.refinement.agent, o.check_episodes
        searches = [
            search_surrogate(task, str(self.env.budget), agent, episodes, seed)
            for seed in range(o.check_seeds)
        ]
        best = {search.plans[0]: search.predicted[0] for search in searches}
        evaluated = self._evaluated(list(best))
        unseen = [(best[p], evaluated[p]) for p in best if p not in self.pool.evaluated]
        if best:
            self.quality["winners"] = {
                "agent": agent,
                "episodes": episodes,
                **_of_winners([(s.predicted[0], evaluated[s.plans[0]]) for s in searches]),
                "unseen": _of_winners(unseen) if unseen else None,
            }
        return replace(task, quality=self.quality)

    def _evaluated(self, plans: Sequence[Choices]) -> dict[Choices, float]:
        return evaluate_plans(
            self.env, plans, self.store, service=self.service, progress=self.progress
        )

    def _model(self) -> SurrogateModel:
        return fit_model(
            self.env.decisions,
            self.pool.plans,
            self.pool.scores,
            warp=self.warp,
            target=self.target,
            n_fit=self.options.n_fit,
            seed=self.options.seed,
        )

    def _task(self, model: SurrogateModel) -> RecordedTask:
        plans = self.pool.plans
        sources = list(dict.fromkeys(self.pool.source.values()))
        index = {name: i for i, name in enumerate(sources)}
        return RecordedTask(
            name=self.name,
            origin=self.store.task.origin,
            budget=str(self.env.budget),
            original_score=self.env.original_score,
            graph=self.env.graph,
            decisions=self.env.decisions,
            storage=getattr(self.env.learner, "storage", None),
            surrogate=model.fit(plans, self.pool.scores),
            scores=self.pool.scores.astype(np.float32),
            sources=np.array([index[s] for s in self.pool.source.values()], dtype=np.uint8),
            source_names=tuple(sources),
            cost_range=_cost_range(
                self.env, [p for p, source in self.pool.source.items() if source != SINGLE]
            ),
            curves=_curves(self.env),
            quality=self.quality,
            metric=self.env.metric,
        )


def _of_winners(winners: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Predicted and evaluated scores of the searches' best plans."""
    predicted, evaluated = np.array(winners).T
    return {
        "searches": len(winners),
        "predicted": float(predicted.mean()),
        "judged": float(evaluated.mean()),
        "best_judged": float(evaluated.max()),
        "rmse": Agreement.of(evaluated, predicted).rmse,
    }


def _costs(env: CompressionEnv) -> dict[str, CostModel]:
    """The cost models that a record can build again."""
    storage = getattr(env.learner, "storage", None)
    return {
        name: make_cost(name, env.graph, env.decisions, storage)
        for name in costs_for(env.decisions)
    }


def _check_costs(env: CompressionEnv) -> None:
    """Rejects costs of another origin, say a table of latencies, before anything is evaluated."""
    ours = _costs(env)
    examples = [
        [d.choices[0] for d in env.decisions],
        [d.choices[len(d.choices) // 2] for d in env.decisions],
        [d.choices[-1] for d in env.decisions],
    ]
    for name in env.budget.bounds:
        if name not in ours or not all(
            np.isclose(ours[name](values), env.costs[name](values), rtol=_COST_TOLERANCE)
            for values in examples
        ):
            raise CompressionError(
                f"The budget bounds {name}, which does not follow from the layers and the storage "
                f"format that a record keeps; record a task whose budget bounds only "
                f"{', '.join(COSTS)}, as the environment counts them by itself."
            )


def _cost_range(env: CompressionEnv, plans: Sequence[Choices]) -> dict[str, tuple[float, float]]:
    """Cost name -> smallest and largest ratio among the plans."""
    values = [[d.choices[i] for d, i in zip(env.decisions, p, strict=True)] for p in plans]
    ranges = {}
    for name, cost in _costs(env).items():
        ratios = [cost(v) / original_cost(cost, env.decisions) for v in values]
        ranges[name] = (min(ratios), max(ratios))
    return ranges


def _curves(env: CompressionEnv) -> dict[str, dict[str, list[float]]]:
    """The curves that the learner offers."""
    curves = {}
    for name in CURVES:
        read = getattr(env.learner, name, None)
        if read is not None:
            curves[name] = {key: [float(x) for x in curve] for key, curve in read().items()}
    return curves

"""Optuna samplers (Akiba et al. 2019) as agents, by ask and tell.

A parameter per decision in [0, 1] is a request, 0.5 being what the best plan known at the start
(the uniform one, without a warm start) gives that decision. Requests become a plan by
``amc_env.one_shot.rescale``, which spends the budget, or, where costs are objectives too, by
``env.project``, which need not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.determinism import isolated_randomness
from amc_compress.agents.rollout import Search
from amc_compress.agents.samplers.asking import Asking
from amc_compress.agents.samplers.shared_study import SharedStudy, require_optuna
from amc_compress.agents.samplers.space import RequestSpace
from amc_compress.agents.trials import AgentError, Trial, best_distinct
from amc_env import CompressionEnv
from amc_env.validation.checks import check_known

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "random")

_MIN_POPULATION = 4


class OptunaSearch(Agent):
    """A sampler of Optuna, by ask and tell.

    A plan that was evaluated before is told again and asked anew; if it keeps coming back, a plan
    near it is evaluated instead, so that an evaluation is only wasted where no unseen plan is found
    nearby.

    In parallel, plans under way count as evaluated. TPE takes them for bad ones (the constant
    liar), the Gaussian process for the joint improvement (qLogEI); CMA-ES waits at the end of every
    generation; the others need nothing.

    With a ``storage``, processes (on one machine or several) that search with the same ``study``
    see each other's evaluations; each spends its own episodes, the last one on the best plan of
    all, and a killed process resumes where it stopped when it is started again with the same
    ``worker``. The order in which others report cannot be controlled, so such searches are not
    repeatable; without a storage the same seed gives the same trials.

    Args:
        sampler: ``"tpe"``, ``"gp"``, ``"cmaes"``, ``"nsga2"`` or ``"random"``.
        objectives: Costs to be made small while the reward is made large, with commas; ``"budget"``
            means all costs that have a bound, ``""`` none. TPE and NSGA-II can; what a search
            finds is its front, ``amc_compress.agents.pareto_front(result.trials)``.
        storage: ``"journal:FILE"``, or the URL of a database as Optuna takes it, e.g.
            ``"sqlite:///study.db"``; empty keeps the study in memory.
        study: Name of the study in the storage.
        worker: Name of this process in the study; by default its seed.
        finalists: See :class:`Agent`.

    Raises:
        ValueError: If there is no such sampler, or it cannot have several objectives.
        MissingDependencyError: If Optuna is not installed.
    """

    name = "optuna"

    def __init__(
        self,
        sampler: str = "tpe",
        *,
        objectives: str = "",
        storage: str = "",
        study: str = "amc",
        worker: str = "",
        finalists: int = DEFAULT_FINALISTS,
    ) -> None:
        super().__init__(finalists=finalists)
        check_known("sampler", sampler, SAMPLERS)
        if objectives and sampler not in ("tpe", "nsga2", "random"):
            raise ValueError(
                f"The sampler {sampler!r} has one objective; use 'tpe' or 'nsga2' for "
                f"objectives={objectives!r}."
            )
        require_optuna(sampler)
        self.sampler = sampler
        self.objectives = objectives
        self.storage = storage
        self.study = study
        self.worker = worker

    def run(self, search: Search) -> None:  # noqa: D102
        costs = self._costs(search.env)
        with _quiet(), isolated_randomness():
            study = SharedStudy(
                self._make_sampler(search),
                search.env,
                n_objectives=1 + len(costs),
                storage=self.storage,
                name=self.study,
                worker=self.worker or f"seed {search.seed}",
            )
            # Workers that share a study must give its parameters one meaning.
            space = RequestSpace(search.env, search.env.uniform_plan(), spend=not costs)
            replayed = study.replay(
                search,
                lambda asked: space.plan([asked[name] for name in space.names]),
                lambda trial: self._goals(trial, costs),
                self.sampler,
            )
            uniform = search.uniform() if search.remaining else None
            if not self.storage:
                best = max(search.known, key=lambda trial: trial.reward)
                space = RequestSpace(search.env, best.plan, spend=not costs)
            asking = Asking(
                search,
                study,
                space,
                lambda trial: self._goals(trial, costs),
                self.sampler,
                self._generation(search) if self.sampler == "cmaes" else None,
            )
            if not replayed:
                self._tell_what_is_known(search, study, space, asking, uniform)
            asking.run()

    def _tell_what_is_known(
        self,
        search: Search,
        study: SharedStudy,
        space: RequestSpace,
        asking: Asking,
        uniform: Trial | None,
    ) -> None:
        for trial in search.known:
            asking.add(trial, own=trial is uniform and trial in search.trials)
        if self.sampler == "nsga2":  # its first generation holds what is known to be good
            for trial in best_distinct(search.known, self._population(search) // 2):
                study.enqueue(dict(zip(space.names, space.parameters(trial.plan), strict=True)))

    def _costs(self, env: CompressionEnv) -> list[str]:
        if self.objectives == "budget":
            return [*env.budget.bounds]
        names = [name.strip() for name in self.objectives.split(",") if name.strip()]
        if unknown := sorted(set(names) - env.costs.keys()):
            raise AgentError(
                f"No cost named {', '.join(unknown)} to make small; available: "
                f"{', '.join(sorted(env.costs))}."
            )
        return names

    def _goals(self, trial: Trial, costs: Sequence[str]) -> list[float]:
        return [trial.reward, *(trial.cost_ratio[name] for name in costs)]

    def _population(self, search: Search) -> int:
        """About ten generations, however short the search is."""
        return min(50, max(_MIN_POPULATION, search.episodes // 10))

    def _generation(self, search: Search) -> int | None:
        """Size of a generation of CMA-ES; None: its own choice.

        In parallel it is one that whole rounds make up: what is asked for beyond it is lost to the
        adaptation.
        """
        if search.parallel == 1:
            return None
        usual = 4 + math.floor(3 * math.log(search.env.n_decisions))
        return search.parallel * math.ceil(usual / search.parallel)

    def _make_sampler(self, search: Search) -> optuna.samplers.BaseSampler:
        from optuna import samplers

        seed = int(search.rng.integers(2**31))
        if self.sampler == "tpe":
            # Plans under way count as bad ones, so that the next one lies elsewhere.
            return samplers.TPESampler(seed=seed, constant_liar=True)
        if self.sampler == "gp":
            return samplers.GPSampler(seed=seed, deterministic_objective=True)
        if self.sampler == "cmaes":
            return samplers.CmaEsSampler(seed=seed, popsize=self._generation(search))
        if self.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=self._population(search))
        return samplers.RandomSampler(seed=seed)


class TPE(OptunaSearch):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate."""

    name = "tpe"

    def __init__(self, **options: Any) -> None:
        super().__init__("tpe", **options)


class GaussianProcess(OptunaSearch):
    """Bayesian optimisation: Gaussian process, Matern 5/2, expected improvement."""

    name = "gp"

    def __init__(self, **options: Any) -> None:
        super().__init__("gp", **options)


class CMAES(OptunaSearch):
    """Covariance matrix adaptation (Hansen & Ostermeier 2001) from the best plan known."""

    name = "cmaes"

    def __init__(self, **options: Any) -> None:
        super().__init__("cmaes", **options)


class NSGA2(OptunaSearch):
    """NSGA-II (Deb et al. 2002): a front of reward against every bounded cost, below the budget."""

    name = "nsga2"

    def __init__(self, *, objectives: str = "budget", **options: Any) -> None:
        super().__init__("nsga2", objectives=objectives, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna from writing a line per trial and from warning about its own plans."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)

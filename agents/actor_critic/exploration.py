"""Exploration schedule and proposal distribution: warm-up, elites, policy noise.

Exploration is not SB3's ``action_noise``: SB3 adds that noise to its warm-up actions too, clips
instead of truncating, measures it on [-1, 1] and counts resets that are no episodes. Off-policy
learning does not mind who acted, because the replay buffer stores the executed action.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from amc_compress.agents.curves.allocation import Curves
from amc_compress.agents.curves.prior import PRIORS, prior_of, standardised
from amc_compress.agents.heuristics.local_search import neighbour
from amc_compress.agents.rollout import Search
from amc_compress.agents.trials import Trial, best_distinct
from amc_env import CompressionEnv, CompressionPlan
from amc_env.one_shot import rescale_all
from amc_env.validation.checks import checked

Score = Callable[[Sequence[CompressionPlan]], npt.NDArray[np.float64]]
"""Plans -> what the critics think of them, shape ``(n_critics, n_plans)``."""

_MAX_TRIES = 20


def truncated_normal(mean: float, sigma: float, rng: np.random.Generator) -> float:
    """Draws from N(mean, sigma) conditioned on [0, 1] (no mass piles up on the bounds)."""
    if sigma <= 0.0:
        return mean
    low, high = ndtr((0.0 - mean) / sigma), ndtr((1.0 - mean) / sigma)
    drawn = mean + sigma * float(ndtri(low + rng.random() * (high - low)))
    return min(1.0, max(0.0, drawn))


@checked
@dataclass(frozen=True)
class Exploration:
    """The schedule of an agent's exploration.

    Sigmas are on the action scale [0, 1].

    Args:
        warmup_episodes: How many plans must be known before the policy acts, the uniform plan and
            those of a warm start among them.
        warmup: ``"perturb"`` draws around the uniform plan's actions; ``"random"`` draws
            from U(0, 1) as AMC does.
        warmup_sigma: Spread of ``"perturb"``.
        sigma: Noise of the first episode in which the policy acts.
        final_sigma: Noise of the last episode but one; the last one is noise-free. The decay is
            geometric per episode.
        elite_share: Probability that an episode starts from one of the best plans so far instead
            of the policy.
        elite_count: How many best plans count as elite.
        elite_step: Reach of an elite's change, as a share of a decision's grid.
        screen: How many changed elites the critic chooses from (Dulac-Arnold et al. 2015 let it
            choose among the actions nearest to the actor's); 1 takes the first.
        optimism: What the critics' disagreement is worth in that choice: their standard deviation
            times this is added to their mean.
        prior: Curves of the learner that help the critics choose (``prior``), and choose
            alone among as many draws in the warm-up; ``"none"``, or a learner without: nothing.
        prior_weight: Weight of the prior relative to the critics, both standardised over the
            candidates, when the search begins.
        prior_half_life: After so many evaluations it is worth half as much.
    """

    warmup_episodes: int = 10
    warmup: str = "perturb"
    warmup_sigma: float = 0.2
    sigma: float = 0.15
    final_sigma: float = 0.02
    elite_share: float = 0.4
    elite_count: int = 3
    elite_step: float = 0.35
    screen: int = 1
    optimism: float = 0.0
    prior: str = "none"
    prior_weight: float = 2.0
    prior_half_life: float = 25.0

    def __post_init__(self) -> None:
        if self.warmup not in ("perturb", "random"):
            raise ValueError(f"Expected warmup 'perturb' or 'random', got {self.warmup!r}.")
        if self.warmup_episodes < 1 or self.elite_count < 1 or self.screen < 1:
            raise ValueError("Expected warmup_episodes, elite_count and screen >= 1.")
        if not 0.0 <= self.elite_share <= 1.0 or not 0.0 < self.elite_step <= 1.0:
            raise ValueError("Expected elite_share in [0, 1] and elite_step in (0, 1].")
        if min(self.warmup_sigma, self.sigma, self.final_sigma) < 0.0:
            raise ValueError("Expected sigmas >= 0.")
        if self.prior not in PRIORS:
            raise ValueError(f"Expected prior to be one of {PRIORS}, got {self.prior!r}.")
        if self.prior_weight < 0.0 or self.prior_half_life <= 0.0:
            raise ValueError("Expected prior_weight >= 0 and prior_half_life > 0.")

    def sigma_at(self, episode: int, first: int, episodes: int) -> float:
        """Returns the noise on the policy's actions in an episode of a search.

        Args:
            episode: Counted from 0.
            first: The first episode in which the policy acts.
            episodes: Length of the whole search.
        """
        if episode < first or episode >= episodes - 1:
            return 0.0
        if self.sigma == 0.0 or self.final_sigma == 0.0:
            return self.sigma
        span = max(1, episodes - 2 - first)
        return float(self.sigma * (self.final_sigma / self.sigma) ** ((episode - first) / span))


@dataclass(frozen=True)
class Proposal:
    """What plays one episode: a fixed plan, the policy, or a changed elite.

    Args:
        plan: What is played; None where the policy acts.
        source: Name of the proposer.
        sigma: Noise on the policy's actions.
        known: The trial that is played again only to be learned from; None for a new episode.
        greedy: Whether the policy acts without noise of its own.
    """

    plan: CompressionPlan | None
    source: str
    sigma: float = 0.0
    known: Trial | None = None
    greedy: bool = False


class Proposals:
    """Sequence of proposals: known plans, warm-up, then the policy or changed elites.

    Everything that is known when the search begins is played first, at no evaluation. The last
    episode is the bare policy, and so is the first one where the policy has learned before.

    In parallel, the episodes of a round are proposed before any of them is evaluated. Learning
    starts after whole rounds: the warm-up grows to fill the last of its rounds, where there is no
    warm-up known episodes are played twice, and so they are to fill the last round of the search.

    Args:
        search: The search; the uniform plan must be known.
        exploration: The schedule.
        one_shot: Whether the warm-up draws whole plans that are rescaled instead of actions.
        has_learned: Whether the policy comes from an earlier search: no warm-up then.
        curves: Damages by the exploration's prior; None: there is none.

    Attributes:
        score: What the critics think of plans, for screening; None until there are critics.
        lanes: How many episodes are a round.
        n_known: How many episodes are played again before the new ones.
        n_warmup: How many new episodes are warm-up, if the search is long enough.
    """

    def __init__(
        self,
        search: Search,
        exploration: Exploration,
        one_shot: bool,
        *,
        has_learned: bool = False,
        curves: Curves | None = None,
    ) -> None:
        self._search = search
        self._has_learned = has_learned
        self._exploration = exploration
        self._one_shot = one_shot
        self._known = search.known
        self._started = len(search.trials)
        self._centre = uniform_actions(search.env)
        self._prior = None if curves is None else prior_of(search.env, curves)
        self._played = 0
        self._begun = 0
        self._plans: deque[tuple[int, CompressionPlan]] = deque()  # by episode
        self.score: Score | None = None
        self.n_known = len(self._known)
        self.n_warmup = 0 if has_learned else max(0, exploration.warmup_episodes - self.n_known)
        self.lanes = min(search.parallel, self.n_known + search.remaining)
        open_ = -(self.n_known + self.n_warmup) % self.lanes
        if self.n_warmup:
            self.n_warmup += open_
        elif not has_learned:
            self.n_known += open_

    @property
    def first_update(self) -> int:
        """Number of episodes, replayed ones included, before learning starts: whole rounds.

        A policy that comes from an earlier search shows first what it has learned there.
        """
        return self._whole_rounds(self.n_known + self.n_warmup + int(self._has_learned))

    @property
    def n_episodes(self) -> int:
        """Most episodes of the whole search, replayed ones included: whole rounds."""
        return self._whole_rounds(self.n_known + self._search.most_episodes - self._started)

    def _whole_rounds(self, episodes: int) -> int:
        return episodes + -episodes % self.lanes

    @property
    def _episode(self) -> int:
        """Number of the new episode that begins; those before it may not be evaluated yet."""
        return self._started + self._begun

    def next(self) -> Proposal:
        """Returns the actor of the episode that begins."""
        if self._played < self.n_known or self._episode >= self._search.episodes:
            return self._again()
        proposal = self._new()
        if proposal.plan is not None:
            self._plans.append((self._episode, proposal.plan))
        self._begun += 1
        return proposal

    def _again(self) -> Proposal:
        trial = self._known[self._played % len(self._known)]
        self._played += 1
        return Proposal(trial.plan, trial.source, known=trial)

    def _under_way(self) -> set[CompressionPlan]:
        """The plans of this round that were chosen so far; none but in parallel."""
        while self._plans and self._plans[0][0] < len(self._search.trials):
            self._plans.popleft()
        return {plan for _, plan in self._plans}

    def _new(self) -> Proposal:
        search, rng, settings = self._search, self._search.rng, self._exploration
        episode, last = self._episode, search.episodes - 1
        first = self._started + self.n_warmup
        sigma = settings.sigma_at(episode, first, search.episodes)
        if episode < first:
            return Proposal(self._warmup(), "warm-up")
        if self._has_learned and episode == self._started:
            return Proposal(None, "policy", greedy=True)
        if episode < last and rng.random() < settings.elite_share:
            return Proposal(self._changed_elite(), "elite", sigma)
        untaught = self._has_learned and self._begun < self.first_update - self.n_known
        return Proposal(None, "policy", sigma, greedy=untaught or episode >= last)

    def elites(self) -> list[CompressionPlan]:
        """Returns the best plans known, the best one first."""
        best = best_distinct(self._search.known, self._exploration.elite_count)
        return [trial.plan for trial in best]

    def _warmup(self) -> CompressionPlan:
        count = 1 if self._prior is None else self._exploration.screen
        # Critics that have not learned anything yet would only add noise to the prior.
        env, drawn = self._search.env, [self._drawn() for _ in range(count)]
        plans = rescale_all(env, drawn) if self._one_shot else env.decode_all(drawn)
        return self._preferred(plans, with_critics=False)

    def _drawn(self) -> npt.NDArray[np.float32]:
        settings, rng, env = self._exploration, self._search.rng, self._search.env
        if settings.warmup == "random":
            return rng.random(env.n_decisions, dtype=np.float32)
        centre = np.full(env.n_decisions, 0.5) if self._one_shot else self._centre
        noisy = [truncated_normal(float(c), settings.warmup_sigma, rng) for c in centre]
        return np.array(noisy, dtype=np.float32)

    def _changed_elite(self) -> CompressionPlan:
        search, rng, settings = self._search, self._search.rng, self._exploration
        elites = self.elites()

        def changed() -> CompressionPlan:
            start = elites[int(rng.integers(len(elites)))]
            return neighbour(search.env, start, rng, settings.elite_step)

        under_way = self._under_way()
        if settings.screen == 1:
            tries = (changed() for _ in range(_MAX_TRIES))
            return next((plan for plan in tries if plan not in under_way), elites[0])
        seen = under_way.union(trial.plan for trial in search.known)
        candidates: dict[CompressionPlan, None] = {}
        for _ in range(_MAX_TRIES * settings.screen):
            if (plan := changed()) not in seen:
                candidates.setdefault(plan)
            if len(candidates) == settings.screen:
                break
        return self._preferred([*candidates]) if candidates else changed()

    def _preferred(
        self, plans: Sequence[CompressionPlan], *, with_critics: bool = True
    ) -> CompressionPlan:
        """The plan that critics and prior like best, the first one where there are neither."""
        settings = self._exploration
        if len(plans) == 1:
            return plans[0]
        merit = np.zeros(len(plans))
        if with_critics and self.score is not None:
            values = self.score(plans)
            merit += standardised(values.mean(0) + settings.optimism * values.std(0))
        if self._prior is not None:
            half_lives = self._episode / settings.prior_half_life
            merit += settings.prior_weight * 0.5**half_lives * standardised(self._prior(plans))
        return plans[int(np.argmax(merit))]


def uniform_actions(env: CompressionEnv) -> npt.NDArray[np.float32]:
    """Returns the actions of the uniform plan: 0.5 in the centred mapping, encoded in the others.

    In the centred mapping 0.5 means "balanced with what is left" wherever the episode has gone,
    which a fixed list of encoded actions would not.
    """
    centre = np.full(env.n_decisions, 0.5, dtype=np.float32)
    plan = env.uniform_plan()
    return centre if env.decode([float(c) for c in centre]) == plan else env.encode(plan)

"""Which plans to evaluate, and evaluating each once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from scipy.stats import qmc

from amc_compress.agents.curves.sensitivity import spread
from amc_compress.comparison.records import Results
from amc_compress.comparison.searches.evaluation_store import EvaluationStore
from amc_env import (
    CompressionEnv,
    CompressionError,
    CompressionPlan,
    EvaluationError,
    Evaluations,
)
from amc_env.scores.evaluations import InProcess
from amc_env.support.progress import Progress
from amc_env.validation.sentences import counted

Choices = tuple[int, ...]
"""A plan as the index of each decision's choice."""

_MAX_EMPTY_ROUNDS = 3


def latin_hypercube(env: CompressionEnv, n: int, seed: int) -> list[CompressionPlan]:
    """Returns distinct plans within the budget, spread over all actions.

    Points of a Latin hypercube (McKay et al. 1979) over [0, 1]^decisions are read as the actions
    of an episode. Where several mean the same plan, further hypercubes fill the gap.

    Args:
        env: The decision problem; its action mapping and its budget decide what an action means.
        n: How many plans.
        seed: Draws the points; the same seed gives the same plans.

    Raises:
        ValueError: If ``n`` is not positive.
        CompressionError: If the budget does not leave so many plans.
    """
    if n < 1:
        raise ValueError(f"Expected at least one plan, got {n}.")
    sampler = qmc.LatinHypercube(env.n_decisions, rng=seed)
    found: dict[CompressionPlan, None] = {}
    empty = 0
    while len(found) < n:
        before = len(found)
        for plan in env.decode_all(sampler.random(n)):
            found.setdefault(plan)
            if len(found) == n:
                break
        empty = empty + 1 if len(found) == before else 0
        if empty == _MAX_EMPTY_ROUNDS:
            raise CompressionError(
                f"Found only {len(found)} distinct plans within the budget {env.budget}, expected "
                f"{n}; ask for fewer, or relax the budget."
            )
    return list(found)


def single_decisions(env: CompressionEnv, points: int) -> list[Choices]:
    """Returns the plans that curves are read from: one decision is made, all else stays whole.

    Args:
        env: The decision problem; these plans are hardly ever within its budget.
        points: Choices of every decision, at most, spread as those of ``Sensitivity``.
    """
    whole = [len(d.choices) - 1 for d in env.decisions]
    return [
        (*whole[:i], choice, *whole[i + 1 :])
        for i, last in enumerate(whole)
        for choice in spread(last, points)
    ]


def evaluate_plans(
    env: CompressionEnv,
    plans: Iterable[Choices],
    store: EvaluationStore,
    *,
    service: Evaluations | None = None,
    progress: bool = False,
) -> dict[Choices, float]:
    """Evaluates the plans that the store does not know, each stored as soon as it is evaluated.

    A killed run resumes where it stopped, and several processes may share the work of one
    store: give each the same plans in another order.

    Args:
        env: The task; its budget does not matter.
        plans: Index of each decision's choice.
        store: Of the same task.
        service: Evaluates in place of this process.
        progress: Whether to show a progress bar.

    Returns:
        The score of every one of the plans.

    Raises:
        EvaluationError: If the service could not evaluate one.
    """
    todo = list(dict.fromkeys(plans))
    # Here, as another process may be faster; elsewhere, as many workers as there are have work.
    ahead = 1 if service is None else len(todo)
    service = service or InProcess(env.learner)
    scores: dict[Choices, float | None] = {}
    waiting, asked = deque(todo), deque[Choices]()
    with Progress(len(todo), "evaluate", shown=progress) as bar:
        while waiting or asked:
            while waiting and len(asked) < ahead:
                choices = waiting.popleft()
                known = store.get(choices)
                if known is None:
                    service.submit([CompressionPlan.from_choices(env.decisions, choices)])
                    asked.append(choices)
                else:
                    scores[choices] = known.score
                    bar.step()
            if asked:
                choices = asked.popleft()
                scores[choices] = _next_score(service, store, choices)
                bar.step()
    return _all_of(todo, scores)


def _next_score(service: Evaluations, store: EvaluationStore, choices: Choices) -> float | None:
    """Waits for the plan that was asked for first, and stores its score if it has one."""
    started = time.process_time()
    answer = service.result()
    seconds = answer.cpu_seconds or time.process_time() - started
    return None if answer.score is None else store.add(choices, answer.score, seconds).score


def _all_of(
    plans: Sequence[Choices], scores: Mapping[Choices, float | None]
) -> dict[Choices, float]:
    """Returns the scores in the order of the plans.

    Raises:
        EvaluationError: If there is none for one.
    """
    found = {choices: score for choices in plans if (score := scores[choices]) is not None}
    if failed := [choices for choices in plans if choices not in found]:
        raise EvaluationError(
            f"Expected a score for every plan, but {counted(len(failed), 'plan')} could not be "
            f"evaluated, among them {list(failed[0])} (the index of each decision's choice); the "
            f"others are stored: repeat the command, with more memory or --evaluation-timeout."
        )
    return found


def trials_of(results: Results, task: str, env: CompressionEnv) -> dict[str, dict[Choices, float]]:
    """Returns the trials of a comparison: agent -> plan -> score.

    Args:
        results: Of the comparison.
        task: Name of the task in it; its budget may be another one.
        env: The task.

    Raises:
        CompressionError: If the comparison has no such task, or it is another one.
    """
    if task not in results.tasks:
        raise CompressionError(
            f"The comparison has no task {task!r}, only {sorted(results.tasks)}; name one of them."
        )
    facts = results.tasks[task]
    ours = (
        tuple(d.key for d in env.decisions),
        tuple(d.choices for d in env.decisions),
        env.original_score,
    )
    if ours != (facts.decisions, facts.choices, facts.original_score):
        raise CompressionError(
            f"The task {task!r} of the comparison has other decisions or another original "
            f"score; record it with the data, weights and options of the comparison."
        )
    trials: dict[str, dict[Choices, float]] = {}
    for search in results.searches:
        if search.task == task:
            trials.setdefault(search.agent, {}).update({t.plan: t.score for t in search.trials})
    return trials

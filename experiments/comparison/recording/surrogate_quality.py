"""How well a surrogate predicts plans that it has not seen, next to two baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
from sklearn.model_selection import KFold

from amc_compress.comparison.recording.surrogate import (
    Array,
    Plans,
    SurrogateModel,
    fit_model,
    warps_for,
)
from amc_env import Decision, Metric
from amc_env.recorded_tasks.surrogate import Surrogate, targets_for
from amc_env.scores.metric import ACCURACY

FOLDS = 5

Predictor = Callable[[Plans, Array, Plans], Array]
"""Training plans, their scores, further plans -> predicted scores of these."""

YARDSTICKS: dict[str, Callable[[int], Any]] = {
    "ExtraTrees": lambda seed: ExtraTreesRegressor(400, random_state=seed),
    "HistGradientBoosting": lambda seed: HistGradientBoostingRegressor(random_state=seed),
}
"""What scikit-learn offers ready-made for tables; with its defaults, from the choices' indices."""


@dataclass(frozen=True)
class Agreement:
    """How well predictions agree with evaluations.

    Args:
        n: Number of plans.
        spearman: Rank correlation; None if all scores are equal.
        rmse: Root mean squared error, in units of the score.
        bias: Mean of prediction - evaluation.
    """

    n: int
    spearman: float | None
    rmse: float
    bias: float

    @classmethod
    def of(cls, evaluated: Array, predicted: Array) -> Agreement:
        """Compares predictions with evaluations, both of shape ``(n,)``."""
        error = predicted - evaluated
        constant = min(np.ptp(evaluated), np.ptp(predicted)) == 0.0
        rank = None if constant else float(spearmanr(evaluated, predicted).statistic)
        return cls(len(evaluated), rank, float(np.sqrt(np.mean(error**2))), float(error.mean()))


@dataclass(frozen=True)
class Quality:
    """Agreement on plans that were held out.

    Args:
        all: Of all of them.
        top: Of the quarter with the highest evaluated score: agents end there.
    """

    all: Agreement
    top: Agreement

    @classmethod
    def of(cls, evaluated: Array, predicted: Array) -> Quality:
        """Compares predictions with evaluations, both of shape ``(n,)``."""
        is_top = evaluated >= np.quantile(evaluated, 0.75)
        return cls(
            Agreement.of(evaluated, predicted), Agreement.of(evaluated[is_top], predicted[is_top])
        )


def predictions(surrogate: Surrogate, plans: Plans) -> Array:
    """Returns the predicted scores of plans, shape ``(n_plans,)``."""
    return np.array([surrogate.predict(plan) for plan in plans])


def cross_validated(predict: Predictor, plans: Plans, scores: Array, seed: int) -> Quality:
    """Five-fold cross-validated predictions of all plans.

    Args:
        predict: Fits and predicts.
        plans: Distinct plans, so that none is in two folds.
        scores: Their scores.
        seed: Shuffles the plans before they are dealt to the folds.
    """
    predicted = np.empty(len(plans))
    for seen, held_out in KFold(FOLDS, shuffle=True, random_state=seed).split(plans):
        predicted[held_out] = predict(plans[seen], scores[seen], plans[held_out])
    return Quality.of(scores, predicted)


def of_model(model: SurrogateModel) -> Predictor:
    """Fits weights with the model's hyperparameters; they are not fitted again."""
    return lambda seen, evaluated, asked: predictions(model.fit(seen, evaluated), asked)


def of_yardstick(name: str, seed: int) -> Predictor:
    """Fits a model of :data:`YARDSTICKS`."""

    def predict(seen: Plans, evaluated: Array, asked: Plans) -> Array:
        return np.asarray(YARDSTICKS[name](seed).fit(seen, evaluated).predict(asked))

    return predict


@dataclass(frozen=True)
class Choice:
    """A warp and a target, with their cross-validated agreement."""

    warp: str
    target: str
    quality: Quality


def choose(
    decisions: Sequence[Decision],
    plans: Plans,
    scores: Array,
    *,
    n: int = 1500,
    n_fit: int = 500,
    seed: int = 0,
    metric: Metric = ACCURACY,
) -> list[Choice]:
    """Tries every warp with every target, the best one first.

    The best has the smallest error in the top quarter, where agents end.

    Args:
        decisions: All decisions in order.
        plans: Distinct plans.
        scores: Their scores.
        n: How many plans, drawn at random, are cross-validated.
        n_fit: How many of them the hyperparameters are fitted to.
        seed: Draws everything.
        metric: What the scores are made from.
    """
    part = np.random.default_rng(seed).permutation(len(plans))[:n]
    plans, scores = plans[part], scores[part]
    found = []
    for warp in warps_for(decisions):
        for target in targets_for(metric):
            model = fit_model(
                decisions, plans, scores, warp=warp, target=target, n_fit=n_fit, seed=seed
            )
            found.append(
                Choice(warp, target, cross_validated(of_model(model), plans, scores, seed))
            )
    return sorted(found, key=lambda choice: choice.quality.top.rmse)

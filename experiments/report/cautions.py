"""What would mislead in the figures of a run: chance, few images, differences below the noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from amc_compress.runs.folder import RunFolder
from amc_env.scores.metric import ACCURACY, Metric
from amc_env.validation.sentences import counted

_ERRORS = 2.0
"""Standard errors below which a difference says nothing."""

_COARSE = 0.5
"""Points that one image may be worth before it is said."""


def cautions(folder: RunFolder, summary: Mapping[str, Any]) -> list[str]:
    """Returns what a reader of the report should know, one sentence each.

    Args:
        folder: With a finished ``evaluate``.
        summary: Content of ``summary.json``.
    """
    original, compressed = (summary[name]["score"] for name in ("original", "compressed"))
    metric, evaluated = folder.metric, folder.results("evaluate")
    n_test, error = evaluated.get("n_images"), evaluated.get("standard_error")
    found: list[str] = list(folder.results("search").get("cautions", ()))
    if n_test and metric.is_accuracy:
        if folder.facts.n_classes:
            found += at_chance(original, compressed, 1.0 / folder.facts.n_classes, n_test)
        found += few_images(n_test, "test" if folder.facts.has_test else "validation")
    if n_test and (metric.is_accuracy or error is not None):
        if error is None:  # a run of an earlier release
            error = standard_error(compressed, original, n_test)
        both = "the compressed network and the original"
        found += below_noise(both, compressed, original, n_test, error, metric)
    if not metric.is_accuracy:
        return found  # no share of samples: the other formulas are not about it
    search = folder.results("search")
    if n_validation := search.get("n_images"):
        best, uniform = (search[name]["score"] for name in ("best", "uniform"))
        found += few_images(n_validation, "validation")
        if folder.config.spec.decides and folder.config.max_drop is None:
            error = standard_error(best, uniform, n_validation)
            both = "the chosen plan and the uniform one"
            found += below_noise(both, best, uniform, n_validation, error)
    return found


def standard_error(one: float, other: float, n: int) -> float:
    """Returns the standard error of the difference of two shares of ``n`` images each.

    That of independent samples, where only the shares are known: of the same images it is smaller,
    the more the two networks agree, so that what it calls noise may be a little less.
    """
    return math.sqrt((one * (1.0 - one) + other * (1.0 - other)) / n)


def at_chance(original: float, compressed: float, chance: float, n: int) -> list[str]:
    """Returns a sentence on networks that guess.

    Args:
        original: Accuracy of the original.
        compressed: Accuracy of the compressed network.
        chance: Of a guess.
        n: Images.
    """
    limit = chance + _ERRORS * math.sqrt(chance * (1.0 - chance) / n)
    if chance >= 1.0 or min(original, compressed) > limit:
        return []
    if original <= limit:
        return [
            f"The original network is at chance level ({original:.1%} of the images, a guess has "
            f"{chance:.1%}): nothing can be lost by compressing it, so that no figure here says "
            f"how well it was compressed; give trained weights, or check the labels and --mean "
            f"and --std."
        ]
    return [
        f"The compressed network is at chance level ({compressed:.1%} of the images, a guess has "
        f"{chance:.1%}): the budget leaves too little, or the fine-tuning was too short."
    ]


def few_images(n: int, which: str) -> list[str]:
    """Returns a sentence on images too few for the digits that are shown."""
    points = 100.0 / n
    if points < _COARSE:
        return []
    return [
        f"There {'is' if n == 1 else 'are'} {counted(n, f'{which} image')}: one of them is worth "
        f"{points:.2g} points, so that smaller differences do not exist."
    ]


def below_noise(
    what: str, one: float, other: float, n: int, error: float, metric: Metric = ACCURACY
) -> list[str]:
    """Returns a sentence on a difference that is smaller than what other samples would change.

    Args:
        what: The two, in words.
        one: Score of the first.
        other: Score of the second.
        n: Samples.
        error: Standard error of the difference.
        metric: What the scores are made from.
    """
    noise, difference = _ERRORS * error, abs(one - other)
    if difference == 0.0 or difference >= noise:
        return []
    scale, unit = (100, " points") if metric.is_accuracy else (1, f" in {metric.title}")
    samples = counted(n, "image" if metric.is_accuracy else "sample")
    return [
        f"The difference of {scale * difference:.2g}{unit} between {what} is below the noise of "
        f"{samples} (two standard errors: {scale * noise:.2g}{unit if scale > 1 else ''}): it does "
        f"not say which is better."
    ]

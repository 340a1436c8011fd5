"""Hand-made rules: overall targets, clipping, one threshold for the whole network."""

from __future__ import annotations

import math

import pytest
import torch

from amc_compress.learners.sparsification import Pattern
from amc_compress.learners.sparsification.protocols import PROTOCOLS, plan_for
from amc_env.errors import InfeasibleBudgetError
from amc_env.plan import Decision, DecisionKind

SIZES = {"first": 432, "second": 2304, "third": 9216, "fourth": 36864, "last": 640}


def decisions(pattern: str = "unstructured", least: float = 0.02, sizes=SIZES) -> list[Decision]:
    counts = {n: Pattern.parse(pattern).counts(s, least) for n, s in sizes.items()}
    return [
        Decision(n, DecisionKind.DENSITY, tuple(k / sizes[n] for k in counts[n]), sizes[n])
        for n in sizes
    ]


def scores(sizes=SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, generator=generator).abs() / (1 + i)
        for i, size in enumerate(sizes.values())
    ]


def counts(plan, made) -> dict[str, int]:
    return {d.target: d.units(v) for d, v in zip(made, plan.values_for(made), strict=True)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.25, 0.1, 0.05, 0.0201])
def test_the_overall_target_is_met_from_below_up_to_the_grid(protocol, density):
    made = decisions()
    kept = counts(plan_for(protocol, density, made, 0, scores), made)
    total = math.floor(density * sum(SIZES.values()))
    assert total - 185 < sum(kept.values()) <= total  # half a percent of the largest layer
    assert all(kept[d.target] >= 0.02 * d.size - 1 for d in made)


def test_uniform_is_the_same_density_everywhere():
    made = decisions()
    plan = plan_for("uniform", 0.3, made, 0, scores)
    assert all(abs(v - 0.3) <= 0.012 for v in plan.values())


def test_the_heuristic_is_the_published_formula_where_nothing_is_clipped():
    made = decisions()
    sparsity = 0.5
    weights = sum(SIZES.values())
    alpha = sparsity * weights / sum(n * math.log(n) for n in SIZES.values())
    plan = plan_for("heuristic", 1 - sparsity, made, 0, scores)
    for d, value in zip(made, plan.values_for(made), strict=True):
        assert 1 - value == pytest.approx(alpha * math.log(d.size), abs=0.012)


def test_the_heuristic_empties_no_layer_and_what_is_clipped_others_take():
    """Unclipped, the largest layer would lose 105% of its weights here."""
    made = decisions(least=0.05)
    weights = sum(SIZES.values())
    alpha = 0.9 * weights / sum(n * math.log(n) for n in SIZES.values())
    assert alpha * math.log(36864) > 0.9
    kept = counts(plan_for("heuristic", 0.07, made, 0, scores), made)
    assert kept["fourth"] == round(0.05 * 36864)
    assert sum(kept.values()) == pytest.approx(0.07 * weights, abs=185)
    assert kept["first"] / 432 > kept["third"] / 9216


@pytest.mark.parametrize("protocol", ["global", "normalised"])
def test_global_is_one_threshold_over_the_magnitudes_of_all_layers(protocol):
    made, values = decisions(least=0.001), scores()
    if protocol == "normalised":
        values = [v / v.square().mean().sqrt() for v in values]
    ordered = torch.cat(values).sort(descending=True).values
    threshold = ordered[round(0.2 * len(ordered)) - 1]
    kept = counts(plan_for(protocol, 0.2, made, 0, scores), made)
    for d, v in zip(made, values, strict=True):
        expected = int((v >= threshold).sum())
        assert kept[d.target] == pytest.approx(expected, abs=0.01 * d.size + 1)
    spread = max(kept[n] / s for n, s in SIZES.items()) / min(kept[n] / s for n, s in SIZES.items())
    assert spread > 3 if protocol == "global" else spread < 1.5


def test_weights_without_a_decision_count_as_kept():
    made = decisions()
    dense = 10_000
    kept = counts(plan_for("uniform", 0.4, made, dense, scores), made)
    total = math.floor(0.4 * (sum(SIZES.values()) + dense))
    assert total - 185 < sum(kept.values()) + dense <= total


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_coarse_grids_are_met_as_nearly_as_they_can(protocol):
    made = decisions("2:4", sizes={"a": 64, "b": 128, "c": 256})
    values = lambda: scores({"a": 64, "b": 128, "c": 256})  # noqa: E731
    kept = counts(plan_for(protocol, 0.75, made, 0, values), made)
    assert sum(kept.values()) <= 336
    assert sum(kept.values()) > 336 - 64
    assert counts(plan_for(protocol, 0.5, made, 0, values), made) == {"a": 32, "b": 64, "c": 128}


@pytest.mark.parametrize("density", [0.0, 0.01, 1.1, float("nan"), -1.0])
def test_what_cannot_be_reached_is_rejected_with_the_range(density):
    with pytest.raises(InfeasibleBudgetError, match=r"from 0\.0[0-9]+ .* to 1"):
        plan_for("uniform", density, decisions(), 100, scores)


def test_unknown_protocols_are_rejected():
    with pytest.raises(ValueError, match="uniform"):
        plan_for("optimal", 0.5, decisions(), 0, scores)


def test_equal_magnitudes_are_split_between_layers():
    """Half of the weights are zero already: a threshold would keep all of these, or none."""
    weights = [torch.cat([torch.zeros(500), torch.rand(500) + 0.1]) for _ in range(2)]
    grid = tuple((k + 1) / 200 for k in range(200))
    decisions = [Decision(f"l{i}", DecisionKind.DENSITY, grid, 1000) for i in range(2)]
    for density in (0.4, 0.8):
        plan = plan_for("global", density, decisions, 0, lambda: weights)
        assert list(dict(plan).values()) == pytest.approx([density] * 2, abs=0.03)
        assert sum(dict(plan).values()) / 2 == pytest.approx(density, abs=0.005)

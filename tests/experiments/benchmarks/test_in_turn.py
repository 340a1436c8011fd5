"""Kinds of decisions one after the other, as an agent."""

from __future__ import annotations

import gymnasium as gym
import pytest

from amc_compress.agents.base import unwrap
from amc_compress.benchmarks.agents.in_turn import InTurn
from amc_env import CompressionEnv
from amc_env.kinds import Quantity


@pytest.fixture(scope="module")
def joint() -> CompressionEnv:
    return unwrap(gym.make("amc_env:amc/resnet20-joint-recorded-v0", disable_env_checker=True))


@pytest.mark.parametrize("agent", ["evopress", "gradient"])
def test_a_kind_alone_leaves_the_others_as_in_the_uniform_plan(
    joint: CompressionEnv, agent: str
) -> None:
    uniform = joint.uniform_plan()
    result = InTurn(kinds="width", agent=agent).search(joint, 12, seed=0)
    assert 1 < len(result.trials) <= 12
    assert all(trial.within_budget for trial in result.trials)
    for decision in joint.decisions:
        if decision.kind.quantity is not Quantity.WIDTH:
            assert {trial.plan[decision.key] for trial in result.trials} == {uniform[decision.key]}
    assert len({trial.plan for trial in result.trials}) == len(result.trials)


def test_two_kinds_share_the_evaluations(joint: CompressionEnv) -> None:
    result = InTurn(kinds="width+weight_bits").search(joint, 21, seed=0)
    first, second = result.trials[1:11], result.trials[11:]
    most = {d.key: d.choices[-1] for d in joint.decisions if d.kind.quantity != Quantity.WIDTH}
    assert most.items() <= dict(first[0].plan).items()
    best = max(first, key=lambda trial: trial.score)
    for decision in joint.decisions:
        if decision.kind.quantity is Quantity.WIDTH:
            assert {t.plan[decision.key] for t in second} == {best.plan[decision.key]}
    assert joint.budget.is_met(joint.cost_ratio(result.plan))


def test_kinds_that_are_none_are_rejected() -> None:
    with pytest.raises(ValueError, match="did you mean 'width'"):
        InTurn(kinds="widht")

"""Searches whose plans are evaluated in stages: what is spent, and that nothing else decides."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from amc_compress import compress
from amc_compress.agents import make_agent
from amc_compress.evaluations.where import Where
from amc_compress.learners import ChannelPruning
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model
from amc_compress.runs.storage.trials import TrialRecorder
from amc_env import CompressionEnv, CompressionPlan
from amc_env.errors import ArgumentError
from amc_env.recorded_tasks.synthetic import SyntheticLearner
from amc_env.scores.evaluations import Evaluation, InProcess
from amc_env.scores.stages import GROUPS, Measured, Race, Stages, group_end

SAMPLES = 640


class Noisy(SyntheticLearner):
    """Scores of samples that differ, those of one plan as those of another."""

    def evaluate_in_stages(
        self, plan: CompressionPlan, stages: Stages, race: Race | None
    ) -> Measured:
        own = np.random.default_rng(zlib.crc32(plan.to_json().encode())).normal(0.0, 0.02, GROUPS)
        common = np.random.default_rng(0).normal(0.0, 0.1, GROUPS)
        groups = self.evaluate(plan) + common - common.mean() + own - own.mean()
        for stage, end in enumerate(stages.ends(SAMPLES), start=1):
            seen = tuple(groups[: end * GROUPS // SAMPLES])
            if end < SAMPLES and race is not None and race.is_lost(seen, stages.risk):
                return Measured(race.estimate(seen), end / SAMPLES, end, stage)
        return Measured(self.evaluate(plan), 1.0, SAMPLES, len(stages.shares), tuple(groups))


def searched(agent: str, *, workers: int = 1, known: Any = (), **options: Any) -> Any:
    learner = Noisy(n_layers=6)
    with Where(workers).evaluations(learner, Stages()) as service:
        env = CompressionEnv(learner, "macs=0.5", evaluations=service)
        for evaluation in known:
            env.scores.add(evaluation)
        return make_agent(agent).search(env, 14, 0, **options)


def seen(result: Any) -> list[Any]:
    return [(trial.plan, trial.score, trial.measured) for trial in result.trials]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("agent", "parallel"),
    [
        ("local", 1),
        ("evopress", 3),
        ("ddpg-one-shot", 3),
        pytest.param("ddpg-one-shot", 1, marks=SLOW),
        *(pytest.param(name, 2, marks=SLOW) for name in ("ddpg", "tpe", "cmaes", "evolution")),
    ],
)
def test_evaluations_count_with_the_share_of_their_samples(agent: str, parallel: int) -> None:
    result = searched(agent, parallel=parallel)
    spent = sum(trial.share for trial in result.trials)
    assert 13.0 - parallel < spent <= 14.0
    assert len(result.trials) > 14
    stopped = [trial for trial in result.trials if trial.share < 1.0]
    best = result.trials[0].score
    for trial in result.trials:
        if trial.share < 1.0:
            assert trial.score < best
        elif trial.within_budget:
            best = max(best, trial.score)
    assert stopped
    assert result.best_trial.share == 1.0
    assert all(result.trials[episode].share == 1.0 for episode in result.finalist_rewards)


@SLOW
def test_the_number_of_workers_changes_nothing() -> None:
    one = searched("local", parallel=3)
    assert seen(searched("local", parallel=3, workers=2)) == seen(one)


def test_what_is_remembered_changes_nothing() -> None:
    one = searched("local", parallel=3)
    # A search that was interrupted remembers plans that it has not come to again.
    known = [Evaluation(t.plan, t.score, measured=t.measured) for t in one.trials[:9]]
    assert seen(searched("local", parallel=3, known=known)) == seen(one)


def test_a_learner_without_stages_is_said() -> None:
    learner = SyntheticLearner(n_layers=3)
    env = CompressionEnv(learner, "macs=0.5", evaluations=InProcess(learner, Stages()))
    with pytest.raises(ArgumentError, match="evaluate_in_stages, got SyntheticLearner"):
        env.evaluate(env.uniform_plan())


@pytest.fixture(scope="module")
def learner() -> ChannelPruning:
    data = make_data(96, 2), make_data(256, 3)
    return ChannelPruning(make_model("plain"), EXAMPLE, *data, round_to=1, threads=1)


def test_on_all_samples_a_plan_has_its_score_and_before_that_of_the_first_ones(
    learner: ChannelPruning,
) -> None:
    env = CompressionEnv(learner, "macs=0.6")
    stages, plan = Stages(), env.uniform_plan()
    whole = learner.evaluate_in_stages(plan, stages, None)
    assert (whole.score, whole.share, whole.samples) == (learner.evaluate(plan), 1.0, 256)
    assert np.mean(np.array(whole.groups, dtype=float)) == pytest.approx(whole.score)
    assert learner.evaluate_in_stages(plan, stages, Race(whole.score, whole.groups)) == whole
    best = Race(1.0, (1.0,) * GROUPS)
    lost = learner.evaluate_in_stages(env.project([0.0] * env.n_decisions), stages, best)
    assert lost.stage < 3
    assert lost.groups == ()
    first = lost.samples * GROUPS // 256
    worst = learner.evaluate_in_stages(env.project([0.0] * env.n_decisions), stages, None)
    assert group_end(first, 256) <= lost.samples < 256
    assert lost.score == pytest.approx(np.mean(np.array(worst.groups[:first], dtype=float)))


def blocks(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 20, (64, 6), generator=generator).split(16))


def trials_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]


def test_a_run_in_stages_is_recorded_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 20))
    options: dict[str, Any] = {
        "task": "token-distribution", "budget": "macs=0.7", "agent": "local", "evaluations": 6,
        "round_to": 1, "staged": True, "quiet": True,
    }  # fmt: skip
    result = compress(network, blocks(0), blocks(1), out=tmp_path / "run", **options)
    rows = trials_of(tmp_path / "run")
    spent = sum(row["share"] for row in rows)
    assert len(rows) > 6 >= spent
    assert {row["samples"] for row in rows} <= {8, 16, 32, 64}
    assert all(len(row["groups"]) == (64 if row["share"] == 1.0 else 0) for row in rows)
    told = json.loads((tmp_path / "run" / "state.json").read_text())["stages"]["search"]["staged"]
    assert told["evaluations"] == pytest.approx(spent, abs=1e-3)
    assert sum(told["ended_at"].values()) == len(rows)

    append, left = TrialRecorder._append, iter(range(5))

    def interrupted(recorder: TrialRecorder, trial: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        append(recorder, trial)

    with monkeypatch.context() as patched:
        patched.setattr(TrialRecorder, "_append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(network, blocks(0), blocks(1), out=tmp_path / "cut", **options)
    again = compress(network, blocks(0), blocks(1), out=tmp_path / "cut", resume=True, **options)
    assert (again.plan, again.score) == (result.plan, result.score)
    times = {"seconds": 0.0, "cpu_seconds": 0.0}
    assert [row | times for row in trials_of(tmp_path / "cut")] == [row | times for row in rows]


@pytest.mark.parametrize(
    ("other", "value"), [("max_drop", "1%"), ("progressive", 3), ("reward", "accuracy_size")]
)
def test_what_does_not_compare_scores_is_rejected(other: str, value: Any) -> None:
    with pytest.raises(ValueError, match="Expected staged or"):
        compress(
            nn.Linear(2, 2), [], [], budget="macs=0.5", staged=True, quiet=True, **{other: value}
        )

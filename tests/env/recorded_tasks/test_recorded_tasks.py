"""Recorded tasks: the shipped file, the environment on it, and files that are none."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from amc_compress.agents import make_agent
from amc_env import TASKS, CompressionEnv, CompressionError, CompressionPlan
from amc_env.recorded_tasks.recorded import RecordedLearner, make_recorded, recorded_names
from amc_env.recorded_tasks.recorded_file import RecordedTask, read_recorded, write_recorded
from amc_env.recorded_tasks.surrogate import Surrogate, SurrogateSettings
from amc_env.recorded_tasks.synthetic import SyntheticLearner

DIGITS = "amc_env:amc/digits-channels-recorded-v0"
RECORDED = [name for name in TASKS if "-recorded-" in name]


def small_task(n_plans=50, n_layers=4, round_to=4, **changes):
    """A record of random plans of a chain, with random weights."""
    rng = np.random.default_rng(0)
    learner = SyntheticLearner(n_layers, round_to=round_to)
    grids = [np.array(d.choices) for d in learner.decisions]
    plans = np.stack([rng.integers(len(grid), size=n_plans) for grid in grids], axis=1)
    settings = SurrogateSettings(
        tuple(tuple(np.log(grid) / 0.7) for grid in grids), 0.8, 0.05, 1.7, "log-odds", 0.3, 0.9
    )
    facts = {
        "name": "chain",
        "origin": "random numbers",
        "budget": "macs=0.5",
        "original_score": 0.92,
        "graph": learner.graph,
        "decisions": learner.decisions,
        "storage": None,
        "surrogate": Surrogate(settings, plans, rng.standard_normal(n_plans)),
        "scores": (rng.integers(3000, size=n_plans) / 3000).astype(np.float32),
        "sources": (np.arange(n_plans) % 2).astype(np.uint8),
        "source_names": ("even", "odd"),
        "cost_range": {"macs": (0.1, 0.48), "params": (0.1, 0.6)},
    }
    return RecordedTask(**facts | changes)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "chain.npz"
    path.write_bytes(write_recorded(small_task()))
    return path


# -- predictions ---------------------------------------------------------------------------------


def test_predictions_are_those_of_the_formula_written_out():
    surrogate = small_task().surrogate
    s = surrogate.settings
    rng = np.random.default_rng(1)
    for _ in range(20):
        plan = [int(rng.integers(len(row))) for row in s.coordinates]
        total = 0.0
        for other, weight in zip(surrogate.plans, surrogate.weights, strict=True):
            gaps = [s.coordinates[i][c] - s.coordinates[i][other[i]] for i, c in enumerate(plan)]
            d = np.sqrt(5.0 * sum(gap * gap for gap in gaps))
            differing = sum(int(c != o) for c, o in zip(plan, other, strict=True))
            smooth = s.amplitude * (1 + d + d * d / 3) * np.exp(-d)
            total += weight * (smooth + s.rough_amplitude * np.exp(-differing / s.rough_length))
        odds = np.exp(s.offset + s.scale * total)
        expected = np.clip(1.01 * odds / (1 + odds) - 0.005, 0.0, 1.0)
        assert surrogate.predict(plan) == pytest.approx(expected, abs=1e-6)


def test_equal_plans_get_equal_numbers_in_any_order_from_any_copy(path):
    env = make_recorded(str(path))
    rng = np.random.default_rng(0)
    plans = [env.decode(rng.random(env.n_decisions)) for _ in range(40)]
    first = [env.learner.evaluate(plan) for plan in plans]
    copies = [RecordedLearner.load(path), pickle.loads(pickle.dumps(env)).learner]
    for learner in copies:
        backwards = [learner.evaluate(plan) for plan in reversed(plans)]
        assert backwards[::-1] == first
    assert all(0.0 <= accuracy <= 1.0 for accuracy in first)
    assert len(set(first)) > 10


@pytest.mark.parametrize("offset", [-50.0, 50.0])
def test_predictions_are_clipped(offset):
    surrogate = small_task().surrogate
    settings = dataclasses.replace(surrogate.settings, target="accuracy", offset=offset)
    clipped = Surrogate(settings, surrogate.plans, surrogate.weights).predict([0, 0, 0, 0])
    assert clipped == (0.0 if offset < 0 else 1.0)


# -- the shipped task ----------------------------------------------------------------------------


def test_the_digits_come_recorded_and_pass_the_checker():
    env = gym.make(DIGITS)
    check_env(env.unwrapped)
    assert str(env.unwrapped.budget) == "macs=0.3"
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.decisions == env.unwrapped.decisions


def test_a_recorded_task_has_the_facts_and_costs_of_the_task_it_was_recorded_from():
    env = gym.make(DIGITS).unwrapped
    real = gym.make("amc_env:amc/digits-channels-v0").unwrapped
    assert env.decisions == real.decisions
    assert env.graph == real.graph
    assert env.learner.original_score == real.learner.original_score
    assert env.uniform_plan() == real.uniform_plan()
    assert env.cost_ratio(env.uniform_plan()) == real.cost_ratio(real.uniform_plan())
    np.testing.assert_array_equal(env.reset()[0], real.reset()[0])
    real_curves = real.learner.layer_errors()
    for key, curve in env.learner.layer_errors().items():
        np.testing.assert_allclose(curve, real_curves[key], rtol=1e-4, atol=1e-6)


def test_recorded_accuracies_of_the_digits_are_what_the_network_is_found_to_have():
    task = gym.make(DIGITS).unwrapped.learner.task
    assert task.counts()["latin hypercube"] == 2000
    real = gym.make("amc_env:amc/digits-channels-v0").unwrapped
    for i in (0, 1000, len(task.plans) - 1):
        plan = CompressionPlan.from_choices(real.decisions, task.plans[i])
        evaluated = real.evaluate(plan)
        assert evaluated.feasible
        # One image of 359: other processors round differently.
        assert evaluated.score == pytest.approx(task.scores[i], abs=1.01 / 359)


@pytest.mark.parametrize(("agent", "source"), [("local", "local"), ("random", "random")])
def test_agents_search_the_recorded_digits(agent, source):
    env = gym.make(DIGITS)
    one, two = (make_agent(agent).search(env, 300, seed=3) for _ in range(2))
    assert len(one.trials) == 300
    assert [t.reward for t in one.trials] == [t.reward for t in two.trials]
    assert one.finalist_rewards == {}
    assert one.trials[-1].source == source
    assert all(env.unwrapped.budget.is_met(t.cost_ratio) for t in one.trials)
    uniform = env.unwrapped.evaluate(env.unwrapped.uniform_plan()).reward
    assert one.reward > uniform + (0.01 if agent == "local" else -0.05)


def test_the_figures_of_the_digits_are_in_the_file():
    quality = gym.make(DIGITS).unwrapped.learner.task.quality
    held_out = quality["cross_validation"]["surrogate"]
    assert held_out["all"]["spearman"] > 0.97
    assert held_out["top"]["rmse"] < 0.03
    assert quality["winners"]["judged"] == pytest.approx(quality["winners"]["predicted"], abs=0.01)


@pytest.mark.parametrize("name", recorded_names())
def test_every_record_in_the_package_is_large_and_plays(name):
    env = gym.make(f"amc_env:amc/{name}-recorded-v0").unwrapped
    task = env.learner.task
    is_accuracy = task.metric.is_accuracy
    assert len(task.plans) >= (2000 if is_accuracy else 200)
    assert len(np.unique(task.plans, axis=0)) == len(task.plans)
    searched = {"local", "ddpg-one-shot"} if is_accuracy else set()
    assert set(task.counts()) >= {"latin hypercube", "refinement"} | searched
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(env.n_decisions):
        step = env.step(rng.random(1, dtype=np.float32))
    assert step[2]
    assert 0.0 < step[1] <= 1.0 if is_accuracy else step[1] < task.metric.best_score
    assert env.budget.is_met(env.cost_ratio(CompressionPlan(step[4]["plan"])))
    # The surrogate is no more than a few points off where it was fitted, or a tenth of a loss.
    rows = rng.choice(len(task.plans), 200, replace=False)
    predicted = np.array([task.surrogate.predict(task.plans[row].tolist()) for row in rows])
    off = predicted - task.scores[rows] if is_accuracy else np.log(predicted / task.scores[rows])
    assert np.sqrt(np.mean(off**2)) < (0.03 if is_accuracy else 0.1)


def test_neither_torch_nor_scikit_learn_is_needed():
    code = (
        "import sys, gymnasium\n"
        f"env = gymnasium.make({DIGITS!r}, disable_env_checker=True)\n"
        "env.reset()\n"
        "for _ in range(env.unwrapped.n_decisions):\n"
        "    step = env.step(env.action_space.sample())\n"
        "assert step[2] and step[1] > 0.0\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'experiments', 'learners', 'agents'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("task", RECORDED)
def test_a_recorded_task_loads_or_says_how_to_record_it(task):
    name = TASKS[task][1]["task"]
    if name in recorded_names():
        assert gym.make(f"amc_env:{task}").unwrapped.learner.task.name == name
    else:
        with pytest.raises(
            CompressionError, match=rf"No recorded task '{name}' .*recorded_tasks.md"
        ):
            gym.make(f"amc_env:{task}")


# -- options -------------------------------------------------------------------------------------


def test_options_arrive(path):
    env = make_recorded(str(path), "macs=0.4", "interval", "error_log_macs", "ansi")
    assert str(env.budget) == "macs=0.4"
    assert env.render_mode == "ansi"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("macs=0.6", r"macs up to 0.6, recorded 0.1 to 0.5\. Record"),
        ("macs=0.09", r"macs up to 0.09"),
        ("params=0.4", r"macs without a bound"),
        ("macs=0.5,params=0.7", r"params up to 0.7, recorded 0.1 to 0.6\. Record"),
    ],
)
def test_a_budget_outside_of_the_record_is_a_warning(path, budget, said):
    with pytest.warns(UserWarning, match=f"the surrogate extrapolates: {said}"):
        env = make_recorded(str(path), budget)
    assert str(env.budget) == str(CompressionEnv(SyntheticLearner(4), budget).budget)


@pytest.mark.parametrize("budget", [None, "macs=0.5", "macs=0.2", "macs=0.3,params=0.5,bytes=0.5"])
def test_a_budget_within_the_record_is_none(path, budget):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_recorded(str(path), budget)


def test_curves_are_there_only_if_they_were_recorded(path):
    learner = RecordedLearner.load(path)
    for name in ("layer_errors", "gradient_scores", "evaluate_full"):
        assert not hasattr(learner, name)
    curves = {d.key: [1.0 / (i + 1) for i in range(len(d.choices))] for d in learner.decisions}
    learner = RecordedLearner(small_task(curves={"gradient_scores": curves}))
    assert not hasattr(learner, "layer_errors")
    found = pickle.loads(pickle.dumps(learner)).gradient_scores()
    assert {key: curve.tolist() for key, curve in found.items()} == curves


# -- files ---------------------------------------------------------------------------------------


def test_a_large_record_is_a_small_file():
    content = write_recorded(small_task(n_plans=8000, n_layers=12))
    assert 50_000 < len(content) < 200_000


def test_grids_of_more_than_256_choices_fit(tmp_path):
    task = small_task(n_plans=2000, n_layers=40, round_to=1)
    largest = max(len(d.choices) for d in task.decisions)
    assert largest == 64
    wide = dataclasses.replace(task.decisions[0], choices=tuple((i + 1) / 300 for i in range(300)))
    rows = task.surrogate.settings.coordinates
    settings = dataclasses.replace(
        task.surrogate.settings, coordinates=(tuple(float(i) for i in range(300)), *rows[1:])
    )
    plans = task.plans.copy()
    plans[:, 0] = np.arange(2000) % 300
    task = dataclasses.replace(
        task,
        decisions=(wide, *task.decisions[1:]),
        surrogate=Surrogate(settings, plans, task.surrogate.weights),
    )
    path = tmp_path / "wide.npz"
    path.write_bytes(write_recorded(task))
    np.testing.assert_array_equal(read_recorded(path).plans, plans)


def rewritten(path, change=None, **arrays):
    """Writes the file again with other facts or arrays."""
    with np.load(path) as archive:
        parts = {name: archive[name] for name in archive.files}
    facts = json.loads(parts["facts"].tobytes())
    if change is not None:
        change(facts)
    parts["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez(path, **parts | arrays)
    return path


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(CompressionError, match=r"no recorded task at .*gone.npz .*record it first"):
        make_recorded(str(tmp_path / "gone.npz"))


def test_another_version_is_rejected(path):
    rewritten(path, lambda facts: facts.update(version=2))
    with pytest.raises(CompressionError, match=r"version 1 in .*, got version 2; read it with"):
        make_recorded(str(path))


def test_another_format_is_rejected(path):
    rewritten(path, lambda facts: facts.update(format="picture"))
    with pytest.raises(CompressionError, match=r"format 'amc-recorded-task'\), got 'picture'"):
        make_recorded(str(path))


@pytest.mark.parametrize("size", [0, 10, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_rejected(path, size):
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content)) if size < 1 else size])
    with pytest.raises(CompressionError, match=r"something else or a file cut short .*; restore"):
        make_recorded(str(path))


def test_a_file_with_damaged_bytes_is_rejected(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(CompressionError, match=r"something else or a file cut short .*; restore"):
        make_recorded(str(path))


def test_pickled_arrays_are_not_run(path):
    rewritten(path, plans=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CompressionError, match="something else or a file cut short"):
        make_recorded(str(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.pop("original_score"),
        lambda f: f.update(original_score=7.0),
        lambda f: f["surrogate"].update(target="cube"),
        lambda f: f["surrogate"].update(amplitude=float("nan")),
        lambda f: f["surrogate"].update(rough_length=0.0),
        lambda f: f["surrogate"]["coordinates"].pop(),
        lambda f: f["surrogate"]["coordinates"][0].append(9.0),
        lambda f: f["plans"].pop("odd"),
        lambda f: f.update(cost_range={"macs": [0.1]}),
        lambda f: f.update(curves={"layer_errors": {}}),
        lambda f: f.update(curves={"layer_errors": 3}),
    ],
)
def test_damaged_facts_are_rejected(path, change):
    rewritten(path, change)
    with pytest.raises(CompressionError, match=r"is damaged \(.*\); restore the file, or record"):
        make_recorded(str(path))


@pytest.mark.parametrize(
    "arrays",
    [
        {"plans": np.zeros((50, 3), np.uint8)},
        {"plans": np.full((50, 4), 200, np.uint8)},
        {"plans": np.zeros((49, 4), np.uint8)},
        {"weights": np.full(50, np.nan)},
        {"weights": np.zeros(49)},
        {"scores": np.zeros(49, np.float32)},
        {"sources": np.full(50, 2, np.uint8)},
    ],
)
def test_damaged_arrays_are_rejected(path, arrays):
    rewritten(path, **arrays)
    with pytest.raises(CompressionError, match=r"is damaged \(.*\); restore the file, or record"):
        make_recorded(str(path))

"""Arguments of wrong types are one sentence, whichever public function gets them."""

import inspect
import math

import numpy as np
import pytest
from gymnasium.error import InvalidAction

import amc_compress.agents as agents
import amc_compress.learners as learners
import amc_env
from amc_compress.agents import AGENTS, Exploration, OnePolicy, Recipe, Seeded, make_agent
from amc_compress.learners import TrainingConfig
from amc_env import (
    Budget,
    ChannelGroup,
    CompressionEnv,
    CompressionError,
    CompressionPlan,
    Decision,
    LayerGraph,
    LayerSpec,
    OneShotEnv,
    StorageFormat,
    Width,
    keep_ratio_decision,
    make_cost,
)
from amc_env.recorded_tasks.synthetic import (
    SyntheticBitsLearner,
    SyntheticDensityLearner,
    SyntheticLearner,
    make_synthetic,
)
from amc_env.validation.checks import checked

LEARNER = SyntheticLearner(3)
ENV = CompressionEnv(LEARNER, "macs=0.5")
PLAN = ENV.uniform_plan()

BAD = (
    None, "", "three", [], ["a"], {}, {"a": "b"}, math.nan, math.inf, True, -1, 1.5, 2**64, 2**300,
    object(), b"x", np.array([1, 2]), np.float64("nan"), print, (1, "a"), -(2.0**80), set(),
)  # fmt: skip

TARGETS = {
    "Width": (Width, {"fixed": 3, "terms": (("a", 1),)}),
    "ChannelGroup": (
        ChannelGroup, {"name": "a", "size": 4, "producers": ("a",), "consumers": ("b",)},
    ),
    "LayerSpec": (
        LayerSpec, {"name": "a", "kind": "conv", "in_width": Width(3), "out_width": Width(3)},
    ),
    "LayerGraph": (LayerGraph, {"layers": (), "groups": ()}),
    "Decision": (
        Decision,
        {"target": "a", "kind": amc_env.DecisionKind.DENSITY, "choices": (0.5, 1.0), "size": 4},
    ),
    "keep_ratio_decision": (
        keep_ratio_decision, {"group": "a", "size": 16, "round_to": 4, "min_ratio": 0.1},
    ),
    "StorageFormat": (StorageFormat, {"bucket_size": 4, "weight_bits": {"a": 4}, "codebook": True}),
    "make_cost": (
        make_cost, {"name": "macs", "graph": LEARNER.graph, "decisions": LEARNER.decisions},
    ),
    "CompressionPlan": (CompressionPlan, {"values": {"a:density": 0.5}}),
    "Budget.parse": (Budget.parse, {"text": "macs=0.5"}),
    "Budget.of": (Budget.of, {"budget": "macs=0.5"}),
    "Budget": (Budget, {"macs": 0.5, "bytes": (0.1, 0.3)}),
    "CompressionEnv": (
        CompressionEnv,
        {
            "learner": LEARNER, "budget": "macs=0.5", "action": "centred", "reward": "accuracy",
            "cost_models": {}, "render_mode": None,
        },
    ),
    "OneShotEnv": (OneShotEnv, {"env": ENV}),
    "set_budget": (ENV.set_budget, {"budget": "macs=0.5"}),
    "reset": (ENV.reset, {"seed": 1, "options": {}}),
    "evaluate": (ENV.evaluate, {"plan": PLAN}),
    "outcome": (ENV.outcome, {"plan": PLAN, "score": 0.5}),
    "remember": (ENV.remember, {"plan": PLAN, "score": 0.5}),
    "cost_ratio": (ENV.cost_ratio, {"plan": PLAN}),
    "encode": (ENV.encode, {"plan": PLAN}),
    "trajectory": (ENV.trajectory, {"plan": PLAN}),
    "decode": (ENV.decode, {"actions": [0.5] * 3}),
    "project": (ENV.project, {"values": [0.5] * 3}),
    "values_for": (PLAN.values_for, {"decisions": ENV.decisions}),
    "from_json": (CompressionPlan.from_json, {"text": PLAN.to_json()}),
    "SyntheticLearner": (SyntheticLearner, {"n_layers": 3, "seed": 0, "round_to": 4}),
    "SyntheticBitsLearner": (
        SyntheticBitsLearner, {"n_layers": 3, "channels": True, "bits": (2, 4)},
    ),
    "SyntheticDensityLearner": (SyntheticDensityLearner, {"n_layers": 3, "step": 0.1}),
    "make_synthetic": (make_synthetic, {"n_layers": 3, "seed": 0, "action": "centred"}),
    "make_agent": (make_agent, {"name": "random", "finalists": 0}),
    "agent_from_label": (agents.agent_from_label, {"label": "random", "prefix": ""}),
    "is_deterministic": (agents.is_deterministic, {"label": "random"}),
    "Recipe": (Recipe, {"hidden": 8, "tau": 0.1, "credit": "broadcast", "one_shot": True}),
    "Exploration": (Exploration, {"warmup_episodes": 2, "sigma": 0.1, "warmup": "random"}),
    "OnePolicy": (OnePolicy, {"between": 0.5}),
    "Seeded": (Seeded, {"first": make_agent("random"), "then": make_agent("local"), "name": ""}),
    "Agent.search": (
        make_agent("uniform").search,
        {"env": ENV, "episodes": 1, "seed": 0, "warm_start": (), "progress": False},
    ),
    "TrainingConfig": (
        TrainingConfig,
        {"epochs": 3, "optimizer": "sgd", "learning_rate": 0.1, "nesterov": True, "seed": 1},
    ),
    **{
        f"agent {name}": (
            factory,
            {
                key: p.default
                for key, p in inspect.signature(factory).parameters.items()
                if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            },
        )
        for name, factory in AGENTS.items()
    },
}  # fmt: skip


def failure(function, arguments):
    """The error that a user may act on, None if there is none; others are not caught."""
    try:
        function(**arguments)
    except (ValueError, CompressionError) as error:
        return error
    return None


@pytest.mark.parametrize("name", TARGETS)
def test_wrong_types_are_one_sentence_about_the_parameter(name):
    function, good = TARGETS[name]
    function(**good)
    for key, bad in ((key, bad) for key in good for bad in BAD):
        error = failure(function, {**good, key: bad})
        if error is None:
            continue
        text = str(error)
        about = any(word in text for word in ("Expected", key, repr(bad)[:8], "decides"))
        inner = any(word in text for word in ("NoneType", "numpy.", "ufunc", "\n"))
        assert about and not inner, (key, bad, text)  # noqa: PT018 - one message for both


@pytest.mark.parametrize(
    "bad", [None, "a", [0.1], [math.nan] * 3, [math.inf] * 3, [True] * 3, [[0.1] * 3], ["0.5"] * 3]
)
def test_vectors_are_checked(bad):
    for function in (ENV.decode, ENV.project):
        with pytest.raises(ValueError, match=r"Expected 3 (actions|values)"):
            function(bad)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        ENV.decode([0.5, 0.5, 1.5])
    ENV.reset()
    for action in ([math.nan], [math.inf], [True], "a", None, [0.1, 0.2], 0.5, [[0.5]], ["0.5"]):
        with pytest.raises(InvalidAction, match="one number"):
            ENV.step(action)


def test_numpy_scalars_are_numbers():
    learner = SyntheticLearner(np.int64(3), np.uint8(2), np.int32(4), np.float32(0.1))
    env = CompressionEnv(learner, Budget(macs=np.float64(0.5)))
    result = make_agent("random", finalists=np.int8(0)).search(env, np.int64(2), np.uint64(5))
    assert type(result.seed) is int
    assert len(result.trials) == 2
    assert type(TrainingConfig(epochs=np.int64(3)).epochs) is int
    assert keep_ratio_decision("a", np.int64(16), np.int64(4)).choices[-1] == 1.0


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 1.5, True, "1", None, math.nan])
def test_bad_seeds_are_named(seed):
    for agent in ("random", "ddpg", "tpe"):
        with pytest.raises(ValueError, match="Expected a seed, a whole number from 0 to"):
            make_agent(agent).search(ENV, 2, seed)
    with pytest.raises(ValueError, match="Expected a seed"):
        SyntheticLearner(3, seed)


@pytest.mark.parametrize("agent", ["random", "ddpg", "td3-one-shot", "tpe", "cmaes"])
def test_large_seeds_are_seeds(agent):
    trials = [make_agent(agent).search(ENV, 3, seed).trials for seed in (2**63 - 1, 2**63 - 1)]
    assert [t.plan for t in trials[0]] == [t.plan for t in trials[1]]


def test_every_learner_checks_its_constructor():
    found = [getattr(learners, name) for name in learners.__all__]
    classes = {c for c in found if inspect.isclass(c) and issubclass(c, learners.Learner)}
    for cls in classes - {learners.Learner}:
        with pytest.raises(ValueError, match=r"Expected|takes"):
            cls("a", "b", "c")


def test_annotations_decide():
    @checked
    def function(a: int, b: "float | None" = None, *rest: int, c: "Missing" = 0) -> None:  # noqa: F821
        """Takes anything for what it cannot read."""

    function(1, None, "x", c=object())
    function(np.int32(1), 2)
    for bad in ("1", 1.0, None, True):
        with pytest.raises(amc_env.ArgumentError, match="Expected a to be a whole number, got"):
            function(bad)
    with pytest.raises(amc_env.ArgumentError, match="function takes a, b, rest, c: "):
        function()

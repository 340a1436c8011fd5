"""What a learner decides is known without data, and is what a prepared one decides."""

import inspect
import pickle
from dataclasses import replace

import pytest

from amc_compress.learners import (
    ChannelPruning,
    CodebookQuantization,
    GroupLassoPruning,
    JointCompression,
    UniformQuantization,
    WeightSparsification,
    joint_compression,
    trace,
)
from amc_compress.learners.joint.options import JointOptions
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model
from amc_env import ArgumentError, PlanMismatchError
from amc_env.plan import CompressionPlan

CHEAP = {"n_calibration": 32, "n_recalibration": 32, "proxy": "none"}


def by_magnitude(group):
    return group.slots[0].values.abs().sum(1)


CASES = {
    "channels": (ChannelPruning, {"round_to": 4, "min_ratio": 0.3}),
    "group-lasso": (GroupLassoPruning, {"round_to": 4, "iterations": 2}),
    "sparse": (WeightSparsification, {"pattern": "block4", "ignore": ("head",)}),
    "uniform": (UniformQuantization, {"activation_bits": (4, 8), "symmetric": False}),
    "codebook": (CodebookQuantization, {"first_last_bits": None, "weight_bits": (2, 4)}),
}


@pytest.mark.parametrize("name", CASES)
def test_decisions_and_storage_are_known_without_data(name):
    kind, options = CASES[name]
    model = make_model("residual")
    space = kind.decide(trace(model, EXAMPLE), kind.Options(**options))
    learner = kind(model, EXAMPLE, make_data(32, 2), make_data(32, 3), **CHEAP, **options)
    assert space.decisions == learner.decisions
    if space.storage is not None:
        assert space.storage == replace(learner.storage, fixed_bytes=0.0)
        assert learner.storage.fixed_bytes > 0.0


def test_a_joint_learner_decides_what_its_parts_decide():
    model = make_model("residual")
    options = {
        "pruning": {"round_to": 8},
        "sparsification": {"pattern": "block4"},
        "quantization": {"weight_bits": (4, 8)},
    }
    space = JointCompression.decide(trace(model, EXAMPLE), JointOptions(**options))
    data = make_data(32, 2), make_data(32, 3)
    learner = joint_compression(model, EXAMPLE, *data, **CHEAP, **options)
    assert space.decisions == learner.decisions
    assert [part.name for part in learner.parts] == ["channels", "density", "bits"]
    with pytest.raises(PlanMismatchError):
        learner.evaluate_full(CompressionPlan({}))


def test_options_are_shown_checked_and_kept():
    shown = inspect.signature(GroupLassoPruning).parameters
    assert {"model", "validation", "iterations", "round_to", "threads"} <= set(shown)
    assert "options" not in shown
    with pytest.raises(ArgumentError, match=r"ChannelOptions takes .*round_to.*'rounds_to'"):
        ChannelPruning(make_model("plain"), EXAMPLE, [], [], rounds_to=4)
    with pytest.raises(ArgumentError, match=r"GroupLassoPruning takes model, .*iterations"):
        GroupLassoPruning()
    data = make_data(32, 2), make_data(32, 3)
    learner = ChannelPruning(
        make_model("plain"),
        EXAMPLE,
        *data,
        **CHEAP,
        train=iter(()),
        criterion=lambda g: by_magnitude(g),
    )
    twin = pickle.loads(pickle.dumps(learner))
    assert twin.options.round_to == 8
    assert twin.options.train is None

"""Gradient scores of every learner: what they promise, and against loops over images."""

from __future__ import annotations

import copy
import pickle
import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support.gradient_scores import DATA, X, Y, rows_of, shift_gradients, slow_rise
from support.selection import quick

from amc_compress.benchmarks.learners.fixed_decisions import FixedDecisions
from amc_compress.learners import (
    ChannelPruning,
    CodebookQuantization,
    UniformQuantization,
    joint_compression,
)
from amc_compress.learners.candidates.gradient_scores import weight_fisher
from amc_compress.learners.channel_pruning.remastered import RemasteredPruning
from amc_compress.learners.joint.learner import JointCompression
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.learners.testing.networks import NETWORKS, make_model
from amc_env import CompressionPlan, DecisionKind
from amc_env.errors import CompressionError
from amc_env.kinds import USUAL_KINDS

MAKERS = {
    "channels": lambda m: ChannelPruning(m, *DATA, precision="fp32", round_to=4),
    "channels, lasso": lambda m: RemasteredPruning(m, *DATA, precision="fp32", round_to=4),
    "channels, no repair": lambda m: ChannelPruning(
        m, *DATA, precision="fp32", round_to=4, proxy="none"
    ),
    "uniform bits": lambda m: UniformQuantization(
        m, *DATA, weight_bits=(2, 3, 4, 8, 16), activation_bits=(2, 4, 8, 16), precision="fp32"
    ),
    "codebook bits": lambda m: CodebookQuantization(
        m, *DATA, weight_bits=(2, 4, 16), init="quantile", precision="fp32"
    ),
    "densities": lambda m: WeightSparsification(m, *DATA, precision="fp32"),
    "densities, 2:4": lambda m: WeightSparsification(m, *DATA, pattern="2:4", precision="fp32"),
    "densities, blocks": lambda m: WeightSparsification(
        m, *DATA, pattern="block4", proxy="recalibration", precision="fp32"
    ),
    "joint": lambda m: joint_compression(
        m,
        *DATA,
        precision="fp32",
        pruning={"round_to": 4},
        sparsification={},
        quantization={"weight_bits": (2, 4, 16), "activation_bits": (3, 8, 16)},
    ),
}


@pytest.fixture(scope="module")
def prepared():
    """Returns copies of learners of the residual network, each prepared once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = pickle.dumps(MAKERS[name](make_model("residual").eval()))
        return pickle.loads(made[name])

    return get


@pytest.mark.parametrize("name", quick(MAKERS, "channels", "densities"))
def test_scores_have_a_number_per_choice_and_fall_to_zero(name, prepared):
    learner = prepared(name)
    scores = learner.gradient_scores()
    assert list(scores) == [d.key for d in learner.decisions]
    for d in learner.decisions:
        curve = scores[d.key]
        assert curve.shape == (len(d.choices),)
        assert curve.dtype == np.float64
        assert (np.diff(curve) <= 0.0).all()
        assert curve[0] > 0.0
        assert curve[-1] == 0.0


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_scores_of_channels_fall_to_zero_on_every_network(name):
    learner = MAKERS["channels"](make_model(name).eval())
    for curve in learner.gradient_scores().values():
        assert (np.diff(curve) <= 0.0).all()
        assert curve[0] > 0.0 == curve[-1]


@pytest.mark.parametrize("name", quick(MAKERS, "channels", "densities"))
def test_asking_for_scores_changes_nothing(name, prepared):
    learner, again = (prepared(name) for _ in range(2))
    rng = np.random.default_rng(0)
    plan = CompressionPlan({d.key: rng.choice(d.choices) for d in learner.decisions})
    owner = learner.parts[0] if name == "joint" else learner
    original = owner.traced.model if hasattr(owner, "traced") else owner.original
    weights = copy.deepcopy(original.state_dict())
    wanted = [p.requires_grad for p in original.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads = torch.get_num_threads()
    first, second = learner.gradient_scores(), learner.gradient_scores()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert all(torch.equal(v, weights[k]) for k, v in original.state_dict().items())
    assert [p.requires_grad for p in original.parameters()] == wanted
    assert all(p.grad is None for p in original.parameters())
    assert not original.training
    assert learner.evaluate(plan) == again.evaluate(plan)
    asked, not_asked = learner.compress(plan).state_dict(), again.compress(plan).state_dict()
    assert all(torch.equal(v, not_asked[k]) for k, v in asked.items())


def test_scores_of_channels_are_those_of_a_loop_over_images():
    model = make_model("plain").eval()
    learner = ChannelPruning(
        model, *DATA, precision="fp32", round_to=4, proxy="reconstruction", n_calibration=96
    )
    last = learner.decisions[-1]  # read by a linear layer: every row is a sample
    full = dict(CompressionPlan.full(learner.decisions))
    gradients = shift_gradients(model, "8")
    for index in (0, 2):
        plan = CompressionPlan({**full, last.key: last.choices[index]})
        kept = learner.kept_units(plan)[last.target]
        with torch.no_grad():
            x = model[:8](X)
            change = learner.compress(plan)[8](x[:, kept]) - model[8](x)
        expected = slow_rise(gradients, change)
        assert learner.gradient_scores()[last.key][index] == pytest.approx(expected, rel=5e-3)


def test_scores_without_repair_count_the_cut_inputs_and_the_mean():
    model = make_model("plain").eval()
    learner = ChannelPruning(model, *DATA, precision="fp32", round_to=4, proxy="none")
    last = learner.decisions[-1]
    kept = learner.select(last.target, last.units(last.choices[1]))
    cut = torch.ones(last.size, dtype=torch.bool)
    cut[kept] = False
    with torch.no_grad():
        change = -model[:8](X)[:, cut] @ model[8].weight[:, cut].T
    expected = slow_rise(shift_gradients(model, "8"), change)
    assert learner.gradient_scores()[last.key][1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize("maker", [UniformQuantization, CodebookQuantization])
@pytest.mark.parametrize("proxy", quick(["recalibration", "none"], "recalibration"))
def test_scores_of_bits_are_those_of_a_loop_over_images(kind, maker, proxy):
    options = {"init": "quantile"} if maker is CodebookQuantization else {}
    learner = maker(
        make_model("residual").eval(), *DATA, weight_bits=(2, 4), activation_bits=(3, 8),
        precision="fp32", proxy=proxy, **options,
    )  # fmt: skip
    network, seen = learner.float_network, []
    layer = network.conv3
    handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    network(X[:64])
    handle.remove()
    bits = 2 if kind == "weight_bits" else 3
    with torch.no_grad():
        if kind == "weight_bits":
            weight = learner.fitted.weights("conv3", bits)(layer.weight)
            change = layer._conv_forward(seen[0], weight, layer.bias) - layer(seen[0])
        else:
            change = layer(learner.fitted.inputs("conv3", bits)(seen[0])) - layer(seen[0])
        change = rows_of(layer, change)
        if proxy == "recalibration":
            change = change - change.mean(0)
    expected = slow_rise(shift_gradients(network, "conv3"), change)
    assert learner.gradient_scores()[f"conv3:{kind}"][0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("proxy", ["reconstruction", "none"])
def test_scores_of_densities_are_those_of_a_loop_over_images(proxy):
    model = make_model("plain").eval()
    learner = WeightSparsification(model, *DATA, precision="fp32", proxy=proxy)
    decision = learner.decisions[-1]  # a linear layer: every row is a sample
    full = dict(CompressionPlan.full(learner.decisions))
    sparse = learner.compress(CompressionPlan({**full, decision.key: decision.choices[0]}))
    with torch.no_grad():
        x = model[:8](X)
        change = sparse[8](x) - model[8](x)
    expected = slow_rise(shift_gradients(model, "8"), change)
    assert learner.gradient_scores()[decision.key][0] == pytest.approx(expected, rel=5e-3)


def weight_scores(learner, name):
    """Half of F w^2 per weight of a layer."""
    fisher = weight_fisher(learner.original, learner.data.labelled(), [f"{name}.weight"])
    weight = learner.original.get_parameter(f"{name}.weight").detach().double()
    return 0.5 * fisher[f"{name}.weight"] * weight.square()


def test_channels_without_moments_count_the_weights_that_read_them(prepared):
    learner = prepared("channels")
    learner._layers = {}
    decision = next(d for d in learner.decisions if d.target == "conv1")
    per_unit = weight_scores(learner, "conv2").sum((0, 2, 3))
    found = learner.gradient_scores()[decision.key]
    for index, choice in enumerate(decision.choices):
        kept = learner.select("conv1", decision.units(choice))
        expected = sum(float(s) for unit, s in enumerate(per_unit) if unit not in kept.tolist())
        assert found[index] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_layers_without_moments_count_the_weights_set_to_zero(prepared):
    learner = prepared("densities")
    learner._layers = {k: v for k, v in learner._layers.items() if k != "conv2"}
    decision = next(d for d in learner.decisions if d.target == "conv2")
    lost = ~learner.fitted.mask("conv2", decision.units(decision.choices[0]))
    expected = sum(weight_scores(learner, "conv2")[lost].tolist())
    assert learner.gradient_scores()[decision.key][0] == pytest.approx(expected, rel=1e-6)


def test_labels_are_kept_for_the_recalibration_images_only():
    learner = ChannelPruning(
        make_model("plain").eval(), *DATA, precision="fp32", n_recalibration=40
    )
    images, labels = (torch.cat(parts) for parts in zip(*learner.data.labelled(), strict=True))
    assert torch.equal(images, X[:40])
    assert torch.equal(labels, Y[:40])


def test_joint_scores_are_those_of_the_parts(prepared):
    learner = prepared("joint")
    scores = learner.gradient_scores()
    for part in learner.parts:
        for key, curve in part.gradient_scores().items():
            assert np.array_equal(scores[key], curve)
    assert {d.kind for d in learner.decisions} == set(USUAL_KINDS)


def test_a_view_of_free_decisions_has_their_scores(prepared):
    learner = prepared("joint")
    fixed = {d.key: d.choices[-1] for d in learner.decisions if d.kind is DecisionKind.DENSITY}
    view = FixedDecisions(learner, fixed)
    scores = learner.gradient_scores()
    found = view.gradient_scores()
    assert set(found) == {d.key for d in view.decisions}
    assert all(np.array_equal(found[key], scores[key]) for key in found)


def test_a_part_without_scores_is_rejected_when_they_are_asked_for(prepared):
    learner = prepared("joint")

    class Unscored:
        def __init__(self, part):
            self.name, self.original, self.graph = part.name, part.original, part.graph
            self.decisions = part.decisions
            self.apply, self.layer_errors = part.apply, part.layer_errors

    channels, densities, bits = learner.parts
    other = JointCompression((channels, Unscored(densities), bits), learner.evaluator)
    assert set(other.layer_errors()) == {d.key for d in other.decisions}
    with pytest.raises(CompressionError, match="the part 'density' without"):
        other.gradient_scores()


@pytest.mark.slow
def test_scores_rank_plans_of_channels_better_than_the_layers_errors():
    from amc_compress.benchmarks.learners.proxy_ranking import random_plans

    env = gym.make("amc_env:amc/digits-channels-v0").unwrapped
    learner, plans = env.learner, random_plans(env, 30, seed=0)
    accuracies = [learner.evaluate(plan) for plan in plans]

    def rho(curves):
        sums = [
            sum(curves[d.key][d.choices.index(d.nearest(plan[d.key]))] for d in env.decisions)
            for plan in plans
        ]
        return -spearmanr(sums, accuracies).statistic

    assert rho(learner.gradient_scores()) > 0.8 > rho(learner.layer_errors())

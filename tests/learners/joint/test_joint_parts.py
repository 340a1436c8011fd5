"""What a joint plan is made of: order, parts, repairs, fixed decisions, rejections."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.once import copies
from support.selection import quick
from torch import nn

from amc_compress.benchmarks.learners.fixed_decisions import FixedDecisions
from amc_compress.learners import ChannelPruning, UniformQuantization, joint_compression
from amc_compress.learners.joint.learner import JointCompression
from amc_compress.learners.joint.parts import PlanPart, in_network_order
from amc_compress.learners.packing.packed_file import load_packed, packed_bytes
from amc_compress.learners.quantization import quantized_layers
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.testing.networks import EXAMPLE, NETWORKS, make_data, make_model
from amc_env import Budget, CompressionEnv, CompressionPlan, Decision, DecisionKind
from amc_env.errors import InputDataError, PlanMismatchError
from amc_env.kinds import USUAL_KINDS
from amc_env.observation import FEATURES


@copies
def prepared(name="residual", **options):
    model = make_model(name).eval()
    options = {"precision": "fp32", "pruning": {"round_to": 4}, **options}
    learner = joint_compression(model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)
    return model, learner


def plan_of(learner, keep=0.5, bits=4):
    return CompressionPlan(
        {
            d.key: d.nearest(keep) if d.kind is DecisionKind.KEEP_RATIO else float(bits)
            for d in learner.decisions
        }
    )


class Density:
    """A third kind of part, as a user would write it: sets the smallest weights to zero."""

    name = "density"

    def __init__(self, learner):
        self.original, self.graph = learner.parts[0].original, learner.graph
        self.decisions = tuple(
            Decision(x.name, DecisionKind.DENSITY, (0.1, 0.5, 1.0), 1) for x in self.graph.layers
        )

    def apply(self, network, plan, *, exact=True):
        sparse = copy.deepcopy(network)
        for decision in self.decisions:
            weight = sparse.get_submodule(decision.target).weight.data
            count = round(plan[decision.key] * weight.numel())
            threshold = weight.abs().flatten().sort(descending=True).values[count - 1]
            weight[weight.abs() < threshold] = 0.0
        return sparse

    def layer_errors(self):
        return {d.key: np.array([0.9, 0.5, 0.0]) for d in self.decisions}


def test_decisions_come_by_depth_channels_before_weights_before_inputs():
    _, learner = prepared(quantization={"activation_bits": (4, 8)})
    assert [d.key for d in learner.decisions] == [
        "stem:keep_ratio",
        "conv1:keep_ratio",
        "conv1:weight_bits",
        "conv1:activation_bits",
        "conv2:weight_bits",
        "conv2:activation_bits",
        "conv3:keep_ratio",
        "conv3:weight_bits",
        "conv3:activation_bits",
    ]


@pytest.mark.parametrize("name", quick(NETWORKS, "residual"))
def test_every_decision_of_every_part_appears_once_at_its_layer(name):
    _, learner = prepared(name, quantization={"first_last_bits": None})
    depth = [layer.name for layer in learner.graph.layers]
    places = [depth.index(d.target) for d in learner.decisions]
    assert places == sorted(places)
    keys = [d.key for d in learner.decisions]
    assert sorted(keys) == sorted(d.key for part in learner.parts for d in part.decisions)
    groups = [d.target for d in learner.decisions if d.kind is DecisionKind.KEEP_RATIO]
    assert groups == [group.name for group in learner.graph.groups]


def test_a_group_that_is_named_after_no_layer_stands_at_the_first_layer_it_touches():
    _, learner = prepared()
    group = learner.graph.groups[1]
    renamed = copy.deepcopy(learner.graph)
    object.__setattr__(
        renamed, "groups", (type(group)("table", 16, ("nothing",), ("conv2", "conv3")),)
    )
    rows = [
        [Decision("table", DecisionKind.KEEP_RATIO, (0.5, 1.0), 16)],
        [Decision(x, DecisionKind.WEIGHT_BITS, (2.0, 8.0), 9) for x in ("conv1", "conv2", "head")],
    ]
    keys = [d.target for d in in_network_order(renamed, rows)]
    assert keys == ["conv1", "table", "conv2", "head"]


def test_the_observation_says_of_which_kind_each_decision_is():
    _, learner = prepared(quantization={"activation_bits": (4, 8)})
    env = CompressionEnv(learner, "macs=0.8")
    names = [name for name, _ in FEATURES]
    observation, _ = env.reset()
    for decision in learner.decisions:
        shown = [k for k in USUAL_KINDS if observation[names.index(f"is_{k.name}")] == 1.0]
        assert shown == [decision.kind]
        observation = env.step(np.array([0.5], dtype=np.float32))[0]


@pytest.mark.parametrize("name", quick(NETWORKS, "residual"))
def test_several_budgets_are_met_at_once_whatever_is_asked(name):
    _, learner = prepared(name)
    env = CompressionEnv(learner, Budget(macs=0.5, bytes=0.15))
    rng = np.random.default_rng(0)
    for _ in range(20):
        plan = env.decode(rng.random(env.n_decisions))
        ratio = env.cost_ratio(plan)
        assert ratio["macs"] <= 0.5
        assert ratio["bytes"] <= 0.15


@pytest.mark.parametrize("name", quick(NETWORKS, "residual"))
def test_the_network_has_the_widths_of_its_channels_and_the_bits_of_its_layers(name):
    _, learner = prepared(name)
    plan = plan_of(learner, 0.5, 3)
    network = learner.compress(plan)
    kept = {k: v.numel() for k, v in learner.kept_units(plan).items()}
    widths = {g.name: kept.get(g.name, g.size) for g in learner.graph.groups}
    decided = {d.target for d in learner.decisions if d.kind is DecisionKind.WEIGHT_BITS}
    for spec in learner.graph.layers:
        layer = quantized_layers(network)[spec.name]
        assert layer.weight.shape[:2] == (spec.out_width.at(widths), spec.in_width.at(widths))
        assert layer.weight_quantizer.bits == (3 if spec.name in decided else 8)
        assert layer.quantized_weight()[0].unique().numel() <= 2**layer.weight_quantizer.bits


def test_without_quantization_it_is_channel_pruning():
    model, learner = prepared(
        "plain", quantization={"weight_bits": (4, 16), "activation_bits": 16, "first_last_bits": 16}
    )
    alone = ChannelPruning(
        model, EXAMPLE, make_data(96, 2), make_data(200, 3), precision="fp32", round_to=4
    )
    plan = plan_of(learner, 0.5, 16)
    ratios = CompressionPlan({d.key: plan[d.key] for d in alone.decisions})
    images = make_data(64, 4)[0][0]
    with torch.no_grad():
        torch.testing.assert_close(
            learner.compress(plan)(images), alone.compress(ratios)(images), atol=1e-5, rtol=1e-4
        )
    assert learner.evaluate(plan) == pytest.approx(alone.evaluate(ratios), abs=0.006)


def test_with_all_channels_it_is_quantization():
    model, learner = prepared()
    alone = UniformQuantization(
        model, EXAMPLE, make_data(96, 2), make_data(200, 3), precision="fp32"
    )
    plan = plan_of(learner, 1.0, 3)
    bits = CompressionPlan({d.key: plan[d.key] for d in alone.decisions})
    images = make_data(64, 4)[0][0]
    with torch.no_grad():
        assert torch.equal(learner.compress(plan)(images), alone.compress(bits)(images))
    assert learner.evaluate(plan) == alone.evaluate(bits)


def test_cut_weights_get_ranges_of_their_own_and_inputs_static_ones():
    _, learner = prepared(quantization={"weight_range": "minmax", "activation_range": "minmax"})
    plan = plan_of(learner, 0.5, 4)
    network = learner.compress(plan)
    images = make_data(32, 4)[0][0]
    with torch.no_grad():
        alone, batch = network(images[:1]), network(images)
    torch.testing.assert_close(batch[:1], alone, atol=1e-4, rtol=1e-3)  # no range of the batch
    layer = quantized_layers(network)["conv2"]
    largest = layer.weight.detach().abs().amax((1, 2, 3))
    torch.testing.assert_close(layer.weight_quantizer.scale, largest / 7)


@pytest.mark.slow
def test_the_repairs_pay():
    accuracy = {}
    for proxy in ("none", "reconstruction+recalibration"):
        _, learner = prepared(proxy=proxy, pruning={"round_to": 4, "criterion": "random"})
        plans = [plan_of(learner, 0.5, bits) for bits in (2, 3, 4)]
        accuracy[proxy] = sum(learner.evaluate(plan) for plan in plans)
    assert accuracy["reconstruction+recalibration"] > accuracy["none"] + 0.1


@pytest.mark.slow
def test_sgd_steps_before_evaluation_train_the_finished_candidate():
    _, plain = prepared(proxy="none")
    _, tuned = prepared(proxy="none", finetune_steps=8, train=make_data(256, 1))
    plans = [plan_of(plain, 0.5, bits) for bits in (2, 3)]
    assert sum(map(tuned.evaluate, plans)) > sum(map(plain.evaluate, plans)) + 0.1
    assert tuned.seconds.mean()["finetuning"] > 0.0
    same = zip(
        tuned.compress(plans[0]).state_dict().values(),
        plain.compress(plans[0]).state_dict().values(),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in same)


def test_finetuning_takes_the_steps_that_the_quantizer_bears():
    _, learner = prepared("plain", quantizer="codebook", seed=3)
    config = learner.parts[1].training_defaults()
    assert learner.training_defaults() == config
    assert config.seed == 3


def test_curves_of_all_parts_guide_the_agents():
    _, learner = prepared()
    curves = learner.layer_errors()
    assert list(curves) == [d.key for d in learner.decisions]
    for decision in learner.decisions:
        curve = curves[decision.key]
        assert curve.shape == (len(decision.choices),)
        assert curve[0] > curve[-1] >= 0.0


@pytest.mark.parametrize("name", quick(NETWORKS, "residual"))
def test_the_packed_file_has_the_size_that_was_promised(name, tmp_path):
    model, learner = prepared(name)
    for keep, bits in ((0.25, 2), (0.5, 5), (1.0, 8)):
        plan = plan_of(learner, keep, bits)
        network = learner.compress(plan)
        data = packed_bytes(
            network, kept=learner.kept_units(plan), plan=plan, example_input=EXAMPLE
        )
        promised = learner.cost_models["bytes"](plan.values_for(learner.decisions))
        # A few bytes of a header of hundreds: these networks are tiny.
        assert promised == pytest.approx(len(data), rel=0.03, abs=64)
    (tmp_path / "x.packed").write_bytes(data)
    again = load_packed(tmp_path / "x.packed", model)
    with torch.no_grad():
        assert torch.equal(again(EXAMPLE), network(EXAMPLE))


def test_a_third_kind_of_decision_joins():
    _, learner = prepared()
    channels, bits = learner.parts
    density = Density(learner)
    assert isinstance(density, PlanPart)
    wide = JointCompression((channels, density, bits), learner.evaluator)
    assert [d.key for d in wide.decisions][1:4] == [
        "stem:density",
        "conv1:keep_ratio",
        "conv1:density",
    ]
    whole = {d.key: d.choices[-1] for d in wide.decisions}
    base = CompressionPlan({d.key: whole[d.key] for d in learner.decisions})
    assert wide.evaluate(CompressionPlan(whole)) == learner.evaluate(base)
    sparse = wide.compress(CompressionPlan({**whole, "conv2:density": 0.1}))
    weight = quantized_layers(sparse)["conv2"].quantized_weight()
    assert (weight == 0).float().mean() >= 0.89
    assert set(wide.layer_errors()) == {d.key for d in wide.decisions}


def test_seconds_are_told_by_part():
    _, learner = prepared()
    learner.evaluate(plan_of(learner))
    mean = learner.seconds.mean()
    assert set(mean) == {"channels", "bits", "evaluation", "total"}
    assert mean["total"] == pytest.approx(mean["channels"] + mean["bits"] + mean["evaluation"])
    assert learner.seconds.episodes == 1


def test_fixed_decisions_are_part_of_the_plan_and_of_its_costs():
    _, learner = prepared()
    ratios = {d.key: d.nearest(0.5) for d in learner.decisions if d.kind == "keep_ratio"}
    view = FixedDecisions(learner, ratios)
    assert all(d.kind is DecisionKind.WEIGHT_BITS for d in view.decisions)
    plan = CompressionPlan({d.key: 3.0 for d in view.decisions})
    whole = view.whole(plan)
    assert [d.key for d in learner.decisions] == list(whole)
    assert view.evaluate(plan) == learner.evaluate(whole)
    assert view.evaluate_full(plan) == learner.evaluate_full(whole)
    assert view.kept_units(plan).keys() == learner.kept_units(whole).keys()
    assert set(view.layer_errors()) == {d.key for d in view.decisions}
    ours, theirs = CompressionEnv(view, "bytes=0.2"), CompressionEnv(learner, "bytes=0.2")
    assert ours.cost_ratio(plan) == theirs.cost_ratio(whole)


def test_assumptions_change_what_is_counted_and_nothing_else():
    _, learner = prepared()
    bits = [d for d in learner.decisions if d.kind is DecisionKind.WEIGHT_BITS]
    most, fewest = {d.key: d.choices[-1] for d in bits}, {d.key: d.choices[0] for d in bits}
    view = FixedDecisions(learner, most, assumed=fewest)
    plan = CompressionPlan.full(view.decisions)
    counted = CompressionEnv(view, "macs=1").cost_ratio(plan)
    env = CompressionEnv(learner, "macs=1")
    assert counted == env.cost_ratio(CompressionPlan({**plan, **fewest}))
    assert view.evaluate(plan) == learner.evaluate(CompressionPlan({**plan, **most}))


def test_senseless_fixing_is_rejected():
    _, learner = prepared()
    full = dict(CompressionPlan.full(learner.decisions))
    with pytest.raises(ValueError, match="not fixed"):
        FixedDecisions(learner, full)
    with pytest.raises(PlanMismatchError, match="elsewhere"):
        FixedDecisions(learner, {"elsewhere:weight_bits": 4.0})
    with pytest.raises(PlanMismatchError, match="not on the grid"):
        FixedDecisions(learner, {"conv1:weight_bits": 4.5})
    with pytest.raises(PlanMismatchError, match="about fixed decisions"):
        FixedDecisions(learner, {"conv1:weight_bits": 4.0}, assumed={"conv2:weight_bits": 2.0})
    view = FixedDecisions(learner, {"conv1:weight_bits": 4.0})
    with pytest.raises(PlanMismatchError):
        view.evaluate(CompressionPlan(full))
    assert not hasattr(view, "nonsense")


def test_parts_of_different_networks_are_rejected():
    _, learner = prepared("residual")
    _, other = prepared("plain")
    with pytest.raises(ValueError, match=r"same network.*channels and bits differ"):
        JointCompression((learner.parts[0], other.parts[1]), learner.evaluator)
    with pytest.raises(ValueError, match="at least one part"):
        JointCompression((), learner.evaluator)


def test_parts_that_decide_the_same_are_rejected():
    _, learner = prepared()
    with pytest.raises(ValueError, match=r"several decide about \['conv1:weight_bits'"):
        JointCompression((learner.parts[1], learner.parts[1]), learner.evaluator)


def test_channels_cannot_be_cut_after_bits():
    _, learner = prepared()
    channels, bits = learner.parts
    with pytest.raises(ValueError, match="channels are cut first"):
        JointCompression((bits, channels), learner.evaluator).compress(plan_of(learner))


def test_a_network_that_is_quantized_already_is_rejected_by_name():
    _, learner = prepared()
    quantized = learner.compress(plan_of(learner))
    part = learner.parts[1]
    assert isinstance(part, QuantizationLearner)
    plan = CompressionPlan({d.key: 4.0 for d in part.decisions})
    with pytest.raises(PlanMismatchError, match="'stem'"):
        part.apply(quantized, plan)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"quantizer": "magic"}, ValueError, "Unknown quantizer 'magic'"),
        ({"proxy": "magic"}, ValueError, "Unknown proxy"),
        ({"finetune_steps": 3}, ValueError, "train=loader"),
        ({"finetune_steps": 3, "train": []}, InputDataError, "at least one batch of training"),
        ({"n_validation": 0}, ValueError, "n_validation"),
        ({"precision": "int3"}, ValueError, "int3"),
        ({"quantization": {"weight_bits": (1, 4)}}, ValueError, "weight_bits from 2 to 8"),
        ({"pruning": {"criterion": "magic"}}, ValueError, "Unknown criterion"),
        (
            {"sparsification": {"schedule": "gradual"}},
            ValueError,
            "no schedule of zeros",
        ),
    ],
)
def test_bad_options_are_rejected_in_one_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        prepared("plain", **options)
    assert "\n" not in str(caught.value)


def test_validation_labels_are_checked_to_the_last():
    data = make_data(200, 3)
    data[-1][1][-1] = 4
    with pytest.raises(InputDataError, match="validation labels from 0 to 3"):
        joint_compression(make_model("plain"), EXAMPLE, make_data(96, 2), data)


def test_ignored_layers_stay_whole_and_in_float():
    _, learner = prepared(ignore=("conv1",))
    assert not any(d.target == "conv1" for d in learner.decisions)
    network = learner.compress(plan_of(learner))
    assert type(network.conv1) is nn.Conv2d
    assert network.conv1.weight.shape[0] == 16

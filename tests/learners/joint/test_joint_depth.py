"""Joint plans that decide depth too: what a left-out branch holds costs nothing, and is gone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.networks.residual_networks import Images, Tokens
from torch import nn

from amc_compress.learners import joint_compression
from amc_compress.learners.joint.learner import JointCompression
from amc_compress.learners.joint.options import JointOptions
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.testing.networks import EXAMPLE, make_data
from amc_compress.learners.tracing.branches.left_out import layers_there
from amc_compress.learners.tracing.labels.counting import count_macs, count_parameters
from amc_compress.learners.tracing.traced_model import trace
from amc_env import Budget, CompressionEnv, DecisionKind, InfeasibleBudgetError, make_cost
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.costs import costs_for

BUDGET = "macs=0.6,bytes=0.35,params=0.8"


def make(**options):
    torch.manual_seed(0)
    return joint_compression(
        Images().eval(), EXAMPLE, make_data(32, 0), make_data(32, 1),
        n_recalibration=32, n_calibration=32, precision="fp32", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learner():
    return make(
        pruning={"round_to": 2, "decide_depth": True},
        quantization={
            "weight_bits": (2, 4, 8),
            "activation_bits": (4, 8),
            "weight_range": "minmax",
        },
    )


@pytest.fixture(scope="module")
def plans(learner):
    env, rng = CompressionEnv(learner, BUDGET), np.random.default_rng(0)
    found = env.decode_all(rng.random((200, env.n_decisions)))
    ratios = [env.cost_ratio(plan) for plan in found]
    assert all(r["macs"] <= 0.6 and r["bytes"] <= 0.35 and r["params"] <= 0.8 for r in ratios)
    by_depth = {tuple(plan.values_of(DecisionKind.DEPTH).values()): plan for plan in found}
    assert len(by_depth) >= 4
    return [*by_depth.values()][:5]


def counted_bytes(network: nn.Module) -> float:
    """Codes, scales and biases of quantized layers, and all else in float32."""
    layers = quantized_layers(network)
    total = 0.0
    for layer in layers.values():
        bits = 32 if layer.weight_quantizer is None else layer.weight_quantizer.bits
        scales = 0 if layer.weight_quantizer is None else len(layer.weight)
        total += layer.weight.numel() * bits / 8 + 4 * (scales + layer.bias.numel())
    others = [*network.named_parameters(), *network.named_buffers()]
    return total + sum(
        t.numel() * t.element_size() for n, t in others
        if not any(n.startswith(f"{name}.") for name in layers)
    )  # fmt: skip


def test_what_budgets_count_is_what_the_network_has(learner, plans):
    env = CompressionEnv(learner, BUDGET)
    for plan in plans:
        network, cost = learner.compress(plan), env.cost(plan)
        assert cost["macs"] == count_macs(network, EXAMPLE)
        assert cost["params"] == count_parameters(network)
        assert cost["bytes"] == counted_bytes(network) + learner.storage.fixed_bytes
        assert env.evaluate(plan).score == learner.score(network)


def test_a_branch_is_decided_before_all_that_is_in_it(learner):
    keys = [d.key for d in learner.decisions]
    for branch in learner.graph.branches:
        inside = {*branch.layers, *branch.groups}
        within = [d.key for d in learner.decisions if d.target in inside and d.kind != "depth"]
        assert keys.index(f"{branch.name}:depth") < min(map(keys.index, within))
    assert keys.index("nested:depth") < keys.index("nested.inner:depth")


def test_packed_files_hold_it(learner, plans, tmp_path):
    images, path = make_data(8, 2)[0][0], tmp_path / "small.packed"
    for plan in plans[:2]:
        network = learner.compress(plan)
        kept = learner.kept_units(plan)
        save_packed(network, path, kept=kept, plan=plan, example_input=EXAMPLE)
        again = load_packed(path, learner.original)
        torch.testing.assert_close(again(images), network(images), rtol=0, atol=0)


def test_a_budget_without_any_branch_is_infeasible_by_name(learner):
    with pytest.raises(InfeasibleBudgetError, match="One of the branches has to stay: block"):
        CompressionEnv(learner, "macs=0.005,bytes=0.9")


@pytest.mark.parametrize("depth", [False, True])
def test_a_budget_without_any_head_or_half_is_infeasible_by_name(depth):
    tokens = torch.randint(0, 11, (2, 5))
    traced = trace(Tokens().eval(), tokens, branches=depth)
    options = JointOptions(pruning={"round_to": 1, "decide_depth": depth})
    space = JointCompression.decide(traced, options)
    costs = {
        n: make_cost(n, traced.graph, space.decisions, space.storage)
        for n in costs_for(space.decisions)
    }
    message = {
        False: "Of every attention at least one head has to stay: layer.attention.q",
        True: "One of the branches has to stay: layer.attention, layer.mlp",
    }
    for budget in ("macs=0.001,bytes=0.5", "macs=0.9,bytes=0.01", "params=0.001"):
        with pytest.raises(InfeasibleBudgetError, match=message[depth]):
            FeasibleSet(Budget.parse(budget), costs, space.decisions, traced.graph)


GPTQ = {"quantization": {"rounding": "gptq", "activation_bits": 16}, "proxy": "none"}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"sparsification": {}}, GPTQ], ids=["density", "gptq"])
def test_depth_goes_with_any_subset_of_the_rest(more):
    learner = make(pruning={"min_ratio": 1.0, "decide_depth": True}, **more)
    kinds = {d.kind.name for d in learner.decisions}
    assert kinds == {"depth", "weight_bits", *(["density"] if "sparsification" in more else [])}
    env = CompressionEnv(learner, "macs=0.7")
    plan = env.decode(np.full(env.n_decisions, 0.4))
    out = [name for name, there in plan.values_of(DecisionKind.DEPTH).items() if not there]
    assert out
    network = learner.compress(plan)
    gone = {name for branch in out for name in learner.graph.branch(branch).layers}
    names = [x.name for x in learner.graph.layers if x.has_weights]
    assert {*names} - {*layers_there(network, names)} == gone & {*names}
    assert not gone & {*quantized_layers(network), *masked_layers(network)}
    assert env.evaluate(plan).score == learner.score(network)

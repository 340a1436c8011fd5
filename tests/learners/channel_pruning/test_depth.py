"""Channel pruning that also decides which residual branches are there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.networks.residual_networks import Images, switched

from amc_compress.learners import ChannelPruning
from amc_compress.learners.channel_pruning.gradual.group_finetuning import group_finetune
from amc_compress.learners.channel_pruning.gradual.sparse_training import sparse_training
from amc_compress.learners.channel_pruning.sensitivity import branch_influences
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.testing.networks import EXAMPLE, make_data, plain
from amc_compress.learners.tracing.labels.counting import count_bytes, count_macs, count_parameters
from amc_env import (
    CompressionEnv,
    CompressionPlan,
    DecisionKind,
    InfeasibleBudgetError,
    UntraceableModelError,
)
from amc_env.errors import ArgumentError


def make(model, **options):
    return ChannelPruning(
        model, EXAMPLE, make_data(32, 0), make_data(32, 1), round_to=2, n_recalibration=32,
        precision="fp32", decide_depth=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return Images().eval()


@pytest.fixture(scope="module")
def learner(original):
    return make(original)


def plan_of(learner, *out, keep=1.0):
    return CompressionPlan(
        {
            d.key: float(d.target not in out) if d.kind is DecisionKind.DEPTH else d.nearest(keep)
            for d in learner.decisions
        }
    )


def test_episodes_spend_the_budget_on_channels_and_branches(learner):
    env = CompressionEnv(learner, "macs=0.5")
    depths = [d.target for d in env.decisions if d.kind is DecisionKind.DEPTH]
    assert depths == ["block", "nested", "nested.inner"]
    rng = np.random.default_rng(0)
    original = count_macs(learner.original, EXAMPLE)
    for plan in env.decode_all(rng.random((6, env.n_decisions))):
        network, cost = learner.compress(plan), env.cost(plan)
        assert cost["macs"] == count_macs(network, EXAMPLE) <= 0.5 * original
        assert cost["params"] == count_parameters(network)
        assert cost["bytes"] == count_bytes(network)
        assert env.evaluate(plan).score == learner.score(network)
    with pytest.raises(InfeasibleBudgetError, match=r"One of the branches has to stay: block"):
        CompressionEnv(learner, "macs=0.001")


def test_a_branch_that_is_left_out_was_never_there(original, learner):
    plan = plan_of(learner, "block", "nested.inner")
    unrepaired = learner.traced.slice(learner.kept_units(plan))
    right = switched(copy.deepcopy(original), "block", "nested.inner")
    images = make_data(8, 2)[0][0]
    torch.testing.assert_close(unrepaired(images), right(images))
    # Its groups do not count: another width there gives the same network, evaluated alike.
    group = next(g for b in learner.graph.branches if b.name == "block" for g in b.groups)
    other = CompressionPlan({**plan, f"{group}:keep_ratio": 0.5})
    assert learner.kept_units(other).keys() == learner.kept_units(plan).keys()
    assert learner.evaluate(other) == learner.evaluate(plan)


def test_packed_files_hold_it(learner, original, tmp_path):
    plan = plan_of(learner, "block", "nested.inner", keep=0.5)
    network = learner.compress(plan)
    path = tmp_path / "small.packed"
    save_packed(network, path, kept=learner.kept_units(plan), plan=plan, example_input=EXAMPLE)
    again = load_packed(path, original)
    images = make_data(8, 2)[0][0]
    torch.testing.assert_close(again(images), network(images), rtol=0, atol=0)
    assert count_parameters(again) == count_parameters(network)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_files_hold_it(learner, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    network = learner.compress(plan_of(learner, "block", "nested.inner", keep=0.5))
    export_onnx(network, EXAMPLE, tmp_path / "small.onnx")
    images = make_data(8, 2)[0][0]
    session = onnxruntime.InferenceSession(
        tmp_path / "small.onnx", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network(images))
    nodes = [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node]
    assert nodes.count("Conv") == 3, "a stem, and the outer branch"


def test_curves_say_what_a_branch_is_worth(learner):
    for curves in (learner.layer_errors(), learner.gradient_scores()):
        assert list(curves) == [d.key for d in learner.decisions]
        for d in learner.decisions:
            assert curves[d.key].shape == (len(d.choices),)
            assert curves[d.key][-1] == curves[d.key].min()
    lost = learner.layer_errors()
    images = learner.data.recalibration[0]
    with torch.no_grad():
        before, after = learner.original(images), learner.traced.without("nested")(images)
    share = float((after - before).square().sum() / before.square().sum())
    assert lost["nested:depth"] == pytest.approx([share, 0.0], rel=1e-4)


def test_influence_is_what_branches_do_to_what_passes_through_them(learner):
    network, images = learner.original, make_data(16, 2)[0][0]
    with torch.no_grad():
        block, nested = network.block, network.nested
        x = network.stem(images)
        f = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        z = torch.relu(x + f)
        y = torch.tanh(nested.first(z))
        w = nested.inner(y)
        pairs = {
            "block": (x, f), "nested": (z, nested.last(torch.tanh(y + w))), "nested.inner": (y, w)
        }  # fmt: skip
        turned = {
            n: 1.0 - float(F.cosine_similarity(a, a + b, 1).mean()) for n, (a, b) in pairs.items()
        }
    asked = []

    def measure(some):
        asked.extend(d.target for d in some)
        return {d.key: np.array([2.0 * (len(asked) > 1), 0.0]) for d in some}

    depths = [d for d in learner.decisions if d.kind is DecisionKind.DEPTH]
    found = branch_influences(depths, learner.traced, [images], measure)
    assert asked == sorted(turned, key=turned.get)[1:], "the median one does no harm"
    for name, influence in turned.items():
        wanted = [2.0 * influence / max(turned.values()), 0.0]
        assert found[f"{name}:depth"].tolist() == pytest.approx(wanted, rel=1e-4)


def test_it_is_finetuned_like_any_other(learner):
    plan = plan_of(learner, "block", keep=0.5)
    network = learner.compress(plan)
    before = count_parameters(network)
    learner.finetune(network, make_data(32, 3), epochs=1)
    assert count_parameters(network) == before
    assert 0.0 <= learner.score(network) <= 1.0


def test_what_cannot_decide_depth_says_so(learner):
    with pytest.raises(UntraceableModelError, match="Expected at least one residual branch"):
        make(plain().eval())
    plan = plan_of(learner)
    with pytest.raises(ArgumentError, match="channels alone for sparse training, got block"):
        sparse_training(learner, plan, make_data(8, 0), epochs=1)
    with pytest.raises(ArgumentError, match="channels alone for cutting in stages"):
        group_finetune(
            lambda _: learner, learner.original, plan, make_data(8, 0), groups=2, epochs_between=0
        )

"""ChannelPruning keeps the contract of learners, and its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.precision_contract import PrecisionContract
from support.once import copies
from support.selection import quick
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from amc_compress.learners import ChannelPruning
from amc_compress.learners.channel_pruning import CRITERIA, PROXIES
from amc_compress.learners.testing.networks import EXAMPLE, NETWORKS, make_data, make_model
from amc_env import CompressionPlan
from amc_env.errors import InputDataError, TrainingDivergedError, UntraceableModelError


class TestChannelPruning(PrecisionContract):
    def make(self, model, example, calibration, validation, **options):
        return ChannelPruning(model, example, calibration, validation, **options)


@pytest.mark.slow
class TestChannelPruningWithFinetuningProxy(PrecisionContract):
    """SGD steps before evaluation change the uncut network too."""

    proxy_is_compress = False

    def make(self, model, example, calibration, validation, **options):
        return ChannelPruning(
            model,
            example,
            calibration,
            validation,
            finetune_steps=2,
            train=make_data(96, 1),
            **options,
        )

    def test_an_uncut_plan_has_the_original_accuracy(self, name):
        _, learner = self.prepared(name)
        tuned = learner.evaluate(CompressionPlan.full(learner.decisions))
        assert tuned >= learner.original_accuracy - 0.1


@copies
def prepared(name="residual", **options):
    model = make_model(name).eval()
    options = {"precision": "fp32", "round_to": 4, **options}
    return model, ChannelPruning(model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)


class Viewing(nn.Module):
    """LeNet's way: ``view`` of a map larger than 1 x 1, which fails on channels-last outputs."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16 * 16, 4)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.max_pool2d(torch.relu(self.conv1(x)), 2)))
        return self.head(self.flat(x))

    def flat(self, x):
        return x.view(len(x), -1)


class Flattening(Viewing):
    def flat(self, x):
        return x.flatten(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_views_its_maps_is_pruned_like_one_that_flattens_them(precision):
    learners = []
    for kind in (Viewing, Flattening):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind()
        learners.append(
            ChannelPruning(
                model, EXAMPLE, make_data(96, 2), make_data(200, 3), precision=precision,
                round_to=4, finetune_steps=1, train=make_data(64, 1),
            )
        )  # fmt: skip
    viewing, flattening = learners
    plan = half(viewing)
    assert viewing.kept_units(plan).keys() == {"conv1", "conv2"}
    assert viewing.evaluate(plan) == pytest.approx(flattening.evaluate(plan), abs=0.05)
    images = make_data(64, 4)[0][0]
    with torch.no_grad():
        torch.testing.assert_close(
            viewing.compress(plan)(images), flattening.compress(plan)(images), rtol=1e-3, atol=1e-4
        )


def test_the_seed_decides_what_shuffling_loaders_give():
    """Subsets of images, not only their order."""
    data = [torch.cat(part) for part in zip(*make_data(256, 2), strict=True)]
    model = make_model("plain")

    def made(seed, start, generator=None):
        loader = DataLoader(TensorDataset(*data), 32, shuffle=True, generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(start)
            state = torch.get_rng_state()
            learner = ChannelPruning(
                model, EXAMPLE, loader, loader, train=loader, finetune_steps=2, seed=seed,
                n_calibration=32, n_validation=32, precision="fp32",
            )  # fmt: skip
            assert torch.equal(torch.get_rng_state(), state)
        parts = (
            learner.data.recalibration,
            learner.data.training[1],
            [b.inputs for b in learner.evaluator._held_out._evaluators[torch.float32]._batches],
        )
        return [part[0] for part in parts]

    own = torch.Generator().manual_seed(3)
    first = made(5, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, made(5, 2), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, made(6, 1), strict=True))
    again = made(5, 1, own), made(5, 2, own)  # a generator of its own is seeded too
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))


def half(learner):
    return CompressionPlan({d.key: d.nearest(0.5) for d in learner.decisions})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slice_equals_the_masked_original(name):
    _, learner = prepared(name, proxy="none")
    plan = half(learner)
    kept = learner.kept_units(plan)
    images = make_data(64, 4)[0][0]
    with torch.no_grad():
        sliced = learner.compress(plan)(images)
        masked = learner.traced.mask(kept)(images)
    torch.testing.assert_close(sliced, masked, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_is_the_accuracy_of_the_compressed_network(name):
    _, learner = prepared(name)
    plan = half(learner)
    network = learner.compress(plan)
    right = sum(int((network(x).argmax(1) == y).sum()) for x, y in make_data(200, 3))
    assert learner.evaluate(plan) == pytest.approx(right / 200, abs=0.006)


def test_the_repaired_layer_is_the_least_squares_fit_of_its_original_output():
    """A layer behind one cut group, solved again by ``lstsq`` from recorded activations."""
    model, learner = prepared("plain", proxy="reconstruction")
    full = dict(CompressionPlan.full(learner.decisions))
    first = learner.decisions[0]
    plan = CompressionPlan({**full, first.key: 0.5})
    kept = learner.kept_units(plan)[first.target]
    network = learner.compress(plan)
    images = torch.cat([x for x, _ in make_data(96, 2)])
    with torch.no_grad():
        x = model[:3](images)
        y = model[3](x).permute(0, 2, 3, 1).reshape(-1, 24)
        design = nn.functional.unfold(x[:, kept], 3, padding=1).transpose(1, 2).reshape(len(y), -1)
        design = torch.cat([design, torch.ones(len(y), 1)], 1)
    best = np.linalg.lstsq(design.numpy(), y.numpy(), rcond=None)[0]
    optimum = ((design.numpy() @ best - y.numpy()) ** 2).sum()
    with torch.no_grad():
        found = network[3](x[:, kept]).permute(0, 2, 3, 1).reshape(-1, 24)
        naive = learner_none(model, plan)[3](x[:, kept]).permute(0, 2, 3, 1).reshape(-1, 24)
    # Ten sampled positions of sixteen per image: near the optimum over all of them.
    error = (found - y).square().sum().item()
    assert optimum <= error <= 1.1 * optimum
    assert error < 0.8 * (naive - y).square().sum().item()


def learner_none(model, plan):
    return ChannelPruning(
        model, EXAMPLE, make_data(96, 2), make_data(64, 3), proxy="none", round_to=4
    ).compress(plan)


def test_layers_that_lose_no_input_keep_their_weights():
    model, learner = prepared("residual")
    full = dict(CompressionPlan.full(learner.decisions))
    network = learner.compress(CompressionPlan({**full, "conv1:keep_ratio": 0.5}))
    kept = learner.kept_units(CompressionPlan({**full, "conv1:keep_ratio": 0.5}))["conv1"]
    assert torch.equal(network.conv1.weight, model.conv1.weight[kept])
    assert torch.equal(network.conv3.weight, model.conv3.weight)
    assert torch.equal(network.head.weight, model.head.weight)
    assert not torch.equal(network.conv2.weight, model.conv2.weight[:, kept])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", quick(NETWORKS, "residual"))
def test_every_criterion_ranks_every_unit_once(name, criterion):
    _, learner = prepared(name, criterion=criterion)
    for group in learner.graph.groups:
        assert sorted(learner.ranking[group.name].tolist()) == list(range(group.size))
    assert 0.0 <= learner.evaluate(half(learner)) <= 1.0


def test_taylor_gates_equal_finite_differences_of_the_loss():
    model = make_model("plain").eval()
    images, labels = make_data(32, 2)[0]
    labels = (labels + 1) % 4  # wrong on purpose: right answers have next to no gradient
    found = {}

    def spy(group):
        found[group.name] = CRITERIA["taylor"](group)
        return found[group.name]

    ChannelPruning(model, EXAMPLE, [(images, labels)], make_data(64, 3), criterion=spy)
    with torch.no_grad():
        x, tail = model[:3](images).double(), model[3:].double()

        def loss(unit, gate):
            gates = torch.ones(1, 16, 1, 1, dtype=torch.float64)
            gates[0, unit] = gate
            return nn.functional.cross_entropy(tail(x * gates), labels).item()

        slopes = [(loss(u, 1 + 1e-5) - loss(u, 1 - 1e-5)) / 2e-5 for u in range(16)]
    np.testing.assert_allclose(found["0"].numpy(), np.square(slopes), rtol=1e-3, atol=1e-7)


def test_a_criterion_may_be_a_function():
    _, learner = prepared(criterion=lambda group: torch.arange(group.size).flip(0))
    assert learner.ranking["conv1"].tolist() == list(range(16))


@pytest.mark.parametrize("proxy", PROXIES)
def test_proxies_repair_what_their_name_says(proxy):
    _, learner = prepared(proxy=proxy)
    _, bare = prepared(proxy="none")
    plan = half(learner)
    mine, raw = learner.compress(plan).state_dict(), bare.compress(plan).state_dict()
    weights = any(not torch.equal(v, raw[k]) for k, v in mine.items() if k.endswith("weight"))
    variances = any(not torch.equal(v, raw[k]) for k, v in mine.items() if k.endswith("var"))
    assert weights == ("reconstruction" in proxy)
    assert variances == ("recalibration" in proxy)


def test_repairs_pay():
    accuracy = {proxy: 0.0 for proxy in PROXIES}
    for proxy in PROXIES:
        _, learner = prepared(proxy=proxy, criterion="random")
        accuracy[proxy] = learner.evaluate(half(learner))
    assert accuracy["reconstruction+recalibration"] > accuracy["none"]
    assert accuracy["reconstruction"] > accuracy["none"]


def test_error_curves_fall_to_zero_with_the_keep_ratio():
    _, learner = prepared()
    for decision in learner.decisions:
        curve = learner.layer_errors()[decision.key]
        assert curve.shape == (len(decision.choices),)
        assert curve[-1] == 0.0
        assert (np.diff(curve) <= 1e-9).all()
        assert 0.0 < curve[0] < 1.0


def test_error_curves_are_what_the_repaired_layer_really_loses():
    model, learner = prepared("plain", proxy="reconstruction", n_calibration=96)
    full = dict(CompressionPlan.full(learner.decisions))
    last = learner.decisions[-1]  # read by a linear layer: every row is a sample
    plan = CompressionPlan({**full, last.key: last.choices[1]})
    kept = learner.kept_units(plan)[last.target]
    images = torch.cat([x for x, _ in make_data(96, 2)])
    with torch.no_grad():
        x = model[:8](images)
        y = model[8](x)
        repaired = learner.compress(plan)[8](x[:, kept])
        lost = ((y - repaired).square().sum() / (y - y.mean(0)).square().sum()).item()
    assert learner.layer_errors()[last.key][1] == pytest.approx(lost, rel=1e-3)


def test_validation_subset_is_fixed_and_the_whole_split_is_another_number():
    _, learner = prepared(n_validation=50)
    again = prepared(n_validation=50)[1]
    plan = half(learner)
    assert learner.evaluate(plan) == again.evaluate(plan)
    assert round(learner.evaluate(plan) * 50, 6) % 1 == 0
    network = learner.compress(plan)
    right = sum(int((network(x).argmax(1) == y).sum()) for x, y in make_data(200, 3))
    assert learner.evaluate_full(plan) == pytest.approx(right / 200, abs=0.006)
    full = CompressionPlan.full(learner.decisions)
    assert prepared()[1].original_accuracy == learner.evaluate_full(full)


def test_ignored_layers_stay_whole():
    _, learner = prepared(ignore=("conv1",))
    assert "conv1:keep_ratio" not in {d.key for d in learner.decisions}


def test_statistics_of_candidates_are_reported():
    _, learner = prepared()
    learner.evaluate(half(learner))
    mean = learner.seconds.mean()
    assert learner.seconds.episodes == 1
    assert mean["total"] == pytest.approx(sum(v for k, v in mean.items() if k != "total"))
    assert mean["evaluation"] > 0.0


def bad(**changes):
    arguments = {
        "model": make_model("plain"),
        "example_input": EXAMPLE,
        "calibration": make_data(64, 2),
        "validation": make_data(64, 3),
    }
    return {**arguments, **changes}


def with_labels(label):
    return [(x, torch.full_like(y, label)) for x, y in make_data(64, 3)]


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"validation": with_labels(4)}, InputDataError, "validation labels from 0 to 3"),
        (
            {"calibration": with_labels(-1)},
            InputDataError,
            "calibration data: Labels must lie",
        ),
        ({"calibration": []}, InputDataError, "at least one batch of calibration"),
        ({"example_input": torch.zeros(1, 3, 9, 9)}, InputDataError, "like the example input"),
        ({"criterion": "magnitude"}, ValueError, "Unknown criterion"),
        ({"proxy": "magic"}, ValueError, "Unknown proxy"),
        ({"finetune_steps": 3}, ValueError, "train=loader"),
        ({"n_validation": 0}, ValueError, "n_validation"),
        ({"precision": "int3"}, ValueError, "int3"),
        (
            {"finetune_steps": 3, "train": with_labels(9)},
            InputDataError,
            "training labels from 0 to 3",
        ),
    ],
)
def test_bad_input_is_rejected_in_one_sentence(changes, error, sentence):
    arguments = bad(**changes)
    with pytest.raises(error, match=sentence) as caught:
        ChannelPruning(
            arguments.pop("model"),
            arguments.pop("example_input"),
            arguments.pop("calibration"),
            arguments.pop("validation"),
            **arguments,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_rejected_by_name(value):
    model = make_model("plain")
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = value
    with pytest.raises(InputDataError, match=r"finite weights.*'3\.weight'"):
        ChannelPruning(model, EXAMPLE, make_data(64, 2), make_data(64, 3))


def test_networks_without_anything_to_cut_say_why():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UntraceableModelError, match="1: "):
        ChannelPruning(model, EXAMPLE, make_data(64, 2), make_data(64, 3))


def test_networks_without_logits_are_rejected():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    with pytest.raises(InputDataError, match="return the logits"):
        ChannelPruning(model, EXAMPLE, make_data(64, 2), make_data(64, 3))


def test_a_candidate_with_nan_outputs_is_an_error():
    _, learner = prepared("plain", proxy="none")
    with torch.no_grad():
        learner.traced.model[8].bias[0] = float("nan")
    with pytest.raises(TrainingDivergedError, match="finite network outputs"):
        learner.evaluate(half(learner))

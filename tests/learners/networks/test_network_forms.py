"""A network may come in any form: it is taken in exactly, handed back in its types, or rejected."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.distributed as dist
from support.networks.network_forms import (
    BAD,
    CLASSES,
    EXACT,
    EXAMPLE,
    TYPED,
    Untouched,
    compiled,
    network,
    new_weight_norm,
)  # fmt: skip
from support.selection import quick
from torch import nn
from torch.nn.utils import parametrize

from amc_compress.learners import (
    ChannelPruning,
    CodebookQuantization,
    DiscriminationAwarePruning,
    GroupLassoPruning,
    JointCompression,
    RemasteredPruning,
    TrainingConfig,
    UniformQuantization,
    WeightSparsification,
    cut_after,
    deep_compression,
    evaluate,
    group_finetune,
    joint_compression,
    sparse_training,
    trace,
    train,
)
from amc_compress.learners.networks.forms import detached
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.quantization import load_packed, save_packed
from amc_env import CompressionPlan, InputDataError
from amc_env.errors import ArgumentError, UntraceableModelError

FORMS = EXACT | TYPED
UNCHANGED = ("plain", "compiled in place", "keeps its output", "reaches inside")


def make_data(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(32, 3, 8, 8, generator=generator)
    return [(images, torch.randint(0, CLASSES, (32,), generator=generator))]


DATA, VALIDATION = make_data(1), make_data(2)
GIVEN = (EXAMPLE, DATA, VALIDATION)
ONE_EPOCH = TrainingConfig(epochs=1, precision="fp32", learning_rate=0.001)

LEARNERS = {
    "channels": lambda net: ChannelPruning(net, *GIVEN, precision="fp32"),
    "group-lasso": lambda net: GroupLassoPruning(net, *GIVEN, precision="fp32"),
    "remastered": lambda net: RemasteredPruning(net, *GIVEN, precision="fp32"),
    "discrimination": lambda net: DiscriminationAwarePruning(
        net, *GIVEN, precision="fp32", train=DATA, stages=1, block_steps=1, layer_steps=0
    ),
    "uniform": lambda net: UniformQuantization(
        net, *GIVEN, precision="fp32", weight_bits=(4, 8), activation_bits=16
    ),
    "codebook": lambda net: CodebookQuantization(
        net, *GIVEN, precision="fp32", weight_bits=(2, 4), activation_bits=16
    ),
    "sparse": lambda net: WeightSparsification(net, *GIVEN, precision="fp32"),
    "joint": lambda net: joint_compression(net, *GIVEN, precision="fp32"),
    "deep": lambda net: deep_compression(net, *GIVEN, precision="fp32", weight_bits=(2, 4)),
}


CONSTRUCTORS = {
    "trace": lambda net, example, calibration, validation: trace(net, example),
    "channels": ChannelPruning,
    "uniform": UniformQuantization,
    "sparse": WeightSparsification,
    "joint": joint_compression,
}


def prepare_without_data(net: object, learner: str) -> None:
    """Prepares a learner on data that must not be read."""

    def batches():
        raise AssertionError("the data were read before the network was looked at")
        yield

    given = (EXAMPLE, batches(), batches())
    CONSTRUCTORS[learner](net, *given)


def small_plan(learner) -> CompressionPlan:
    return CompressionPlan({d.key: d.choices[(len(d.choices) - 1) // 2] for d in learner.decisions})


def types_of(net: nn.Module) -> dict[str, torch.dtype]:
    return {k: v.dtype for k, v in net.state_dict().items() if v.is_floating_point()}


@pytest.fixture(scope="module")
def plain_learners():
    """Learner -> itself on the plain network, prepared when first asked for."""
    prepared: dict[str, tuple] = {}

    def get(name: str, net: nn.Module) -> tuple:
        if name not in prepared:
            learner = LEARNERS[name](net)
            plan = small_plan(learner)
            prepared[name] = learner, plan, learner.evaluate(plan)
        return prepared[name]

    return get


@pytest.mark.parametrize("form", FORMS)
def test_what_is_taken_in_computes_the_same_and_nothing_is_touched(form):
    base = network()
    model = FORMS[form](base)
    before = Untouched(model)
    taken = take_in(model)
    before.check()
    assert not taken.network.training
    assert set(types_of(taken.network).values()) == {torch.float32}
    assert not any(parametrize.is_parametrized(m) for m in taken.network.modules())
    assert bool(taken.form.notes) == (form not in UNCHANGED)
    # Not run where it would have to be compiled.
    single = network() if "compiled" in form else copy.deepcopy(base, detached(base)).float()
    with torch.no_grad():
        expected, found = single.eval()(DATA[0][0]), taken.network(DATA[0][0])
    if form == "bfloat16 of weight_norm":  # the norm is that of the bfloat16 weights
        assert torch.allclose(found, expected, atol=0.02)
    else:
        assert torch.equal(found, expected)


def test_a_distributed_network_is_unwrapped():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = network()
        taken = take_in(nn.parallel.DistributedDataParallel(net))
    finally:
        dist.destroy_process_group()
    assert list(taken.network.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_the_groups_of_its_plain_network_and_slices_in_its_types(form):
    model = FORMS[form](network())
    before = Untouched(model)
    traced = trace(model, EXAMPLE)
    sliced = traced.slice({g.name: torch.arange(8) for g in traced.graph.groups})
    before.check()
    prefix = {"keeps its output": "inner.", "reaches inside": "inner.module."}.get(form, "")
    assert [g.name for g in traced.graph.groups] == [f"{prefix}{n}" for n in ("0", "3.0", "5")]
    assert types_of(sliced) == types_of(traced.model)
    assert traced.model.training is sliced.training is True
    taken = take_in(model)
    assert types_of(taken.form.hand_back(taken.network)) == types_of(traced.model)


def test_the_slices_of_a_wrapped_network_have_its_present_weights():
    net = network()
    traced = trace(nn.DataParallel(net), EXAMPLE)
    with torch.no_grad():
        net[7].bias.fill_(3.0)
    assert torch.equal(traced.slice({})[7].bias, net[7].bias)


@pytest.mark.parametrize("learner", quick(LEARNERS, "channels", "uniform", "sparse"))
def test_every_learner_decides_and_evaluates_as_on_the_plain_network(learner, plain_learners):
    # All kinds of forms in one: wrapped, parametrised, half.
    inner = new_weight_norm(network()).bfloat16()
    model = nn.DataParallel(inner)
    reference, plan, accuracy = plain_learners(learner, take_in(model).network)
    before = Untouched(model)
    prepared = LEARNERS[learner](model)
    assert [d.key for d in prepared.decisions] == [d.key for d in reference.decisions]
    assert prepared.original_accuracy == reference.original_accuracy
    assert prepared.evaluate(plan) == accuracy
    small = prepared.compress(plan)
    before.check()
    assert len(prepared.notes) == 3
    quantized = learner in ("uniform", "codebook", "joint", "deep")
    expected = torch.float32 if quantized else torch.bfloat16
    assert set(types_of(small).values()) == {expected}
    assert not small.training
    known = reference.compress(plan).state_dict()
    for key, value in small.state_dict().items():
        assert torch.equal(value, known[key].to(value.dtype)), key
    result = prepared.finetune(small, DATA, config=ONE_EPOCH, teacher=model)
    before.check()
    assert set(types_of(small).values()) == {expected}
    assert abs(evaluate(small, VALIDATION, precision="fp32") - result.best_score) <= 0.04


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("learner", LEARNERS)
def test_every_form_with_every_learner(learner, form):
    model = FORMS[form](network())
    before = Untouched(model)
    prepared = LEARNERS[learner](model)
    reference = LEARNERS[learner](take_in(model).network)
    plan = small_plan(reference)
    assert prepared.decisions == reference.decisions
    assert prepared.evaluate(plan) == reference.evaluate(plan)
    small = prepared.compress(plan)
    before.check()
    known = reference.compress(plan).state_dict()
    for key, value in small.state_dict().items():
        assert torch.equal(value, known[key].to(value.dtype)), key


@pytest.mark.parametrize("form", BAD)
@pytest.mark.parametrize("learner", CONSTRUCTORS)
def test_a_form_that_cannot_be_taken_in_gets_its_sentence_before_any_work(learner, form):
    make, sentence = BAD[form]
    with pytest.raises(UntraceableModelError, match=sentence) as caught:
        prepare_without_data(make(network()), learner)
    assert re.fullmatch(r"Expected [^\n]*\.", str(caught.value))


def test_a_bad_teacher_gets_the_same_sentence():
    with pytest.raises(UntraceableModelError, match="TorchScript"):
        train(network(), DATA, VALIDATION, ONE_EPOCH, teacher=BAD["scripted"][0](network()))


@pytest.mark.parametrize("learner", ["channels", "uniform", "sparse", "joint"])
def test_the_meta_device_is_rejected(learner):
    net = network()
    before = Untouched(net)
    with pytest.raises(ValueError, match="Expected a device that computes, got 'meta'"):
        CONSTRUCTORS[learner](net, *GIVEN, device="meta")
    with pytest.raises(ValueError, match="Expected a device that computes"):
        evaluate(net, VALIDATION, device="meta")
    with pytest.raises(ValueError, match="Expected a device that computes"):
        train(net, DATA, VALIDATION, ONE_EPOCH, device="meta")
    before.check()


def test_a_random_parametrisation_and_a_tied_one_stay_as_they_are():
    class Noise(nn.Module):
        def forward(self, weight):
            return weight + torch.randn_like(weight)

    net = network()
    parametrize.register_parametrization(net[0], "weight", Noise())
    taken = take_in(net)
    assert parametrize.is_parametrized(taken.network[0])
    assert not taken.form.notes
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    for layer in tied[:2]:
        parametrize.register_parametrization(layer, "weight", nn.Tanh())
    assert tied[0].parametrizations.weight.original is tied[1].parametrizations.weight.original
    copied = take_in(tied).network
    assert copied[0].parametrizations.weight.original is copied[1].parametrizations.weight.original


def test_training_a_half_network_trains_it_in_float():
    net, single = network().half(), network().half().float()
    results = [train(n, DATA, VALIDATION, ONE_EPOCH) for n in (net, single)]
    assert results[0].best_score == results[1].best_score
    for key, value in single.state_dict().items():
        kept = value.half() if value.is_floating_point() else value
        assert torch.equal(net.state_dict()[key], kept), key
    with pytest.raises(InputDataError, match="label"):
        train(net, [(DATA[0][0], DATA[0][1] + 99)], VALIDATION, ONE_EPOCH)
    assert set(types_of(net).values()) == {torch.float16}


def test_training_a_wrapped_network_trains_what_is_inside():
    inner, single = network(), network()
    train(compiled(nn.DataParallel(inner)), DATA, VALIDATION, ONE_EPOCH)
    train(single, DATA, VALIDATION, ONE_EPOCH)
    assert all(map(torch.equal, inner.state_dict().values(), single.state_dict().values()))


def test_stages_and_sparse_training_hand_back_the_types_once():
    model = network().bfloat16()
    learner = ChannelPruning(model, *GIVEN, precision="fp32")
    plan = small_plan(learner)
    staged = group_finetune(
        lambda net: ChannelPruning(net, *GIVEN, precision="fp32"), model, plan, DATA,
        groups=2, epochs_between=1, config=ONE_EPOCH,
    )  # fmt: skip
    assert set(types_of(staged.network).values()) == {torch.bfloat16}
    with pytest.warns(UserWarning, match="faded"):
        faded = sparse_training(
            learner, plan, DATA, regulariser="group-lasso", config=ONE_EPOCH, epochs=1
        )
    assert set(types_of(cut_after(learner, faded, plan)).values()) == {torch.bfloat16}


def test_parts_joined_by_hand_hand_back_what_the_first_one_was_given():
    part = ChannelPruning(network().double(), *GIVEN, precision="fp32")
    joined = JointCompression([part], part)
    assert set(types_of(joined.compress(small_plan(joined))).values()) == {torch.float64}


def test_a_network_handed_back_in_half_can_be_evaluated_quantized_and_packed(tmp_path):
    model = network().half()
    learner = ChannelPruning(model, *GIVEN, precision="fp32")
    plan = small_plan(learner)
    small = learner.compress(plan)
    assert 0.0 <= learner.score(small, full=True) <= 1.0
    learner.recalibrate(small)
    assert set(types_of(small).values()) == {torch.float16}
    bits = UniformQuantization(model, *GIVEN, precision="fp32", activation_bits=16)
    quantized = bits.quantize(small, CompressionPlan.full(bits.decisions))
    assert set(types_of(quantized).values()) == {torch.float32}
    save_packed(small, tmp_path / "a.packed", kept=learner.kept_units(plan), example_input=EXAMPLE)
    loaded = load_packed(tmp_path / "a.packed", nn.DataParallel(model))
    for key, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.to(loaded.state_dict()[key].dtype)), key


def test_ids_stay_integers():
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.hidden = nn.Linear(8, 16)
            self.head = nn.Linear(16, CLASSES)

        def forward(self, ids):
            return self.head(self.hidden(self.table(ids).mean(1)).relu())

    ids = torch.randint(10, (8, 5))
    batches = [(ids, torch.zeros(8, dtype=torch.int64))]
    learner = ChannelPruning(Text(), ids[:1], batches, batches)
    assert learner.compress(small_plan(learner))(ids).shape == (8, CLASSES)


@pytest.mark.parametrize("learner", CONSTRUCTORS)
def test_what_is_no_network_is_rejected_by_type(learner):
    with pytest.raises(ArgumentError, match=r"Expected (model|net) to be a Module, got"):
        prepare_without_data(network().state_dict(), learner)
    with pytest.raises(UntraceableModelError, match="got OrderedDict; load or build the network"):
        take_in(network().state_dict())


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        ((EXAMPLE, None), "a network that runs on the example input"),
        ([1, 2], "a tensor, a tuple of arguments or a dictionary"),
        ({}, "a tensor, a tuple of arguments or a dictionary"),
    ],
)
def test_an_example_that_is_no_input_is_rejected(example, sentence):
    with pytest.raises(InputDataError, match=sentence):
        trace(network(), example)


def test_gradient_checkpointing_is_turned_off_in_the_copy():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net[0].gradient_checkpointing = True
    taken = take_in(net)
    assert taken.network[0].gradient_checkpointing is False
    assert net[0].gradient_checkpointing is True
    assert any("checkpointing turned off" in note for note in taken.form.notes)

"""A rewritten forward is called as the original was: by keyword, with other sizes and flags."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from support.networks.module_calls import (
    CALLS,
    Attention,
    Chosen,
    Net,
    Shuffle,
    on_image,
    on_tokens,
)
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.rewriting.symbolic_tracer import Tracer, tracing
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.errors import InputDataError

EXAMPLE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
OTHERS = [
    torch.rand(shape, generator=torch.Generator().manual_seed(2))
    for shape in ((3, 3, 16, 16), (2, 3, 24, 24), (1, 3, 8, 32), (2, 3, 12, 8))
]
STYLES = [(name, style) for name, (_, styles, _) in CALLS.items() for style in range(len(styles))]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@cache
def traced(name: str, style: int) -> TracedModel:
    torch.manual_seed(0)
    module, styles, _ = CALLS[name]
    return trace(Net(module(), styles[style]).eval(), EXAMPLE)


def sizes(model: TracedModel) -> dict[str, int]:
    return {group.name: group.size for group in model.graph.groups}


def halved(model: TracedModel, share: float | None = 0.5) -> dict[str, Tensor]:
    return random_cut(sizes(model), torch.Generator().manual_seed(3), share)


def halved_inside(model: TracedModel) -> dict[str, Tensor]:
    """Cuts the module alone: what it is called with stays as wide as it was."""
    return {name: units for name, units in halved(model).items() if name.startswith("module.")}


@pytest.mark.parametrize("name", CALLS)
def test_how_arguments_are_passed_does_not_change_the_groups(name: str) -> None:
    _, styles, inside = CALLS[name]
    found = [
        (sizes(traced(name, n)), dict(traced(name, n).graph.frozen)) for n in range(len(styles))
    ]
    assert all(other == found[0] for other in found[1:])
    assert inside.items() <= found[0][0].items()
    assert found[0][0]["before"] == 12


@pytest.mark.parametrize(("name", "style"), STYLES)
def test_a_slice_is_the_mask_on_all_sizes_that_the_original_takes(name: str, style: int) -> None:
    model = traced(name, style)
    for share in (0.5, None):
        kept = halved(model, share)
        small, masked = model.slice(kept), model.mask(kept)
        for training in (False, True):
            small.train(training)
            masked.train(training)
            for images in OTHERS:
                torch.manual_seed(0)
                got = small(images)
                torch.manual_seed(0)
                if training and name.startswith("branching"):
                    assert got.shape == (len(images), 5)  # dropout draws for other heads
                else:
                    assert difference(got, masked(images)) <= 1e-5


def test_a_rewritten_forward_has_the_signature_of_the_original() -> None:
    for name in ("attention", "branching", "keyword_only", "window", "shuffle", "rest"):
        model = traced(name, 0)
        small = model.slice(halved(model))
        new, old = type(small.module), type(model.model.module)
        assert new is not old
        assert issubclass(new, old)
        for one, other in zip(
            inspect.signature(new.forward).parameters.values(),
            inspect.signature(old.forward).parameters.values(),
            strict=True,
        ):
            assert (one.kind, one.default) == (other.kind, other.default)
            assert one.name == other.name or other.name == "self"


def test_a_forward_that_reads_all_its_numbers_off_tensors_stays_as_it_is() -> None:
    model = traced("mix_ffn", 0)
    small = model.slice(halved(model))
    assert type(small.module) is type(model.model.module)
    assert small.module.fc1.out_features == 12


class Held(Attention):
    """GPT-2's: the width of a part is an attribute, and nothing can follow the code."""

    def __init__(self) -> None:
        super().__init__()
        self.split_size, self.head_dim, self.number = 16, 4, 8

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = (
            part.view(*part.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).split(self.split_size, dim=2)
        )
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        found = found * self.number if found.shape[2] > 1 else found
        return self.proj(found.transpose(1, 2).flatten(2))


def test_a_width_in_an_attribute_is_that_of_what_stays() -> None:
    model = trace(Net(Held(), on_tokens()).eval(), EXAMPLE)
    assert sizes(model)["module.qkv"] == 4
    for share in (0.5, None):
        kept = halved(model, share)
        small, masked = model.slice(kept), model.mask(kept)
        held, heads = small.module, len(kept["module.qkv"])
        assert type(held) is Held
        assert (held.split_size, held.head_dim, held.number) == (4 * heads, 4, 8)
        for images in OTHERS:
            assert difference(small(images), masked(images)) <= 1e-5
    assert model.model.module.split_size == 16


def test_an_argument_that_no_code_decides_by_may_have_another_value() -> None:
    model = traced("attention", 2)
    kept = halved_inside(model)
    small, masked = model.slice(kept), model.mask(kept)
    tokens = torch.rand(2, 6, 16)
    mask = torch.randn(6, 6)
    for arguments in ({"attn_mask": mask}, {"is_causal": True}, {}):
        assert difference(
            small.module(tokens, **arguments), masked.module(tokens, **arguments)
        ) <= 1e-5  # fmt: skip
    model = traced("keyword_only", 0)
    kept = halved_inside(model)
    got = model.slice(kept).module(tokens, scale=0.3)
    assert difference(got, model.mask(kept).module(tokens, scale=0.3)) <= 1e-5


def test_an_argument_that_the_code_decides_by_is_named_where_it_is_another() -> None:
    model = traced("branching", 1)
    small = model.slice(halved(model))
    tokens = torch.rand(2, 6, 16)
    with pytest.raises(InputDataError, match=r"Expected attn_mask=None, is_causal=False in a call"):
        small.module(tokens, torch.zeros(6, 6))
    with pytest.raises(InputDataError, match=r"got .*is_causal=True; call it so"):
        small.module(tokens, is_causal=True)
    model = traced("shuffle", 2)
    small = model.slice(halved(model))
    with pytest.raises(InputDataError, match="Expected groups=4 in a call of Shuffle"):
        small.module(torch.rand(1, 16, 4, 4), groups=2)


def test_dropout_of_a_number_that_depends_on_the_mode_survives() -> None:
    model = traced("branching", 0)
    small = model.slice(halved(model))
    images = OTHERS[0]
    assert torch.equal(small(images), small(images))
    small.train()
    assert not torch.equal(small(images), small(images))


@pytest.mark.parametrize("name", ["branching_twice", "window", "rest", "keyword_only"])
def test_slices_with_several_forwards_are_copied_and_pickled(name: str) -> None:
    model = traced(name, 0)
    model.model.call = None  # a local function is nothing that pickles
    small = model.slice(halved(model))
    again = pickle.loads(pickle.dumps(small))
    twin = copy.deepcopy(small)
    for network in (small, again, twin):
        network.call = CALLS[name][1][0]
    model.model.call = CALLS[name][1][0]
    assert list(small.state_dict()) == list(model.model.state_dict())
    for images in OTHERS:
        assert torch.equal(again(images), small(images))
        assert torch.equal(twin(images), small(images))


def test_modules_that_a_cut_does_not_reach_keep_their_forward() -> None:
    model = traced("attention", 0)
    untouched = model.slice({"before": torch.arange(6)})
    assert type(untouched.module) is Attention
    assert type(model.slice({"module.qkv": torch.tensor([1])}).module) is not Attention


class TwoModules(nn.Module):
    """Ordinary layers, a module that can be rewritten, and one that cannot."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.good = Net(Attention(), on_tokens(attn_mask=None))
        self.stem = nn.Conv2d(3, 16, 1)
        self.shuffle = Shuffle()
        self.other = other
        self.head = nn.Linear(16, 5)
        self.call = on_image(groups=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y + self.call(self.shuffle, y)
        return self.good(x) + self.head((y + self.other(y)).mean((2, 3)))


class Faulty(Shuffle):
    """Once rewritten it fails: it looks at the code that calls it."""

    def forward(self, x: Tensor, groups: int = 4) -> Tensor:
        b, c, h, w = x.shape
        x = self.a(x)
        x = x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        name = type(self).forward.__code__.co_filename
        return self.b(x) if name.endswith(".py") else self.missing(x)


@pytest.mark.parametrize("other", [Chosen, Faulty])
def test_a_module_that_cannot_be_rewritten_loses_itself_only(other: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = trace(TwoModules(other()).eval(), EXAMPLE)
    found = sizes(model)
    assert {"good.before": 12, "good.module.qkv": 4, "shuffle.a": 16}.items() <= found.items()
    assert "stem" in found
    if other is Chosen:
        assert "other.a" not in found
        assert "the forward of 'other' cannot be rewritten" in model.graph.frozen["other.a"]
    kept = halved(model)
    for images in OTHERS:
        assert difference(model.slice(kept)(images), model.mask(kept)(images)) <= 1e-5


def test_a_rewrite_that_computes_something_else_is_dropped_with_its_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from amc_compress.learners.tracing.rewriting import rewrites

    apply = rewrites.Rewrite.apply

    def broken(self: rewrites.Rewrite, module: nn.Module, alive: Tensor, device: object) -> None:
        apply(self, module, alive, torch.device("cpu"))
        if isinstance(module, Shuffle):
            module.register_forward_hook(lambda m, args, out: out * 2)

    monkeypatch.setattr(rewrites.Rewrite, "apply", broken)
    torch.manual_seed(0)
    model = trace(TwoModules(nn.Identity()).eval(), EXAMPLE)
    found = sizes(model)
    assert {"good.before": 12, "good.module.qkv": 4}.items() <= found.items()
    assert "shuffle.a" not in found
    assert "the forward of 'shuffle' cannot be rewritten" in model.graph.frozen["shuffle.a"]


class Packed(OrderedDict[str, Tensor]):
    """What libraries return: a dictionary whose entries are attributes too."""

    @property
    def image(self) -> Tensor:
        return self["image"]


class Pair(NamedTuple):
    image: Tensor
    others: list[Tensor]


def _appended(out: list[Tensor]) -> Tensor:
    out.append(out[0])
    return out[1]


def _updated(out: dict[str, Any]) -> Tensor:
    out["others"].append(out.pop("image"))
    return sum(out["others"])


# How a module packs its output, what its caller does with that, and whether a graph can do so too.
PACKINGS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], bool]] = {
    "list": (lambda x: [x], _appended, True),
    "dictionary": (lambda x: {"image": x, "others": [x]}, _updated, True),
    "named tuple": (lambda x: Pair(x, [x]), lambda out: out.image + _appended(out.others), True),
    "own class": (lambda x: Packed(image=x), lambda out: out.image, False),
    "own class inside": (lambda x: (1, [Packed(image=x)]), lambda out: out[1][0].image, False),
}


class Packing(Shuffle):
    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, x: Tensor, groups: int = 4) -> Any:
        return self.pack(super().forward(x, groups))


@pytest.mark.parametrize("name", PACKINGS)
def test_a_module_may_pack_its_output_as_it_likes(name: str) -> None:
    pack, use, can_be_rewritten = PACKINGS[name]
    torch.manual_seed(0)
    model = trace(Net(Packing(pack), lambda module, x: use(module(x))).eval(), EXAMPLE)
    assert ("module.a" in sizes(model)) == can_be_rewritten
    assert "before" in sizes(model)
    kept = halved(model)
    for images in OTHERS:
        assert difference(model.slice(kept)(images), model.mask(kept)(images)) <= 1e-5
    if not can_be_rewritten:
        assert "it returns a Packed" in model.graph.frozen["module.a"]


def test_what_pytorch_lists_of_its_functions_is_not_what_a_trace_replaces() -> None:
    listed = torch.overrides.get_ignored_functions
    for function in (listed, torch.overrides._get_overridable_functions):
        function.cache_clear()  # as in a new process
    with tracing(cast(Tracer, SimpleNamespace(looks_inside=False))):
        assert torch.arange not in listed()
    assert torch.arange in listed()

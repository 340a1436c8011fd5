"""Networks that are called with more than one tensor, and return more than one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.costs import counted_flops
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tasks.inputs import Call, Inputs, ask, to_inputs
from amc_compress.learners.tracing.examples.variations import first_sample, noise, with_noise
from amc_compress.learners.tracing.probing import find_probes
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.errors import InputDataError

WORDS = 11


def groups(traced: TracedModel) -> dict[str, int]:
    return {group.name: group.size for group in traced.graph.groups}


def assert_right(traced: TracedModel, *given: Any) -> None:
    full = traced.graph.full()
    for seed, inputs in enumerate(map(to_inputs, given)):
        kept = random_cut(groups(traced), torch.Generator().manual_seed(seed), None)
        small = traced.slice(kept)
        with torch.no_grad():
            assert difference(ask(small, inputs), ask(traced.mask(kept), inputs)) <= 1e-4
        left = full | {name: float(len(units)) for name, units in kept.items()}
        one = first_sample(to_inputs(given[0]))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ask(small, one)
        claimed = sum(layer.macs(left) for layer in traced.graph.layers)
        assert 2 * claimed == counter.get_total_flops()


@dataclass
class Answer:
    logits: Tensor
    others: dict[str, Any]


class Reader(nn.Module):
    """Tokens and a mask in, by name; an object with a nested output out. Unknown tokens raise."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up = nn.Embedding(WORDS, 8), nn.Linear(8, 12)
        self.norm, self.down, self.head = nn.BatchNorm1d(12), nn.Linear(12, 6), nn.Linear(6, 3)
        self.tags = nn.Linear(12, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Answer:
        t = self.up(self.words(ids)).relu() * scale
        t = self.norm(t.transpose(1, 2)).transpose(1, 2)
        weights = torch.ones_like(ids) if mask is None else mask
        pooled = (t * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        logits = self.head(self.down(pooled).relu())
        return Answer(logits, {"tags": [self.tags(t)], "pooled": (pooled.mean(1),)})


def sentences(n: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, WORDS, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["dictionary", "tuple", "call"])
def test_tokens_and_masks_by_name_or_position(kind: str) -> None:
    torch.manual_seed(0)
    net, mask = Reader().eval(), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])

    def inputs(n: int, seed: int) -> Inputs:
        ids = sentences(n, 5, seed)
        arguments = {"ids": ids, "mask": mask[:n]}
        if kind == "tuple":
            return tuple(arguments.values())
        return arguments if kind == "dictionary" else Call((ids,), {"mask": mask[:n], "scale": 0.5})

    traced = trace(net, inputs(2, 0))
    # The mean over the channels is an output: it keeps what it runs over.
    assert groups(traced) == {"down": 6}
    assert_right(traced, inputs(2, 1), inputs(1, 2))


def test_a_network_of_two_images_and_a_number() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))
            self.beside, self.head = nn.Linear(2, 6), nn.Linear(12, 3)

        def forward(self, images: dict[str, Tensor], facts: tuple[Tensor, float]) -> Tensor:
            both = [self.body(images[key]).mean((2, 3)) for key in ("left", "right")]
            return self.head(torch.cat((both[0] - both[1], self.beside(facts[0]) * facts[1]), 1))

    torch.manual_seed(0)
    net = Pair().eval()

    def inputs(n: int, side: int = 8) -> tuple[Any, ...]:
        images = {key: torch.randn(n, 3, side, side) for key in ("left", "right")}
        return images, (torch.randn(n, 2), 0.5)

    traced = trace(net, inputs(2))
    assert groups(traced) == {"body.0": 8, "body.2": 6, "beside": 6}
    assert_right(traced, inputs(3), inputs(1))


def test_a_list_of_images_of_different_sizes_has_an_item_per_sample() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            return [{"map": self.head(self.body(x[None]).relu())} for x in images]

    torch.manual_seed(0)
    images = [torch.randn(3, 8, 8), torch.randn(3, 10, 9)]
    traced = trace(Listed().eval(), (images,))
    assert groups(traced) == {"body": 8}
    assert_right(traced, (images[:1],), (images,))


def test_half_of_the_inputs_may_be_without_a_batch() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
            return self.down(mixing @ self.up(x).relu())

    torch.manual_seed(0)
    given = torch.randn(2, 5, 4), torch.randn(5, 5)
    traced = trace(Shifted().eval(), given)
    assert groups(traced) == {"up": 8}
    assert_right(traced, given)


def test_an_input_that_does_not_fit_is_named_by_its_shapes() -> None:
    with pytest.raises(InputDataError, match=r"\(2, 5\) torch.int64, \(2, 4\) torch.int64"):
        trace(Reader().eval(), {"ids": sentences(2, 5), "mask": sentences(2, 4)})


# ---------------------------------------------------------------------- other inputs


def test_other_tokens_are_tokens_that_were_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[3, 7, 7, 90, 8, 9, 1, 2], [4, 4, 5, 6, 7, 8, 9, 0]])
    for _ in range(5):
        other = noise(ids, generator)
        assert torch.equal(other.sort(1).values, ids.sort(1).values)
    assert not torch.equal(noise(ids, generator), ids)


def test_masks_stay_and_numbers_are_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    mask, flags = torch.tensor([[1, 1, 0]]), torch.tensor([True, False, True])
    numbers, single = torch.ones(2, 3), torch.tensor(2.0)
    other = noise({"mask": mask, "rest": (flags, numbers, single)}, generator)
    assert torch.equal(other["mask"], mask)
    assert torch.equal(other["rest"][0], flags)
    assert float(other["rest"][1].std()) > 0.1
    assert other["rest"][2] == 2.0


def test_more_samples_lie_behind_the_first() -> None:
    shared = torch.randn(3, 3)
    call = Call((torch.randn(2, 4), [torch.randn(1), torch.randn(2)]), {"shared": shared, "k": 3})
    longer = with_noise(call, 2, torch.Generator().manual_seed(0))
    assert longer.args[0].shape == (6, 4)
    assert torch.equal(longer.args[0][:2], call.args[0])
    assert [len(x) for x in longer.args[1]] == [1, 2, 1, 2, 1, 2]
    assert longer.kwargs["shared"] is shared
    assert longer.kwargs["k"] == 3


def test_flops_of_a_plain_network_have_not_changed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    image = torch.randn(1, 3, 8, 8)
    graph = trace(net, image).graph
    assert 2 * sum(x.macs(graph.full()) for x in graph.layers) == counted_flops(net, image)


# ---------------------------------------------------------------------- large images


class Pooled(nn.Module):
    """Takes images of any size; two convolutions that are added are tied."""

    def __init__(self, fixed: int = 0) -> None:
        super().__init__()
        self.fixed = fixed
        self.stem = nn.Conv2d(3, 8, 3, stride=4)
        self.one, self.other = nn.Conv2d(8, 6, 3, stride=2), nn.Conv2d(8, 6, 3, stride=2)
        self.head = nn.Linear(6, 4)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed and x.shape[-1] != self.fixed:
            raise ValueError("another size")
        self.sizes.append((len(x), x.shape[-1]))
        x = self.stem(x).relu()
        logits: Tensor = self.head((self.one(x) + self.other(x)).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("side", "fixed", "usual"),
    [(64, 0, (2, 64)), (224, 0, (2, 64)), (224, 224, (1, 224))],
)
def test_groups_are_proved_alone_on_small_images(
    side: int, fixed: int, usual: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(1, 3, side, side)
    found = find_probes(Pooled(fixed).eval(), inputs, torch.Generator().manual_seed(0))
    assert [tuple(case.inputs.shape[::3]) for case in found.alone] == [usual]  # type: ignore[union-attr]
    shapes = {tuple(case.inputs.shape[::3]) for case in found.together}  # type: ignore[union-attr]
    assert ((2, side) in shapes) == (side == 224)
    traced = trace(Pooled(fixed), inputs)
    assert sorted(groups(traced).values()) == [6, 8]
    assert_right(traced, inputs)

"""Functions that would make a copy of a network use the original."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.tracing.traced_model import trace
from amc_env.errors import UntraceableModelError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 4)
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))

    def note(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen["x"] = output


def by_closure(net: Net) -> None:
    net.body[0].register_forward_hook(lambda m, i, o: net.seen.__setitem__("x", o))


def by_container(net: Net) -> None:
    seen = net.seen
    net.body[0].register_forward_hook(lambda m, i, o: seen.update(x=o))


def by_default(net: Net) -> None:
    def hook(module: nn.Module, inputs: Any, owner: nn.Module = net) -> None:
        owner.seen.clear()

    net.body[0].register_forward_pre_hook(hook)


def by_forward(net: Net) -> None:
    net.body.forward = lambda x: net.body[2](net.body[0](x))


def by_attribute(net: Net) -> None:
    head = net.head
    net.read = lambda x: head(x)


@pytest.mark.parametrize(
    ("attach", "sentence"),
    [
        (by_closure, "a forward hook of 'body.0' .* by 'net'"),
        (by_container, "a forward hook of 'body.0' .* by 'seen'"),
        (by_default, "a forward pre hook of 'body.0' .* by 'owner'"),
        (by_forward, "the attribute 'forward' of 'body' .* by 'net'"),
        (by_attribute, "the attribute 'read' is .* by 'head'"),
    ],
)
def test_a_function_that_holds_on_to_the_network_is_named(attach, sentence) -> None:
    net = Net().eval()
    attach(net)
    with pytest.raises(UntraceableModelError, match=sentence):
        trace(net, torch.rand(1, 3, 8, 8))


def test_methods_partials_and_functions_of_other_things_are_taken() -> None:
    net, outside = Net().eval(), {}
    net.body[0].register_forward_hook(net.note)
    net.body[1].register_forward_hook(functools.partial(Net.note, net))
    net.body[2].register_forward_hook(lambda m, i, o: outside.update(x=o.shape))
    net.activation = torch.relu
    traced = trace(net, torch.rand(1, 3, 8, 8))
    assert [group.size for group in traced.graph.groups] == [8, 8]
    net.seen.clear()
    small = traced.slice({"body.0": torch.arange(3)})
    small(torch.rand(2, 3, 8, 8))
    assert not net.seen
    assert small.seen["x"].shape[0] == 2

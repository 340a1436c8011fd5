"""Architectures of well-known libraries: what can be cut, proved and counted of each.

``PYTHONPATH=.names:tests python tests/learners/tracing/architectures/test_sweep.py [NAME ...]``
prints the table of docs/networks.md.
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass

import pytest
import torch
from support.networks.zoo import ARCHITECTURES, build
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amc_compress.learners.channel_pruning.decisions import keep_ratio_decisions
from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tasks.inputs import Inputs, ask, to_inputs
from amc_compress.learners.tracing.proof import random_cut, randomised
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.graph import EMBEDDING, HEADS, MLP

ROUND_TO = 8


@dataclass(frozen=True)
class Outcome:
    """What the sweep found out about one architecture.

    Args:
        groups: Channel groups that can be cut.
        lowest: Share of the multiply-adds that the smallest network has, as counted.
        gap: Largest distance of a claimed share from the counted one, of all cuts tried.
        deviation: Largest relative difference of a sliced network from a masked one.
        seconds: Processor time of the trace with its proofs.
        roles: Sizes of the groups of each role but that of plain channels, in network order.
    """

    groups: int
    lowest: float
    gap: float
    deviation: float
    seconds: float
    roles: dict[str, tuple[int, ...]]


def counted(network: nn.Module, inputs: Inputs) -> int:
    """FLOPs by PyTorch's own counter, with attention as the products that it is."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
        ):
            ask(network, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def claimed(traced: TracedModel, kept: dict[str, Tensor]) -> float:
    at = traced.graph.full() | {name: float(len(units)) for name, units in kept.items()}
    return sum(layer.macs(at) for layer in traced.graph.layers)


def examine(name: str) -> Outcome:
    net, example, entry = build(name)
    randomised(net, torch.Generator().manual_seed(5))  # as trained: no channel like another
    net.requires_grad_(False)  # the counter follows gradients, and fails on views of tables
    inputs = to_inputs(example)
    start = time.process_time()
    traced = trace(net, example, part=entry.part)
    seconds = time.process_time() - start
    sizes = {group.name: group.size for group in traced.graph.groups}
    whole, least = counted(net, inputs), {}
    for decision in keep_ratio_decisions(traced.graph, ROUND_TO, 0.0) if sizes else ():
        least[decision.target] = torch.arange(decision.units(decision.choices[0]))
    gap = deviation = 0.0
    fewest = {group.name: group.least for group in traced.graph.groups}
    generator = torch.Generator().manual_seed(0)
    cuts = [random_cut(sizes, generator, fraction, fewest) for fraction in (0.5, None)]
    for kept in (*cuts, least) if sizes else ():
        small = traced.slice(kept)
        share = counted(small, inputs) / whole
        gap = max(gap, abs(share - claimed(traced, kept) / claimed(traced, {})))
        if kept is not least:
            deviation = max(deviation, compared(small, traced.mask(kept), inputs, entry.part))
    lowest = counted(traced.slice(least), inputs) / whole
    roles = {
        role: tuple(group.size for group in traced.graph.groups if group.role == role)
        for role in (HEADS, MLP, EMBEDDING)
    }
    return Outcome(len(sizes), lowest, gap, deviation, seconds, roles)


def compared(small: nn.Module, masked: nn.Module, inputs: Inputs, part: str | None) -> float:
    """Difference of the outputs; of a part where the rest sorts and selects."""
    seen: list[object] = []
    if part is not None:
        for network in (small, masked):
            network.get_submodule(part).register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        outputs = [ask(copy.deepcopy(network), inputs) for network in (small, masked)]
    first, second = seen if part is not None else outputs
    return difference(first, second)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_cut_as_far_as_it_was_and_rightly(name: str) -> None:
    found = examine(name)
    assert found.lowest <= ARCHITECTURES[name].reachable + 5e-4
    assert found.deviation <= 1e-4
    assert found.gap <= 1e-4
    assert ARCHITECTURES[name].roles in (None, found.roles)


def main(names: list[str]) -> None:
    print(
        "| network | groups | lowest share | claimed - counted | sliced - masked | CPU s | roles |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names or ARCHITECTURES:
        try:
            row = examine(name)
        except (Exception, pytest.skip.Exception) as error:
            print(f"| {name} | {type(error).__name__}: {str(error)[:200]} |", flush=True)
            continue
        print(
            f"| {name} | {row.groups} | {row.lowest:.3f} | {row.gap:.0e} | {row.deviation:.0e} |"
            f" {row.seconds:.0f} | {row.roles} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])

"""Random networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.costs import counted_flops, counted_parameters, graph_flops, graph_parameters
from support.selection import examples
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import trace

KINDS = (
    "conv", "grouped", "depthwise", "norm", "group_norm", "act", "add", "cat", "pool", "gate",
    "shuffle", "pad", "half", "scale",
)  # fmt: skip


class RandomNetwork(nn.Module):
    """A chain of operations, each on one of the earlier tensors of the same size.

    Args:
        program: ``(kind, number)`` pairs; the number chooses widths and earlier tensors.
    """

    def __init__(self, program: list[tuple[str, int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.layers = nn.ModuleDict()
        self.program = program
        widths = [8]
        for step, (kind, number) in enumerate(program):
            widths.append(self._make(str(step), kind, number, widths))
        self.widths = widths
        self.head = nn.Linear(widths[-1], 4)
        self.head2 = nn.Linear(widths[len(widths) // 2], 3)

    def _make(self, key: str, kind: str, number: int, widths: list[int]) -> int:
        width = widths[-1]
        if kind == "conv":
            out = (4, 6, 8)[number % 3]
            self.layers[key] = nn.Conv2d(width, out, 1 + 2 * (number % 2), 1, number % 2)
            return out
        if kind == "grouped" and width % 2 == 0:
            self.layers[key] = nn.Conv2d(width, 8, 3, 1, 1, groups=2, bias=False)
            return 8
        if kind == "depthwise":
            self.layers[key] = nn.Conv2d(width, width * (1 + number % 2), 3, 1, 1, groups=width)
            return width * (1 + number % 2)
        if kind == "norm":
            self.layers[key] = nn.BatchNorm2d(width)
        elif kind == "group_norm" and width % 2 == 0:
            self.layers[key] = nn.GroupNorm(width // 2, width)
        elif kind == "gate":
            self.layers[key] = nn.Sequential(
                nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
            )
        elif kind == "scale":
            self.layers[key] = nn.PReLU(width)
        return self._width(kind, number, widths)

    @staticmethod
    def _width(kind: str, number: int, widths: list[int]) -> int:
        width = widths[-1]
        if kind == "cat":
            return width + widths[number % len(widths)]
        if kind == "pad":
            return width + 2 + number % 2
        return width // 2 if kind == "half" and width > 2 else width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        past = [self.stem(x)]
        for step, (kind, number) in enumerate(self.program):
            past.append(self._run(step, kind, number, past))
        middle = past[len(past) // 2]
        return self.head(past[-1].mean((2, 3))), self.head2(middle.amax((2, 3)))

    def _run(self, step: int, kind: str, number: int, past: list[Tensor]) -> Tensor:
        # Widths are those of the construction: fx cannot follow decisions about shapes.
        x, width = past[-1], self.widths[step]
        if str(step) in self.layers:
            y = self.layers[str(step)](x)
            return x * y.mean((2, 3), keepdim=True) if kind == "gate" else y
        earlier = number % len(past)
        other, same = past[earlier], self.widths[earlier] == width
        simple: dict[str, Any] = {
            "act": lambda: F.relu(x),
            "add": lambda: x + other if same else x,
            "cat": lambda: torch.cat((other, x), 1),
            "pool": lambda: F.avg_pool2d(x, 3, 1, 1),
            "shuffle": lambda: F.channel_shuffle(x, 2) if width % 2 == 0 else x,
            "pad": lambda: F.pad(x, (0, 0, 0, 0, number % 2, 2)),
            "half": lambda: (
                (x.chunk(2, 1)[0] if width % 2 == 0 else x[:, : width // 2]) if width > 2 else x
            ),
        }
        return simple[kind]() if kind in simple else x


@examples(30, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 11)), min_size=1, max_size=9),
    st.integers(0, 1000),
)
def test_slices_equal_masks_and_costs_are_exact(program: list[tuple[str, int]], seed: int) -> None:
    torch.manual_seed(seed)
    net = RandomNetwork(program).eval()
    example = torch.randn(1, 3, 6, 6)
    traced = trace(net, example)
    sizes = {group.name: group.size for group in traced.graph.groups}
    kept = random_cut(sizes, torch.Generator().manual_seed(seed), None)
    small = traced.slice(kept)
    batch = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert difference(small(batch), traced.mask(kept)(batch)) <= 1e-5
    counts = {name: float(len(units)) for name, units in kept.items()}
    assert graph_flops(traced.graph, counts) == counted_flops(small, example)
    assert graph_parameters(traced.graph, counts) == counted_parameters(small)
    # Nothing in these programs needs to stay whole but the heads.
    unproved = [reason for reason in traced.graph.frozen.values() if "cut" in reason]
    assert not unproved

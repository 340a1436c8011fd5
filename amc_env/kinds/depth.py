"""The kind of decision that leaves out branches: a network's depth."""

from __future__ import annotations

from collections.abc import Sequence

from amc_env.graph import Branch, LayerGraph, LayerSpec
from amc_env.kinds.kind import Bar, DecisionKind, Panel, Quantity, register_kind


class _Depth(DecisionKind):
    """Whether a branch is there."""

    def check(self, choices: Sequence[float], key: str) -> None:
        if not {0.0, 1.0}.issuperset(choices):
            raise ValueError(
                f"Expected 0 (left out) and 1 (there) for {key}, got the choices {choices}."
            )

    def unchanged(self, choices: Sequence[float]) -> float:
        return 1.0

    def layers(self, graph: LayerGraph, target: str) -> tuple[str, ...]:
        return graph.branch(target).layers

    def touched(self, graph: LayerGraph, target: str) -> list[LayerSpec]:
        return self.own_layers(graph, target)  # a channel group may have the name of a branch

    def is_within(self, graph: LayerGraph, target: str, branch: Branch) -> bool:
        own = graph.branch(target)
        order = [x.name for x in graph.branches]  # an outer one comes before those within it
        is_later = order.index(branch.name) < order.index(target)
        return is_later and set(own.layers).issubset(branch.layers)

    def text(self, value: float) -> str:
        return "there" if value else "out"


DEPTH = DecisionKind.DEPTH = register_kind(
    _Depth(
        "depth",
        "whether a branch is there",
        Quantity.PRESENCE,
        is_share=True,
        observed="1 if all branches around the layer are there so far, 0 if one is left out",
        costs=("depth",),
        panel=Panel("branch there", (Bar("depth", "depth", "#7a5195"),)),
        caption="Residual branches that are there (blue) and that are left out (grey).",
    )
)

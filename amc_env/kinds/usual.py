"""The kinds of decisions that the built-in costs count."""

from __future__ import annotations

from collections.abc import Sequence

from amc_env.graph import LayerGraph, LayerSpec
from amc_env.kinds.kind import OFF_BITS, Bar, DecisionKind, Panel, Quantity, register_kind

_BIT_COSTS = ("bops", "mean_bits")
_BIT_PANEL = Panel(
    "bits",
    (Bar("weight_bits", "weights", "#2a6fbb"), Bar("activation_bits", "input", "#e08a2e")),
    top=8.0,
)


class _Share(DecisionKind):
    """A share of units that are counted one by one."""

    def text(self, value: float) -> str:
        return f"{value:.3f}"

    def kept(self, value: float, size: int) -> str:
        return f"{round(value * size)}/{size}"


class _Density(_Share):
    """A share of the weights of one layer."""

    def check(self, choices: Sequence[float], key: str) -> None:
        if choices[0] <= 0.0 or choices[-1] > 1.0:
            raise ValueError(
                f"Expected densities above 0 and up to 1 for {key}, got the choices {choices}."
            )

    def unchanged(self, choices: Sequence[float]) -> float:
        return 1.0  # the grid may end below

    def touched(self, graph: LayerGraph, target: str) -> list[LayerSpec]:
        # A group may have the name of a layer, and all that its width touches is not made sparse.
        return self.own_layers(graph, target)


class _Bits(DecisionKind):
    """Bits of the numbers of one layer."""

    def check(self, choices: Sequence[float], key: str) -> None:
        if choices[0] < 1.0 or choices[-1] > OFF_BITS:
            raise ValueError(
                f"Expected bits from 1 to {OFF_BITS} ({OFF_BITS} means float32) for {key}, got the "
                f"choices {choices}."
            )

    def text(self, value: float) -> str:
        return "off" if value == OFF_BITS else super().text(value)


DecisionKind.KEEP_RATIO = register_kind(
    _Share(
        "keep_ratio",
        "a keep ratio",
        Quantity.WIDTH,
        is_share=True,
        interleaves=False,
    )
)
DecisionKind.DENSITY = register_kind(
    _Density(
        "density",
        "a density",
        Quantity.DENSITY,
        is_share=True,
        interleaves=False,
        costs=("density",),
    )
)
DecisionKind.WEIGHT_BITS = register_kind(
    _Bits(
        "weight_bits",
        "a weight bit-width",
        Quantity.WEIGHT_BITS,
        costs=_BIT_COSTS,
        panel=_BIT_PANEL,
    )
)
DecisionKind.ACTIVATION_BITS = register_kind(
    _Bits(
        "activation_bits",
        "an activation bit-width",
        Quantity.ACTIVATION_BITS,
        costs=_BIT_COSTS,
        panel=_BIT_PANEL,
    )
)

USUAL_KINDS = (
    DecisionKind.KEEP_RATIO,
    DecisionKind.DENSITY,
    DecisionKind.WEIGHT_BITS,
    DecisionKind.ACTIVATION_BITS,
)
"""Kinds with an entry in every observation, in its order."""

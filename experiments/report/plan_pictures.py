"""The report's pictures of a plan: channels and weights that stay, and bits of every layer."""

from __future__ import annotations

import math

from amc_compress.config.run_config import RunConfig
from amc_compress.report.charts import LayerRows
from amc_compress.runs.folder import RunFolder
from amc_env import KINDS, CompressionPlan, DecisionKind


def plan_pictures(folder: RunFolder) -> list[tuple[LayerRows, str]]:
    """Returns the pictures of a plan, each with a note."""
    results = folder.results("evaluate")
    sizes: dict[str, int] = results["group_sizes"]
    plan = folder.read_plan()
    kept = plan.values_of(DecisionKind.KEEP_RATIO)
    roles: dict[str, str] = results.get("group_roles", {})  # of what is more than channels
    channels = [
        (
            f"{name} ({roles[name]})" if name in roles else name,
            round(ratio * sizes[name]),
            sizes[name],
        )
        for name, ratio in kept.items()
        if name in sizes  # else it went with a branch
    ]
    weights = [(name, *counts) for name, counts in results.get("densities", {}).items()]
    bits = [(name, b["weights"], b["activations"]) for name, b in results.get("bits", {}).items()]
    pictures = (
        (
            LayerRows("kept", channels, "channels kept per group of layers"),
            "Channels that stay (blue) of those that were there (grey). One row is one group of "
            "layers whose channels can only be cut together, named after its first layer."
            + (" Rows of heads count heads." if "heads" in roles.values() else ""),
        ),
        (
            LayerRows("kept", weights, "weights kept per layer", "weights"),
            "Weights that are not zero (blue) of those that there are places for (grey).",
        ),
        (
            LayerRows("bits", bits, "bits of weights and activations per layer"),
            _bit_note(folder.config),
        ),
        *pictures_of_kinds(plan),
    )
    return [(picture, note) for picture, note in pictures if picture.rows]


def pictures_of_kinds(plan: CompressionPlan) -> list[tuple[LayerRows, str]]:
    """Returns the pictures of the kinds that have a caption of their own, with it as their note.

    A row is as long as the value, of the largest that the kind has, or that the plan has if there
    is no largest one.
    """
    pictures = []
    for kind in KINDS.values():
        values = plan.values_of(kind) if kind.caption else {}
        top = kind.range[1]
        top = max(values.values(), default=0.0) if top == math.inf else top
        rows = [(name, _short(value), _short(top)) for name, value in values.items()]
        unit = kind.name.replace("_", " ")
        pictures.append((LayerRows("kept", rows, f"{unit} per layer", unit), kind.caption))
    return pictures


def _short(number: float) -> float:
    return round(number) if number == round(number) else round(number, 4)


def _bit_note(config: RunConfig) -> str:
    note = (
        "Bits per weight (blue) and per number that the layer reads (orange), of 8; one row is one "
        "layer."
    )
    if config.first_last_bits is not None:
        note += (
            f" The first and the last layer have {config.first_last_bits} by --first-last-bits, "
            f"whatever the plan says, unless it is a table."
        )
    return note

"""The report's pictures of a plan: channels and weights that stay, and bits of every layer."""

from __future__ import annotations

from amc_compress.config.run_config import RunConfig
from amc_compress.report.charts import LayerRows
from amc_compress.runs.folder import RunFolder
from amc_env import DecisionKind


def plan_pictures(folder: RunFolder) -> list[tuple[LayerRows, str]]:
    """Returns the pictures of a plan, each with a note."""
    results = folder.results("evaluate")
    sizes: dict[str, int] = results["group_sizes"]
    suffix = f":{DecisionKind.KEEP_RATIO.value}"
    kept = {k.removesuffix(suffix): r for k, r in folder.read_plan().items() if k.endswith(suffix)}
    channels = [(name, round(ratio * sizes[name]), sizes[name]) for name, ratio in kept.items()]
    weights = [(name, *counts) for name, counts in results.get("densities", {}).items()]
    bits = [(name, b["weights"], b["activations"]) for name, b in results.get("bits", {}).items()]
    pictures = (
        (
            LayerRows("kept", channels, "channels kept per group of layers"),
            "Channels that stay (blue) of those that were there (grey). One row is one group of "
            "layers whose channels can only be cut together, named after its first layer.",
        ),
        (
            LayerRows("kept", weights, "weights kept per layer", "weights"),
            "Weights that are not zero (blue) of those that there are places for (grey).",
        ),
        (
            LayerRows("bits", bits, "bits of weights and activations per layer"),
            _bit_note(folder.config),
        ),
    )
    return [(picture, note) for picture, note in pictures if picture.rows]


def _bit_note(config: RunConfig) -> str:
    note = (
        "Bits per weight (blue) and per number that the layer reads (orange), of 8; one row is one "
        "layer."
    )
    if config.first_last_bits is not None:
        note += (
            f" First and last layer have {config.first_last_bits} by --first-last-bits, whatever "
            f"the plan says."
        )
    return note

"""The report's pictures of a plan: channels and weights that stay, and bits of every layer."""

from __future__ import annotations

from typing import Any

from amc_compress.report.charts import Bar, BitRow, LayerRows
from amc_compress.runs.folder import RunFolder
from amc_env import DecisionKind


def plan_pictures(folder: RunFolder) -> tuple[list[LayerRows], list[str]]:
    """Returns the pictures of a plan, and a note on each."""
    pictures, notes = [], []
    if bars := channel_bars(folder):
        pictures.append(LayerRows("kept", bars, "channels kept per group of layers"))
        notes.append(
            "Channels that stay (blue) of those that were there (grey). One row is one group of "
            "layers whose channels can only be cut together, named after its first layer."
        )
    if bars := weight_bars(folder):
        pictures.append(LayerRows("kept", bars, "weights kept per layer", "weights"))
        notes.append("Weights that are not zero (blue) of those that there are places for (grey).")
    if rows := bit_rows(folder):
        pictures.append(LayerRows("bits", rows, "bits of weights and activations per layer"))
        notes.append(_bit_note(folder))
    return pictures, notes


def channel_bars(folder: RunFolder) -> list[Bar]:
    """Returns kept and original channels of every group that the plan decides about."""
    sizes: dict[str, int] = folder.results("evaluate")["group_sizes"]
    bars = []
    for key, value in folder.read_plan().items():
        target, kind = key.rsplit(":", 1)
        if kind == DecisionKind.KEEP_RATIO:
            bars.append(Bar(target, round(value * sizes[target]), sizes[target]))
    return bars


def weight_bars(folder: RunFolder) -> list[Bar]:
    """Returns kept and original weights of every sparse layer; empty where none is."""
    layers: dict[str, list[int]] = folder.results("evaluate").get("densities", {})
    return [Bar(name, left, size) for name, (left, size) in layers.items()]


def bit_rows(folder: RunFolder) -> list[BitRow]:
    """Returns the bits of every quantized layer, decided or fixed; empty where none is."""
    bits: dict[str, Any] = folder.results("evaluate").get("bits", {})
    return [BitRow(name, b["weights"], b["activations"]) for name, b in bits.items()]


def _bit_note(folder: RunFolder) -> str:
    config = folder.config
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

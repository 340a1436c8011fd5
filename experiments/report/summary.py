"""``summary.json`` as a table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amc_compress.runs.storage.stored_state import SUMMARY, with_scores
from amc_env.costs.storage import FLOAT_BITS
from amc_env.files import read_document
from amc_env.scores.metric import Metric


def read_summary(directory: Path) -> dict[str, Any]:
    """Reads ``summary.json``.

    Raises:
        RunFolderError: If it is missing or damaged.
    """
    path = directory / "summary.json"
    summary: dict[str, Any] = read_document(
        path,
        f"`amc export {directory}` makes it again",
        missing=f"{path} is missing: the run is not finished. Continue it with `amc compress ... "
        f"--resume`, or run `amc finetune` and `amc export` first.",
        shape=SUMMARY,
        renewed=with_scores,
    )
    return summary


def tested_on(summary: dict[str, Any]) -> str:
    """Returns ``"test"``, or ``"validation"`` of a run that had no test data."""
    return str(summary.get("tested_on", "test"))


def rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns the before/after table: name, original, compressed, change."""
    before, after = summary["original"], summary["compressed"]
    metric = Metric.from_dict(summary.get("metric"))
    old, new = before["score"], after["score"]
    table = [
        (
            f"{tested_on(summary)} {metric.title}",
            metric.text(old),
            metric.text(new),
            metric.change(old, new),
        ),
        ("MACs", *_counts(before["macs"], after["macs"])),
        ("parameters", *_counts(before["params"], after["params"])),
    ]
    if "mean_bits" in before:
        table += [
            ("bit operations", *_counts(before["bops"], after["bops"])),
            ("bits per weight", f"{before['mean_bits']:.3g}", f"{after['mean_bits']:.3g}",
             f"{after['mean_bits'] / before['mean_bits']:.1%}"),
        ]  # fmt: skip
    if "density" in before:
        old, new = before["density"], after["density"]
        table.append(("weights that are not zero", f"{old:.1%}", f"{new:.1%}", f"{new / old:.1%}"))
    stored = "file size, packed" if "mean_bits" in before or "density" in before else "file size"
    table.append((stored, *_sizes(before["bytes"], after["bytes"])))
    if before.get("onnx_bytes") and after.get("onnx_bytes"):
        table.append(("file size, ONNX", *_sizes(before["onnx_bytes"], after["onnx_bytes"])))
    for name, old in before.get("predicted", {}).items():
        new = after["predicted"][name]
        table.append((f"{name}, from the table", f"{old:.3g}", f"{new:.3g}", f"{new / old:.1%}"))
    if before["latency_ms"] and after["latency_ms"]:
        for size in before["latency_ms"]:
            old, new = before["latency_ms"][size], after["latency_ms"][size]
            name = f"latency, batch {size}"  # of the ONNX files
            change = f"{old / new:.2f} x faster" if new <= old else f"{new / old:.2f} x slower"
            table.append((name, f"{old:.3g} ms", f"{new:.3g} ms", change))
    return table


def _counts(old: float, new: float) -> tuple[str, str, str]:
    return human(old), human(new), f"{new / old:.1%}"


def _sizes(old: float, new: float) -> tuple[str, str, str]:
    return f"{human(old)}B", f"{human(new)}B", f"{new / old:.1%}"


def cost_text(name: str, ratio: float) -> str:
    """Returns ``"49.9% of the macs"``, or ``"4 bits per weight"``."""
    if name == "mean_bits":
        return f"{FLOAT_BITS * ratio:.3g} bits per weight"
    if name == "density":
        return f"{ratio:.1%} of the weights"
    return f"{ratio:.1%} of the {name}"


def human(number: float) -> str:
    """Returns ``"40.8 M"`` for 40 800 000."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g} "


def summary_table(directory: Path) -> str:
    """Returns the before/after table as text."""
    header = ("", "original", "compressed", "change")
    table = [header, *rows(read_summary(directory))]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)

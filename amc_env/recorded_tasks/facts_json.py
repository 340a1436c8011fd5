"""Facts about a network, its decisions and its storage format as plain JSON, and back.

The round trip is exact: numbers, tuples and the order of mappings come back as they were, so costs
and observations of the same facts are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from amc_env.costs.storage import StorageFormat
from amc_env.errors import CompressionError
from amc_env.graph import (
    CHANNELS,
    Branch,
    ChannelGroup,
    ChannelParameters,
    LayerGraph,
    LayerSpec,
    Width,
)
from amc_env.kinds import kind_named
from amc_env.plan import Decision

FORMAT = "compression-task"
VERSION = 1


def task_to_json(
    graph: LayerGraph, decisions: Sequence[Decision], storage: StorageFormat | None = None
) -> dict[str, Any]:
    """Returns a document that ``json.dumps`` takes, and :func:`task_from_json` reads.

    Args:
        graph: The network.
        decisions: All decisions in order.
        storage: How its layers are stored; None where costs are the default ones.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "graph": _graph_row(graph),
        "decisions": [_decision_row(d) for d in decisions],
        "storage": None if storage is None else _storage_row(storage),
    }


def task_from_json(
    document: Mapping[str, Any],
) -> tuple[LayerGraph, tuple[Decision, ...], StorageFormat | None]:
    """Reads what :func:`task_to_json` made.

    Args:
        document: As ``json.loads`` returns it.

    Raises:
        CompressionError: If it is something else, damaged, or of another version.
    """
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise CompressionError(
            f"Expected the facts of a compression task (format {FORMAT!r}), got something else; "
            f"record the task again."
        )
    if document.get("version") != VERSION:
        raise CompressionError(
            f"Expected the facts of a task in version {VERSION}, got version "
            f"{document.get('version')}; read them with the release that wrote them, or record "
            f"the task again."
        )
    try:
        graph = _graph(document["graph"])
        decisions = tuple(_decision(row) for row in document["decisions"])
        row = document["storage"]
        storage = None if row is None else _storage(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CompressionError(
            f"The facts of the task are damaged ({type(error).__name__}: {error}); restore the "
            f"file, or record the task again."
        ) from error
    return graph, decisions, storage


def _storage_row(storage: StorageFormat) -> dict[str, Any]:
    """Plain values; the bit-widths that are keys become texts, as JSON wants them."""
    row = {f.name: getattr(storage, f.name) for f in fields(storage)}
    for name in ("weight_bits", "activation_bits", "folded", "densities"):
        row[name] = dict(row[name])
    row["value_bits"] = {
        layer: {str(width): [list(point) for point in points] for width, points in widths.items()}
        for layer, widths in storage.value_bits.items()
    }
    return row


def _storage(row: Mapping[str, Any]) -> StorageFormat:
    value_bits = {
        layer: {
            int(width): tuple((density, bits) for density, bits in points)
            for width, points in widths.items()
        }
        for layer, widths in row["value_bits"].items()
    }
    return StorageFormat(**{**row, "value_bits": value_bits})


def _decision_row(decision: Decision) -> dict[str, Any]:
    return {f.name: getattr(decision, f.name) for f in fields(decision)} | {
        "kind": decision.kind.name
    }


def _decision(row: Mapping[str, Any]) -> Decision:
    return Decision(**{**row, "kind": kind_named(row["kind"]), "choices": tuple(row["choices"])})


def _graph_row(graph: LayerGraph) -> dict[str, Any]:
    row = asdict(graph)
    for name in (
        "notes",
        "computed",
        "branches",
    ):  # without any, files are as they were before there were some
        if not row[name]:
            del row[name]
    for group in row["groups"]:  # likewise where one unit is enough, or nothing but a channel
        for name, usual in (("least", 1), ("role", CHANNELS)):
            if group[name] == usual:
                del group[name]
    return row


def _graph(row: Mapping[str, Any]) -> LayerGraph:
    readers: dict[str, Callable[[Mapping[str, Any]], object]] = {
        "layers": _layer,
        "groups": lambda x: ChannelGroup(**_with_tuples(x, "producers", "consumers")),
        "channel_parameters": lambda x: ChannelParameters(**{**x, "width": _width(x["width"])}),
    }
    lists = {name: tuple(read(x) for x in row[name]) for name, read in readers.items()}
    texts = {name: tuple(row.get(name, ())) for name in ("notes", "computed")}
    parts = ("layers", "channel_parameters", "groups")
    branches = tuple(Branch(**_with_tuples(x, *parts)) for x in row.get("branches", ()))
    return LayerGraph(**{**row, **lists, **texts, "branches": branches})


def _layer(row: Mapping[str, Any]) -> LayerSpec:
    widths = {name: _width(row[name]) for name in ("in_width", "out_width")}
    return LayerSpec(**{**_with_tuples(row, "kernel", "stride", "input_size"), **widths})


def _width(row: Mapping[str, Any]) -> Width:
    return Width(row["fixed"], tuple((group, multiplier) for group, multiplier in row["terms"]))


def _with_tuples(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {**row, **{name: tuple(row[name]) for name in names}}

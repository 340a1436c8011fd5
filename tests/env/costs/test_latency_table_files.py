"""Files of cost tables: round trips, the example of the documentation, and every kind of damage."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amc_env import ChannelGroup, LayerGraph, LayerSpec, Width, keep_ratio_decision
from amc_env.costs.cost_table import CostTable, CostTableError, precision_bits
from amc_env.costs.latency import TableCost

PAGE = Path(__file__).parents[3] / "docs" / "latency_tables.md"


def document() -> dict[str, Any]:
    """The complete example of the documentation."""
    text = PAGE.read_text()
    block = re.search(r"```json\n(\{.*?)```", text, re.DOTALL)
    assert block is not None
    example: dict[str, Any] = json.loads(block[1])
    return example


def read(tmp_path: Path, text: str) -> CostTable:
    (tmp_path / "table.json").write_text(text)
    return CostTable.read(tmp_path / "table.json")


def test_the_documented_example_gives_the_documented_cost(tmp_path):
    table = read(tmp_path, json.dumps(document()))
    group = Width(0, (("conv", 1),))
    graph = LayerGraph(
        (
            LayerSpec("conv", "conv", Width(3), group, (3, 3), (1, 1), 1, 1024, True, (32, 32)),
            LayerSpec("fc", "linear", group, Width(10), positions=1, has_bias=True),
        ),
        (ChannelGroup("conv", 16, ("conv",), ("fc",)),),
    )
    cost = TableCost(table, graph, [keep_ratio_decision("conv", 16, 4)])
    stated = re.search(r"12 channels in float.* costs (\d+\.\d+) ms", PAGE.read_text())
    assert stated is not None
    assert cost([12 / 16]) == pytest.approx(float(stated[1]))


def test_a_written_table_reads_back_as_it_was(tmp_path):
    table = CostTable.from_json(json.dumps(document()))
    again = read(tmp_path, table.to_json())
    assert again.to_document() == table.to_document()
    assert again.precisions == table.precisions
    for name, layer in table.layers.items():
        for precision, values in layer.values.items():
            np.testing.assert_array_equal(again.layers[name].values[precision], values)


def test_missing_values_survive_as_null(tmp_path):
    changed = document()
    changed["layers"][0]["values"]["fp32"][0][0] = None
    table = read(tmp_path, json.dumps(changed))
    assert table.layers["conv"].missing == 1
    assert math.isnan(table.layers["conv"].values["fp32"][0, 0])
    assert "NaN" not in table.to_json()


def damaged(*path: str | int, value: Any) -> str:
    changed: Any = document()
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(changed)


CELL = ("layers", 0, "values", "fp32", 0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda: json.dumps(document())[:-40], r"not JSON, or cut short"),
        (lambda: "[]", r"no cost table"),
        (lambda: damaged("version", value=2), r"version 2, this release reads version 1"),
        (lambda: damaged("quantity", value="speed"), r"latency or energy, got 'speed'"),
        (lambda: damaged("batch", value=0), r"batch of at least 1, got 0"),
        (lambda: damaged("constant", value=-1), r"constant of at least 0"),
        (lambda: damaged("layers", value=[]), r"at least one layer"),
        (lambda: damaged("layers", 1, "name", value="conv"), r"every layer once"),
        (lambda: damaged("layers", 0, "kind", value=...), r"damaged: KeyError 'kind'"),
        (lambda: damaged("layers", 0, "values", value={}), r"conv has no values"),
        (lambda: damaged("layers", 0, "values", "half", value=[[1, 2]]), r"precision like.*'half'"),
        (lambda: damaged("layers", 0, "out_widths", value=[16, 8]), r"ascending out_widths"),
        (lambda: damaged("layers", 0, "in_widths", value=[]), r"ascending in_widths"),
        (lambda: damaged("layers", 0, "values", "fp32", value=[[1]]), r"1 rows .* of 2 values"),
        (lambda: damaged(*CELL, value=-0.1), r"at least 0 in conv, fp32, got -0.1"),
        (lambda: damaged(*CELL, value=math.nan), r"at least 0 in conv, fp32, got nan"),
        (lambda: damaged(*CELL, value="fast"), r"damaged: ValueError .*fast"),
    ],
)
def test_damage_is_named(tmp_path, text, message):
    with pytest.raises(CostTableError, match=message) as caught:
        read(tmp_path, text())
    assert "table.json" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CostTableError, match=r"nowhere.json cannot be read .* amc latency-table"):
        CostTable.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize("name", ["w0a8", "w4", "int4", "w33a8", "W4A4"])
def test_names_of_precisions_are_checked(name):
    with pytest.raises(CostTableError, match=re.escape(repr(name))):
        precision_bits(name)

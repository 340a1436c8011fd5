"""Measuring tables: the design covers all pairs, models compute what they should, runs go on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.selection import quick
from torch import nn

from amc_compress.learners.export.runtime import open_session, optimised
from amc_compress.learners.latency import table as latency_table
from amc_compress.learners.latency.design import axis_points, levels_of, plans, random_plans
from amc_compress.learners.latency.networks import (
    LatencyError,
    cut,
    marked_layer,
    prepare,
    to_int8,
    to_onnx,
)
from amc_compress.learners.latency.table import (
    Bench,
    TableOptions,
    empty_table,
    measure_table,
)
from amc_compress.learners.latency.timing import layer_times
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import make_model
from amc_env import ChannelGroup, LayerGraph, LayerSpec, Width, keep_ratio_decision
from amc_env.costs.cost_table import CostTable, CostTableError, measured_layers
from amc_env.costs.latency import TableCost, load_cost_models
from amc_env.costs.storage import StorageFormat

pytest.importorskip("onnxruntime")

SHAPE = (3, 8, 8)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


OPTIONS = TableOptions("small", SHAPE, points=3)


# ---- design


@pytest.mark.parametrize("points", quick([3, 5, 7], 5))
def test_groups_that_meet_in_a_layer_take_every_pair_of_widths(points):
    graph = trace(make_model("resnet20"), torch.zeros(1, 3, 32, 32)).graph
    levels = levels_of(graph, 8, points)
    chosen = plans(graph, levels, points)
    assert len(chosen) <= points**2 + 2
    met = {
        (first, second)
        for layer in measured_layers(graph)
        for first, _ in layer.in_width.terms
        for second, _ in layer.out_width.terms
        if first != second
    }
    assert len(met) >= 18
    for first, second in met:
        pairs = {(kept[first], kept[second]) for kept in chosen}
        assert pairs == set(itertools.product(levels[first], levels[second])), (first, second)


def test_levels_have_both_ends_and_respect_the_rounding():
    graph = LayerGraph((), (ChannelGroup("a", 60, (), ()), ChannelGroup("b", 4, (), ())))
    assert levels_of(graph, 8, 3) == {"a": (8, 40, 60), "b": (4,)}
    with pytest.raises(ValueError, match="points per axis, got 4"):
        levels_of(graph, 8, 4)


def test_the_largest_and_the_smallest_network_come_first_and_none_twice():
    graph = trace(small(), torch.zeros(1, *SHAPE)).graph
    levels = levels_of(graph, 8, 3)
    chosen = plans(graph, levels, 3)
    assert chosen[0] == {g.name: g.size for g in graph.groups}
    assert chosen[1] == {g.name: 8 for g in graph.groups}
    assert len({tuple(sorted(kept.items())) for kept in chosen}) == len(chosen)
    assert chosen == plans(graph, levels, 3)


def test_axes_of_several_groups_have_their_real_sums():
    width = Width(3, (("a", 1), ("b", 2)))
    levels = {"a": (8, 16), "b": (4, 8)}
    assert axis_points(width, levels, 7) == (19, 27, 35)
    assert axis_points(Width(3), levels, 7) == (3,)
    many = {"a": tuple(range(1, 50)), "b": (4, 8)}
    points = axis_points(width, many, 5)
    assert (len(points), points[0], points[-1]) == (5, 12, 68)


def test_random_plans_lie_on_the_grid():
    graph = trace(small(), torch.zeros(1, *SHAPE)).graph
    for kept in random_plans(graph, 8, 20, seed=3):
        assert all(kept[g.name] % 8 == 0 and 8 <= kept[g.name] <= g.size for g in graph.groups)


# ---- models


@pytest.mark.parametrize("name", ["small", "digitsnet"])
def test_models_compute_what_the_cut_network_computes(name):
    model = small() if name == "small" else make_model(name, in_channels=3)
    traced = prepare(model, torch.zeros(1, *SHAPE))
    kept = {g.name: max(1, g.size // 2) for g in traced.graph.groups}
    network = cut(traced, kept)
    images = torch.rand(2, *SHAPE)
    onnx_model = to_onnx(network, traced.graph, images)
    got = open_session(onnx_model).run(None, {"images": images.numpy()})[0]
    with torch.no_grad():
        plain = traced.slice({n: torch.arange(k) for n, k in kept.items()}).eval()(images)
    np.testing.assert_allclose(got, plain.numpy(), rtol=1e-3, atol=1e-3 * plain.abs().max().item())
    marked = [marked_layer(node.name) for node in onnx_model.graph.node]
    n_layers = len(measured_layers(traced.graph))
    assert sorted(m for m in marked if m is not None) == list(range(n_layers))


def test_int8_models_run_all_layers_in_integers():
    traced = prepare(small(), torch.zeros(1, *SHAPE))
    images = torch.rand(1, *SHAPE)
    model = to_int8(to_onnx(cut(traced, {}), traced.graph, images), {"images": images})
    operators = [node.op_type for node in optimised(model, "ALL").graph.node]
    assert operators.count("QLinearConv") == 3
    assert operators.count("QGemm") == 1
    assert not {"Conv", "Gemm", "Relu", "Clip"} & set(operators)


def test_the_network_itself_stays_as_it_is():
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prepare(model, torch.zeros(1, *SHAPE))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.b = nn.Linear(16, 4)

    def forward(self, x):
        x = self.a(x).mean((2, 3))
        return torch.einsum("ni,oi->no", x, self.b.weight * 2)


def test_layers_that_the_export_does_not_show_are_named():
    traced = prepare(Twice(), torch.zeros(1, *SHAPE))
    names = {layer.name for layer in measured_layers(traced.graph)}
    graph = traced.graph
    if "b" not in names:  # whatever tracing makes of it, the table would be asked for it
        extra = LayerSpec("b", "linear", Width(16), Width(4))
        graph = LayerGraph((*graph.layers, extra), graph.groups)
    with pytest.raises(LatencyError, match="no layer of its own for b;"):
        to_onnx(cut(traced, {}), graph, torch.zeros(1, *SHAPE))


def test_shares_of_the_layers_add_up_to_the_whole():
    traced = prepare(small(), torch.zeros(1, *SHAPE))
    images = torch.rand(1, *SHAPE)
    for precision in ("fp32", "int8"):
        model = to_onnx(cut(traced, {}), traced.graph, images)
        model = to_int8(model, {"images": images}) if precision == "int8" else model
        times = layer_times(model, {"images": images.numpy()}, 0.125, 4, runs=5)
        assert times.sum() == pytest.approx(0.125)
        assert (times > 0).all()


def test_layers_that_the_profile_does_not_show_are_an_error():
    traced = prepare(small(), torch.zeros(1, *SHAPE))
    images = torch.zeros(1, *SHAPE)
    model = to_onnx(cut(traced, {}), traced.graph, images)
    with pytest.raises(LatencyError, match="merged or removed 1 of the 5 layers"):
        layer_times(model, {"images": images.numpy()}, 0.125, 5, runs=2)


# ---- tables


def true_cost(kept: dict[str, int], precision: str) -> list[float]:
    """Invented times of the four layers of ``small``, bilinear in their widths."""
    a, b = kept["0"], kept["3"]
    factor = 1.0 if precision == "fp32" else 0.5
    return [factor * x for x in (0.01 * a, 0.2 + 0.003 * a * b, 0.02 * b, 0.1 + 0.01 * b)]


class Invented(Bench):
    """Measures instantly, on a machine whose speed changes from network to network."""

    measured: list[Any] = []  # noqa: RUF012

    def __init__(self, traced, inputs, part=None) -> None:
        self.graph = traced.graph

    def sample(self, kept, precision):
        speed = 1.0 if len(self.measured) % 3 == 0 else 1.7
        self.measured.append((kept, precision))
        layers = [speed * x for x in true_cost(kept, precision)]
        return {"precision": precision, "kept": kept, "total": sum(layers) + 0.25 * speed,
                "reference": speed, "empty": 0.25 * speed, "layers": layers}  # fmt: skip


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> type[Invented]:
    monkeypatch.setattr(latency_table, "Bench", Invented)
    monkeypatch.setattr(Invented, "measured", [])
    return Invented


def test_a_table_gives_back_what_was_measured_at_any_width(invented, tmp_path):
    measure_table(small(), OPTIONS, tmp_path / "t.json")
    graph = trace(small(), torch.zeros(1, *SHAPE)).graph
    decisions = [keep_ratio_decision(g.name, g.size, 1, min_ratio=0.5) for g in graph.groups]
    names = [layer.name for layer in graph.layers]
    for precision, bits in (("fp32", 32.0), ("int8", 8.0)):
        storage = StorageFormat(dict.fromkeys(names, bits), dict.fromkeys(names, bits))
        cost = load_cost_models([tmp_path / "t.json"], graph, decisions, storage)["latency"]
        for kept in ({"0": 16, "3": 24}, {"0": 8, "3": 24}, {"0": 11, "3": 13}):
            values = [kept[d.target] / d.size for d in decisions]
            expected = sum(true_cost(kept, precision)) + 0.25
            assert cost(values) == pytest.approx(expected, rel=0.01)


def test_a_killed_measurement_goes_on_where_it_stopped(invented, tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    seen: list[tuple[int, int]] = []
    whole = measure_table(small(), OPTIONS, tmp_path / "whole.json",
                          progress=lambda *x: seen.append(x))  # fmt: skip
    n = len(invented.measured)
    assert seen == [(i, n) for i in range(n + 1)]

    def killed(done: int, of: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    invented.measured.clear()
    with pytest.raises(KeyboardInterrupt):
        measure_table(small(), OPTIONS, path, progress=killed)
    half = CostTable.read(path)
    with pytest.raises(CostTableError, match="not finished"):
        half.check(trace(small(), torch.zeros(1, *SHAPE)).graph)
    measure_table(small(), OPTIONS, path)
    assert len(invented.measured) == n  # 4 before, the rest after
    assert CostTable.read(path).to_document() == whole.to_document()
    measure_table(small(), OPTIONS, path)
    assert len(invented.measured) == n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(runtime="onnxruntime 1.0"), r"runtime 'onnxruntime 1.0' \(now"),
        (lambda d: d.update(machine="a phone"), r"machine 'a phone' \(now"),
        (lambda d: d.update(batch=64), r"batch 64 \(now 1\)"),
        (lambda d: d["details"].update(round_to=4), r"round_to 4 \(now 8\)"),
        (lambda d: d["details"].update(model="other"), r"model 'other' \(now 'small'\)"),
        (lambda d: d.update(details={}), r"model None \(now 'small'\)"),
        (lambda d: d.update(details={"form": True}), r"is a form to fill in by hand"),
    ],
)
def test_tables_measured_otherwise_are_not_continued(invented, tmp_path, change, message):
    path = tmp_path / "t.json"
    measure_table(small(), OPTIONS, path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CostTableError, match=message):
        measure_table(small(), OPTIONS, path)
    assert json.loads(path.read_text()) == document


def test_a_real_measurement_is_a_usable_table(tmp_path, monkeypatch):
    monkeypatch.setattr(latency_table, "_SECONDS", 0.0)
    monkeypatch.setattr(latency_table, "_PROFILED_RUNS", 5)
    options = TableOptions("small", SHAPE, points=3, precisions=("int8",), round_to=16)
    table = measure_table(small(), options, tmp_path / "t.json")
    graph = trace(small(), torch.zeros(1, *SHAPE)).graph
    table.check(graph)
    assert table.precisions == ("int8",)
    assert table.total("int8") > 0
    for sample in table.details["samples"]:
        assert sum(sample["layers"]) == pytest.approx(sample["total"] - sample["empty"], abs=1e-5)


def test_two_tables_of_one_quantity_are_rejected(invented, tmp_path):
    measure_table(small(), OPTIONS, tmp_path / "t.json")
    graph = trace(small(), torch.zeros(1, *SHAPE)).graph
    with pytest.raises(CostTableError, match="two of latency"):
        load_cost_models([tmp_path / "t.json"] * 2, graph, [])


def test_latency_and_energy_are_two_costs(invented, tmp_path):
    measure_table(small(), OPTIONS, tmp_path / "t.json")
    document = json.loads((tmp_path / "t.json").read_text())
    document |= {"quantity": "energy", "unit": "mJ"}
    (tmp_path / "e.json").write_text(json.dumps(document))
    graph = trace(small(), torch.zeros(1, *SHAPE)).graph
    models = load_cost_models([tmp_path / "t.json", tmp_path / "e.json"], graph, [])
    assert set(models) == {"latency", "energy"}
    assert models["energy"]([]) == pytest.approx(models["latency"]([]))


def test_a_form_has_every_layer_and_no_value():
    options = TableOptions("small", SHAPE, precisions=("w4a4", "w8a8"), measured=False)
    form = empty_table(small(), options, "my accelerator")
    again = CostTable.from_json(form.to_json())
    assert list(again.layers) == ["0", "3", "6", "10"]
    for layer in again.layers.values():
        assert set(layer.values) == {"w4a4", "w8a8"}
        assert layer.missing == 2 * len(layer.in_widths) * len(layer.out_widths)
    assert again.layers["6"].depthwise
    assert again.layers["6"].in_widths == (1,)


def test_onnx_runtime_is_not_asked_for_what_it_lacks():
    with pytest.raises(ValueError, match=r"measured in fp32 and int8, got w4a4"):
        TableOptions("small", SHAPE, precisions=("w4a4",))
    with pytest.raises(ValueError, match="batch of at least 1"):
        TableOptions("small", SHAPE, batch=0)
    with pytest.raises(ValueError, match="multiples of at least 1, got 0"):
        TableOptions("small", SHAPE, round_to=0)


# ---- documentation


def test_haqs_tables_are_read_as_the_documentation_says():
    page = (Path(__file__).parents[3] / "docs" / "latency_tables.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    graph = trace(small(), torch.zeros(1, *SHAPE)).graph
    array = np.arange(1, 9)[:, None] * np.arange(1, 9)[None, :] * np.ones((4, 1, 1))
    table = names["from_haq"](array, graph)
    layers = [layer.name for layer in graph.layers]
    storage = StorageFormat(dict.fromkeys(layers, 3.0), dict.fromkeys(layers, 5.0))
    cost = TableCost(table, graph, [], storage)
    assert cost([]) == pytest.approx(4 * 15)
    assert cost.original([]) == pytest.approx(4 * 64)

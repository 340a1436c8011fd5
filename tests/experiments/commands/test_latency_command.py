"""``amc latency-table`` on the command line, and what runs show of a table."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from amc_compress.cli import run
from amc_compress.learners.latency import table as latency_table
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import make_model
from amc_compress.runs.problem import Problem
from amc_compress.stages.evaluate import predicted_costs
from amc_env import CompressionPlan, LayerGraph, keep_ratio_decision
from amc_env.costs.cost_table import CostTable, CostTableError
from amc_env.costs.latency import TableCost

pytest.importorskip("onnxruntime")


def test_the_command_writes_a_form(tmp_path, capsys):
    path = tmp_path / "tables" / "form.json"
    arguments = ["latency-table", "--model", "digitsnet", "--input", "1x8x8", "--template",
                 "--runtime", "mine", "--precision", "w2a8", "--out", str(path)]  # fmt: skip
    assert run(arguments) == 0
    table = CostTable.read(path)
    assert table.precisions == ("w2a8",)
    assert capsys.readouterr().out.strip() == str(path)
    assert run(arguments) == 2
    assert "exists; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "tflite"], "Expected the runtime onnxruntime, got 'tflite'; .*--template"),
        (["--input", "32"], "Expected --input like 3x32x32, got '32'"),
        (["--input", "3x0x32"], "Expected --input like 3x32x32"),
        (["--precision", "half"], "Expected a precision like"),
        (["--precision", "w4a4"], "measured in fp32 and int8, got w4a4"),
        (["--points", "4"], "points per axis, got 4"),
        (["--points", "4", "--template"], "points per axis, got 4"),
        (["--round-to", "0"], "multiples of at least 1, got 0"),
        (["--round-to", "0", "--template"], "multiples of at least 1, got 0"),
        (["--batch", "0", "--template"], "batch of at least 1, got 0"),
        (["--workers", "2"], "Expected --workers 1: what is timed .* by --ray"),
        (["--ray", "there"], "Expected --ray auto, local or HOST:PORT, .* got 'there'"),
        (["--classes", "0"], "Expected --classes of at least 1, got 0"),
        (["--classes", "0", "--template"], "Expected --classes of at least 1, got 0"),
        (["--model", "resnet21"], "Unknown model 'resnet21'"),
    ],
)
def test_wrong_options_are_one_sentence(fails, tmp_path, arguments, message):
    sentence = fails("latency-table", "--out", str(tmp_path / "tables" / "t.json"), *arguments)
    assert re.search(message, sentence)
    assert not (tmp_path / "tables").exists()


def form_arguments(path) -> list[str]:
    return ["latency-table", "--model", "digitsnet", "--input", "1x8x8", "--points", "3",
            "--template", "--out", str(path)]  # fmt: skip


def digitsnet_graph() -> LayerGraph:
    import torch

    return trace(make_model("digitsnet", in_channels=1), torch.zeros(1, 1, 8, 8)).graph


@pytest.mark.slow
def test_forms_are_to_be_filled_in_not_to_be_measured_further(tmp_path, fails):
    path = tmp_path / "form.json"
    assert run(form_arguments(path)) == 0
    with pytest.raises(CostTableError, match="put a number in place of every null"):
        CostTable.read(path).check(digitsnet_graph())
    before = path.read_text()
    arguments = [a for a in form_arguments(path) if a != "--template"]
    assert "is a form to fill in by hand" in fails(*arguments)
    assert path.read_text() == before


def test_a_folder_is_no_table(tmp_path, fails):
    assert "is a folder" in fails("latency-table", "--out", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("measured", [0, 2])
def test_errors_stand_below_no_empty_bar(tmp_path, capsys, monkeypatch, measured):
    def broken(network, options, path, *, elsewhere, progress):
        for done in range(measured + 1):
            progress(done, 9)
        raise CostTableError("Broken.")

    monkeypatch.setattr(latency_table, "measure_table", broken)
    assert run(["latency-table", "--model", "digitsnet", "--input", "1x8x8",
                "--out", str(tmp_path / "t.json")]) == 2  # fmt: skip
    shown = capsys.readouterr().err
    assert "Broken." in shown
    assert ("network" in shown) == bool(measured)
    assert ("2/9" in shown) == bool(measured)


def test_runs_show_what_was_measured_not_what_budgets_count(tmp_path):
    path = tmp_path / "form.json"
    assert run(form_arguments(path)) == 0
    document = json.loads(path.read_text())
    for layer in document["layers"]:
        shape = (len(layer["in_widths"]), len(layer["out_widths"]))
        values = np.ones(shape)
        values[0, 0] += 3 * (layer is document["layers"][1])  # few channels are slow there
        layer["values"] = {"fp32": values.tolist()}
    graph = digitsnet_graph()
    decisions = tuple(keep_ratio_decision(g.name, g.size, 8) for g in graph.groups)
    cost = TableCost(CostTable.from_json(json.dumps(document)), graph, decisions)
    problem = Problem(graph, decisions, {"latency": cost, "macs": lambda values: 7.0})  # type: ignore[dict-item]
    full = CompressionPlan({d.key: 1.0 for d in decisions})
    n_layers = len(document["layers"])
    assert problem.cost(full)["latency"] == pytest.approx(n_layers + 3)
    assert predicted_costs(problem, full) == {"latency": pytest.approx(n_layers), "macs": 7.0}


def loaders():
    """Sentences as token ids, for a network of a user's own."""
    import torch

    batch = ({"ids": torch.randint(0, 9, (4, 6))}, torch.randint(0, 3, (4,)))
    return [batch], [batch]


def tagger(n_classes=3):
    """Returns a network of token ids."""
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = nn.Embedding(9, 8), nn.Linear(8, n_classes)
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

        def forward(self, ids):
            return self.last(self.body(self.words(ids)).mean(1))

    return Tagger()


def test_a_table_of_a_part_is_measured_on_samples_of_data(tmp_path, fails, monkeypatch):
    monkeypatch.setattr(latency_table, "_SECONDS", 0.001)
    monkeypatch.setattr(latency_table, "_PROFILED_RUNS", 3)
    here = "tests.experiments.commands.test_latency_command"
    arguments = ["latency-table", "--model", f"{here}:tagger", "--data", f"{here}:loaders",
                 "--task", "classification", "--part", "body", "--points", "3",
                 "--precision", "fp32", "--quiet", "--out", str(tmp_path / "t.json")]  # fmt: skip
    assert "by --input or samples of --data, got both" in fails(*arguments, "--input", "1x8x8")
    assert run(arguments) == 0
    table = CostTable.read(tmp_path / "t.json")
    assert list(table.layers) == ["body.0", "body.2"]
    assert (table.layers["body.0"].out_widths, table.details["part"]) == ((8, 16), "body")
    assert table.total("fp32") > 0
    ((inputs, _),) = loaders()[0]
    table.check(trace(tagger(), inputs, part="body").graph)
    assert "part 'body' (now None)" in fails(*[x for x in arguments if x not in ("--part", "body")])

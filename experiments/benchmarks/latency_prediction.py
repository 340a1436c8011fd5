"""How well does a latency table predict whole networks that it was not made from?

Measures a table (or continues one), then ten random plans per network and precision: every group
keeps a random multiple of ``round_to``. The time of each is measured as `amc latency-table` does
(one thread, in turns with the uncut network, which takes out how fast the machine is just then).

    python -m experiments.benchmarks.latency_prediction --out DIR
    python -m experiments.benchmarks.latency_prediction --model resnet20 --plans 10 --out DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from amc_env import Decision, DecisionKind, keep_ratio_decision
from amc_env.cost_table import CostTable, measured_layers
from amc_env.latency import TableCost
from experiments.latency_design import Kept, random_plans
from experiments.latency_networks import randomised
from experiments.latency_table import Bench, TableOptions, measure_table
from experiments.models import make_model
from learners.tracing import TracedModel, trace

NETWORKS = ("resnet20", "mobilenet_v2_fast")
SHAPE = (3, 32, 32)
_BITS = {"fp32": 16.0, "int8": 8.0}


def predict(table: CostTable, traced: TracedModel, kept: Kept, precision: str) -> float:
    """Returns the table's time for a plan, milliseconds."""
    graph = traced.graph
    ratios = [keep_ratio_decision(g.name, g.size, 1) for g in graph.groups]
    bits = [
        Decision(layer.name, kind, (8.0, 16.0), 1)
        for layer in measured_layers(graph)
        for kind in (DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS)
    ]
    values = [kept[d.target] / d.size for d in ratios] + [_BITS[precision]] * len(bits)
    return TableCost(table, graph, [*ratios, *bits])(np.array(values))


def main(
    out: Annotated[Path, typer.Option(help="Where the tables are kept.")],
    model: Annotated[list[str] | None, typer.Option(help="Networks.")] = None,
    plans: Annotated[int, typer.Option(help="Random plans per network.")] = 10,
    points: Annotated[int, typer.Option(help="Widths per axis of the table.")] = 7,
    round_to: int = 8,
    batch: int = 1,
    seconds: Annotated[float, typer.Option(help="Of timing, per plan.")] = 0.5,
    seed: int = 1,
) -> None:
    """Prints predicted and measured milliseconds of every plan, and the errors."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    summary = []
    for name in model or NETWORKS:
        network = randomised(make_model(name))
        options = TableOptions(name, SHAPE, batch, round_to, points)
        table = measure_table(
            network, options, out / f"{name}_b{batch}.json",
            progress=lambda done, of: print(f"\r{done}/{of} networks", end="", flush=True),
        )  # fmt: skip
        print()
        traced = trace(network, torch.zeros(1, *SHAPE))
        bench = Bench(traced, batch, SHAPE)
        usual = {
            p: np.quantile([s["reference"] for s in table.details["samples"]
                            if s["precision"] == p], 0.2)
            for p in options.precisions
        }  # fmt: skip
        for precision in options.precisions:
            errors = []
            for kept in random_plans(traced.graph, round_to, plans, seed):
                total, reference, _ = bench.total(bench.build(kept, precision), precision, seconds)
                measured = total * usual[precision] / reference
                predicted = predict(table, traced, kept, precision)
                errors.append(predicted / measured - 1)
                print(
                    f"{name} {precision}: predicted {predicted:.4f} ms, measured {measured:.4f} "
                    f"({total:.4f} before correction), error {errors[-1]:+.1%}"
                )
            sizes = np.abs(errors)
            summary.append(
                f"| {name} | {precision} | {sizes.mean():.1%} | {sizes.max():.1%} "
                f"| {np.mean(errors):+.1%} |"
            )
    print("| network | precision | mean error | largest | bias |\n|---|---|---|---|---|")
    print("\n".join(summary))


if __name__ == "__main__":
    typer.run(main)

"""Prediction error of a latency table on networks that it was not made from.

Measures a table (or continues one), then ten random plans per network and precision: every group
keeps a random multiple of ``round_to``. The time of each is measured as `amc latency-table` does
(one thread, in turns with the uncut network, which takes out how fast the machine is just then).

    python -m amc_compress.benchmarks.speed.latency_prediction --out DIR
    python -m amc_compress.benchmarks.speed.latency_prediction --model resnet20 --plans 10 --out DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from amc_compress.benchmarks.bench import start
from amc_compress.learners.channel_pruning.decisions import keep_ratio_decisions
from amc_compress.learners.latency.design import Kept, random_plans
from amc_compress.learners.latency.networks import prepare
from amc_compress.learners.latency.table import Bench, TableOptions, measure_table
from amc_compress.learners.latency.timing import QUANTILE
from amc_compress.models import make_model
from amc_env import LayerGraph
from amc_env.costs.cost_table import CostTable, measured_layers
from amc_env.costs.latency import TableCost
from amc_env.costs.storage import StorageFormat

NETWORKS = ("resnet20", "mobilenet_v2_fast")
SHAPE = (3, 32, 32)
_OPENINGS = 3
_BITS = {"fp32": 32.0, "int8": 8.0}


@dataclass(frozen=True)
class Options:
    """Of one comparison."""

    name: str
    round_to: int
    seconds: float


def cost_of(table: CostTable, graph: LayerGraph, precision: str, round_to: int) -> TableCost:
    """Returns the cost of pruning plans when every layer has one precision."""
    ratios = keep_ratio_decisions(graph, round_to, 0.0)
    bits = {layer.name: _BITS[precision] for layer in measured_layers(graph)}
    return TableCost(table, graph, ratios, StorageFormat(bits, bits))


def compare(
    bench: Bench, table: CostTable, precision: str, plans: Sequence[Kept], options: Options
) -> str:
    """Prints every plan's prediction, and returns a row of the summary."""
    samples = [s for s in table.details["samples"] if s["precision"] == precision]
    usual = float(np.quantile([s["reference"] for s in samples], QUANTILE))
    cost = cost_of(table, bench.graph, precision, options.round_to)
    sizes = {group.name: group.size for group in bench.graph.groups}
    errors, moved = [], []
    for kept in plans:
        model = bench.build(kept, precision)
        # Opened several times: where its buffers happen to lie matters by a few per cent.
        pairs = [bench.total(model, precision, options.seconds)[:2] for _ in range(_OPENINGS)]
        measured = usual * float(np.median([total / reference for total, reference in pairs]))
        raw = min(total for total, _ in pairs)
        values = [kept[name] / size for name, size in sizes.items()]
        errors.append(cost.predict(values) / measured - 1)
        moved.append(cost(values) / measured - 1)
        print(
            f"{options.name} {precision}: measured {measured:.4f} ms ({raw:.4f} before "
            f"correction), predicted {cost.predict(values):.4f} ({errors[-1]:+.1%}), "
            f"for budgets {cost(values):.4f} ({moved[-1]:+.1%})"
        )
    away = np.abs(errors)
    return (
        f"| `{options.name}` | {precision} | {away.mean():.1%} | "
        f"{away.max():.1%} | {np.mean(errors):+.1%} | {np.mean(moved):+.1%} | "
        f"{np.max(moved):+.1%} |"
    )


def main(
    out: Annotated[Path, typer.Option(help="Where the tables are kept.")],
    model: Annotated[list[str] | None, typer.Option(help="Networks.")] = None,
    plans: Annotated[int, typer.Option(help="Random plans per network.")] = 10,
    points: Annotated[int, typer.Option(help="Widths per axis of the table.")] = 7,
    round_to: int = 8,
    batch: int = 1,
    seconds: Annotated[float, typer.Option(help="Of timing, per plan and opening.")] = 0.3,
    seed: int = 1,
) -> None:
    """Prints predicted and measured milliseconds of every plan, and the errors."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in model or NETWORKS:
        network = make_model(name)
        table = measure_table(
            network,
            TableOptions(name, SHAPE, batch, round_to, points),
            out / f"{name}_b{batch}.json",
            progress=lambda done, of: print(f"\r{done}/{of} networks", end="", flush=True),
        )
        print()
        called = TableOptions(name, SHAPE, batch)
        bench = Bench(prepare(network, called.traced_with()), called.inputs())
        chosen = random_plans(bench.graph, round_to, plans, seed)
        options = Options(name, round_to, seconds)
        rows += [compare(bench, table, p, chosen, options) for p in table.precisions]
    print("| network | precision | mean error | largest | bias | for budgets: mean | largest |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    start(main)

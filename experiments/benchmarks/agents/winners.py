r"""What the winners of a comparison are worth on test samples, without training, and as files.

Every winner of the tasks is built and measured once on the test samples, by all metrics of the
task. Of each task the one that did best on the validation samples is written as ONNX (weights of up
to 4 bits as blocks, of up to 8 as integers), and so is the original; both are timed in turns, one
thread, one sample and a batch. Rows are appended to ``OUT/winners.jsonl`` as they come::

    python -m amc_compress.benchmarks.agents.winners runs/minilm --task minilm-joint
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from amc_compress.benchmarks.bench import KeptRows, markdown, spread, start
from amc_compress.commands.compare import Data, Weights, places_of
from amc_compress.comparison.records import RESULTS, SearchRecord, read_results
from amc_compress.comparison.tasks import Places, build_env, find_task, open_data, original_network
from amc_compress.data.given import first_batch
from amc_compress.learners import Learner
from amc_compress.learners.export.integers.onnx_weights import export_weights
from amc_compress.learners.export.interface import Interface
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.export.runtime import open_session
from amc_compress.learners.latency.timing import time_together
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.tasks.inputs import rows
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.evaluation import measure
from amc_env import CompressionPlan

ORIGINAL = "original"
_SECONDS = 5.0  # of timing, for each pair of files


def measure_winners(
    folder: Path, name: str, places: Places, *, files: bool = True
) -> list[dict[str, Any]]:
    """Returns a row per winner of a task, and one of the original; those on file are not made.

    Args:
        folder: Of the comparison.
        name: Of the task.
        places: Where its data and weights are.
        files: Whether to write and time ONNX files.
    """
    task = find_task(name)
    kept = KeptRows(folder / "winners.jsonl", {"task": name, "files": files})
    found = [s for s in read_results(folder / RESULTS).searches if s.task == name and s.final]
    done = {tuple(row["plan"] or ()) for row in kept.rows}
    todo = [s for s in found if s.final and s.final.plan not in done]
    if not todo and not files:
        return _told(kept.rows, found)
    env = build_env(task, places)
    learner = env.learner
    if not isinstance(learner, Learner):
        raise ValueError(f"Expected a task with a network, got {name}.")
    data = open_data(task, places, seed=0)
    if () not in done:
        whole = original_network(task, places, data)
        size = {"bytes": sum(p.nbytes for p in whole.parameters())}
        kept.add([{"plan": None} | measure(whole, data.test, task=learner.task) | size])
    for plan in dict.fromkeys(s.final.plan for s in todo if s.final):
        whole_plan = CompressionPlan.from_choices(env.decisions, plan)
        began = time.process_time()
        network = learner.compress(whole_plan)
        seconds = time.process_time() - began
        costs = {"bytes": round(env.cost(whole_plan)["bytes"]), "build seconds": seconds}
        kept.add([{"plan": plan} | measure(network, data.test, task=learner.task) | costs])
    rows_ = _told(kept.rows, found)
    if files:
        best = max(found, key=lambda s: (s.final.validation or 0.0) if s.final else 0.0)
        assert best.final is not None  # noqa: S101
        network = learner.compress(CompressionPlan.from_choices(env.decisions, best.final.plan))
        networks = {best.agent: network, ORIGINAL: original_network(task, places, data)}
        print(_files(networks, data.test, learner.task))
    return rows_


def _told(
    rows_: Sequence[Mapping[str, Any]], found: Sequence[SearchRecord]
) -> list[dict[str, Any]]:
    """Returns the rows with whose they are; plans that several found are several's."""
    by_plan = {tuple(row["plan"] or ()): row for row in rows_}
    owners = [(ORIGINAL, 0, ())] + [
        (s.agent, s.seed, s.final.plan) for s in found if s.final is not None
    ]
    return [{"agent": a, "seed": s, **by_plan[plan]} for a, s, plan in owners if plan in by_plan]


def _files(networks: Mapping[str, nn.Module], loader: Any, task: Task) -> str:
    """Returns a table of the sizes and latencies of networks as ONNX files."""
    inputs, _ = task.split(first_batch(loader, "test"))
    interface = Interface(next(iter(networks.values())), inputs)
    with tempfile.TemporaryDirectory() as place:
        paths = {name: Path(place) / f"{i}.onnx" for i, name in enumerate(networks)}
        for name, network in networks.items():
            write = export_weights if quantized_layers(network) else export_onnx
            write(network, inputs, paths[name], images=inputs, task=task)
        sessions = [open_session(path) for path in paths.values()]
        times = [
            time_together(sessions, _feed(interface, batch), _SECONDS)
            for batch in (rows(inputs, slice(0, 1)), inputs)
        ]
        sizes = [path.stat().st_size for path in paths.values()]
    lines = [
        [name, f"{size / 1000:,.0f}", f"{one:.3g}", f"{many:.3g}"]
        for name, size, one, many in zip(networks, sizes, *times, strict=True)
    ]
    return markdown(["network", "ONNX, kB", "ms, one sample", "ms, a batch"], lines)


def _feed(interface: Interface, inputs: Any) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in interface.named(inputs).items()}


def _table(rows_: Sequence[Mapping[str, Any]]) -> str:
    columns = [key for key in rows_[0] if key not in ("agent", "seed", "plan", "settings")]
    lines = []
    for agent in dict.fromkeys(row["agent"] for row in rows_):
        mine = [row for row in rows_ if row["agent"] == agent]
        cells = [spread([row[c] for row in mine if c in row]) for c in columns]
        lines.append([agent, *cells, str(len(mine))])
    return markdown(["agent", *columns, "winners"], lines)


def main(
    folder: Annotated[Path, typer.Argument(help="Of a comparison.")],
    task: Annotated[list[str], typer.Option(help="Name of a task; may be repeated.")],
    data: Data = None,
    weights: Weights = None,
    files: Annotated[bool, typer.Option(help="Write and time ONNX files.")] = True,
) -> None:
    """Prints, for each task, what its winners reach on test samples, mean and deviation."""
    for name in task:
        print(f"\n{name}\n")
        print(_table(measure_winners(folder, name, places_of(data, weights), files=files)))


if __name__ == "__main__":
    start(main)

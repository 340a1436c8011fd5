"""Tables of latencies measured on this machine: every layer at all widths and precisions.

Whole networks are run, at widths from ``design``, and each network's time is
split among its layers. The file is written after every network, so that a killed run can resume.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from torch import nn

from amc_compress.learners.export.interface import Interface
from amc_compress.learners.export.part import part_of
from amc_compress.learners.export.runtime import open_session
from amc_compress.learners.latency.design import Kept, axis_points, levels_of, plans
from amc_compress.learners.latency.networks import LatencyError, cut, prepare, to_int8, to_onnx
from amc_compress.learners.latency.options import TableOptions
from amc_compress.learners.latency.timing import (
    QUANTILE,
    empty_model,
    layer_times,
    time_together,
)
from amc_compress.learners.numerics.processor import processor_name
from amc_compress.learners.tasks.inputs import Inputs, count
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env import LayerGraph, LayerSpec
from amc_env.costs.cost_table import (
    CostTable,
    CostTableError,
    LayerTable,
    layer_shape,
    measured_layers,
)
from amc_env.costs.latency import interpolation_shares
from amc_env.files import write_atomic

Array = npt.NDArray[np.float64]
Sample = dict[str, Any]

Asked = tuple[Kept, str]
"""What every group keeps, and the precision."""

_PROFILED_RUNS = 60
# Weight of the smooth surface against one network's time; 0 would leave unseen cells undecided.
_PULL = 0.03
_SECONDS = 0.25  # of timing, per network


class Bench:
    """Builds and times networks.

    Args:
        traced: The network, with random weights.
        inputs: What it is called with.
        part: The submodule that is built and timed, as a file of a run holds it where code around
            it is more than tensors; None for the whole.
    """

    def __init__(self, traced: TracedModel, inputs: Inputs, part: str | None = None) -> None:
        network = traced.model.eval()
        if part is not None:
            network, inputs = part_of(network, part, inputs)
        self._traced = traced
        self._inputs = inputs
        self._part = part
        self._samples = Interface(network, inputs, count(inputs)).named(inputs)
        self._feed = {name: tensor.numpy() for name, tensor in self._samples.items()}
        self._empty = open_session(empty_model(self._feed))
        self._references: dict[str, Any] = {}
        self.graph = traced.graph

    def build(self, kept: Kept, precision: str) -> Any:
        """Returns the ONNX model of a cut network."""
        network = cut(self._traced, kept, self._part)
        model = to_onnx(network, self._traced.graph, self._inputs, self._part)
        return to_int8(model, self._samples) if precision == "int8" else model

    def total(self, model: Any, precision: str, seconds: float = _SECONDS) -> tuple[float, ...]:
        """Times a network, in turns with the uncut one and with an empty one.

        Returns:
            Milliseconds per call of the three. The uncut network is always the same, so it
            tells how fast the machine was at that moment.
        """
        if precision not in self._references:
            self._references[precision] = open_session(self.build({}, precision))
        sessions = [open_session(model), self._references[precision], self._empty]
        return tuple(time_together(sessions, self._feed, seconds))

    def sample(self, kept: Kept, precision: str) -> Sample:
        """Measures one network and all of its layers."""
        model = self.build(kept, precision)
        total, reference, empty = self.total(model, precision)
        n_layers = len(measured_layers(self._traced.graph))
        layers = layer_times(model, self._feed, total - empty, n_layers, _PROFILED_RUNS)
        return {
            "precision": precision,
            "kept": dict(kept),
            "total": round(total, 6),
            "reference": round(reference, 6),
            "empty": round(empty, 6),
            "layers": [round(x, 6) for x in layers.tolist()],
        }


class Sampler:
    """Measures networks of a table, wherever it is called.

    Args:
        model: The network; its weights do not matter.
        options: What to measure.
        machine: Of the table, see :func:`machine_name`; no other one adds to it.
        traced: The network as :func:`~amc_compress.learners.latency.networks.prepare` returns it,
            where that was done already.
    """

    def __init__(
        self,
        model: nn.Module,
        options: TableOptions,
        machine: str,
        traced: TracedModel | None = None,
    ) -> None:
        self._model, self._options, self._machine = model, options, machine
        self._traced = traced
        self._bench: Bench | None = None

    def __call__(self, asked: Asked) -> Sample:
        """Returns the sample of a network.

        Raises:
            CostTableError: If this machine is another one than the table's.
        """
        if machine_name() != self._machine:
            raise CostTableError(
                f"Expected the processor of the table, {self._machine}, got {machine_name()}: "
                f"figures of different processors do not add up, so leave that node out."
            )
        if self._bench is None:
            options = self._options
            traced = self._traced or prepare(self._model, options.traced_with(), part=options.part)
            self._bench = Bench(traced, options.inputs(), options.part)
        return self._bench.sample(*asked)


def measure_table(
    model: nn.Module,
    options: TableOptions,
    path: Path,
    *,
    elsewhere: Callable[[Sequence[Asked]], Iterator[Sample]] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> CostTable:
    """Measures what is missing in a table, and writes it.

    Args:
        model: The network; its weights do not matter.
        options: What to measure.
        path: The table; if it exists, it is continued.
        elsewhere: Yields the samples that are asked for, in this order; measured here if None.
        progress: Called with (networks measured, networks in all).

    Raises:
        CostTableError: If the file is damaged, or was made with other options or elsewhere.
        LatencyError: If the network cannot be measured.
    """
    traced = prepare(model, options.traced_with(), part=options.part)
    graph = traced.graph
    levels = levels_of(graph, options.round_to, options.points)
    # Taking turns, so that a slow minute of the machine does not hit one precision only.
    todo = [
        (kept, precision)
        for kept in plans(graph, levels, options.points)
        for precision in options.precisions
    ]
    samples = _continue(path, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [(sample["kept"], sample["precision"]) for sample in samples]
    missing = [asked for asked in todo if asked not in known]
    progress(len(samples), len(todo))
    here = Sampler(model, options, machine_name(), traced)
    for sample in elsewhere(missing) if elsewhere is not None else map(here, missing):
        samples.append(sample)
        complete = len(samples) == len(todo)
        write_atomic(path, _compile(graph, options, samples, complete).to_json())
        progress(len(samples), len(todo))
    return CostTable.read(path)


def empty_table(model: nn.Module, options: TableOptions, runtime: str) -> CostTable:
    """Returns a table whose values are all missing, to be filled in elsewhere."""
    graph = trace(model.eval(), options.traced_with(), part=options.part).graph
    return CostTable(
        quantity="latency",
        unit="ms",
        runtime=runtime,
        batch=options.batch,
        machine="fill in",
        layers=_layer_tables(graph, options, []),
        details={"form": True},
    )


def runtime_name() -> str:
    """Returns what measures, with its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def machine_name() -> str:
    """Returns the processor in words, and how many threads are used of it."""
    return f"{processor_name()}, 1 thread"


def _continue(path: Path, options: TableOptions) -> list[Sample]:
    """Returns what an earlier run has measured."""
    if not path.exists():
        return []
    table = CostTable.read(path)
    if table.is_form:
        raise CostTableError(
            f"{path} is a form to fill in by hand (made by --template), which measuring does not "
            f"continue. Choose another --out."
        )
    samples = table.details.get("samples")
    made = {
        "runtime": table.runtime, "machine": table.machine, "batch": table.batch,
        **{key: table.details.get(key) for key in options.document()},
    }  # fmt: skip
    wanted = {
        "runtime": runtime_name(), "machine": machine_name(), "batch": options.batch,
        **options.document(),
    }  # fmt: skip
    differ = [f"{key} {made[key]!r} (now {wanted[key]!r})" for key in wanted
              if json.dumps(made[key]) != json.dumps(wanted[key])]  # fmt: skip
    if differ or not isinstance(samples, list):
        raise CostTableError(
            f"{path} was measured with {', '.join(differ) or 'another program'}: figures of "
            f"different measurements do not add up. Choose another --out."
        )
    return samples


# ---------------------------------------------------------------------- from samples to a table


def _compile(
    graph: LayerGraph, options: TableOptions, samples: Sequence[Sample], complete: bool
) -> CostTable:
    usual = _at_usual_speed(samples)
    return CostTable(
        quantity="latency",
        unit="ms",
        runtime=runtime_name(),
        batch=options.batch,
        machine=machine_name(),
        layers=_layer_tables(graph, options, usual if complete else []),
        constant=round(float(np.median([sample["empty"] for sample in usual])), 6),
        details={**options.document(), "samples": list(samples)},
    )


def _layer_tables(
    graph: LayerGraph, options: TableOptions, samples: Sequence[Sample]
) -> dict[str, LayerTable]:
    levels = levels_of(graph, options.round_to, options.points)
    return {
        layer.name: _layer_table(number, layer, levels, options, samples)
        for number, layer in enumerate(measured_layers(graph))
    }


def _at_usual_speed(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the samples with slow moments of the machine taken out of their times.

    The reference is always the same network, so its time tells how fast the machine was.
    """
    references: dict[str, list[float]] = {}
    for sample in samples:
        references.setdefault(sample["precision"], []).append(sample["reference"])
    result = []
    for sample in samples:
        usual = float(np.quantile(references[sample["precision"]], QUANTILE))
        factor = usual / sample["reference"]
        layers = [time * factor for time in sample["layers"]]
        result.append({**sample, "layers": layers, "empty": sample["empty"] * factor})
    return result


def _layer_table(
    number: int,
    layer: LayerSpec,
    levels: Mapping[str, Sequence[int]],
    options: TableOptions,
    samples: Sequence[Sample],
) -> LayerTable:
    inputs = axis_points(layer.in_width, levels, options.points)
    outputs = axis_points(layer.out_width, levels, options.points)
    values = {}
    for precision in options.precisions:
        seen = [
            (layer.in_width.at(s["kept"]), layer.out_width.at(s["kept"]), s["layers"][number])
            for s in samples
            if s["precision"] == precision
        ]
        values[precision] = _cells(seen, inputs, outputs).round(6)
    kind, kernel, stride, depthwise, input_size = layer_shape(layer)
    return LayerTable(
        layer.name, kind, inputs, outputs, values, kernel, stride, depthwise, input_size
    )


def _cells(
    seen: Sequence[tuple[float, float, float]], inputs: Sequence[int], outputs: Sequence[int]
) -> Array:
    """Returns the costs at each pair of widths that explain what was seen.

    Least squares of bilinear interpolation, drawn a little to the surface
    ``a + b in + c out + d in out``. A pair that networks had exactly gets about their mean, one
    that none had (an axis shared by many groups) what its neighbours and the surface say.
    """
    shape = (len(inputs), len(outputs))
    if not seen:
        return np.full(shape, math.nan)
    x, y, time = np.array(seen).T
    weights, _ = nnls(_terms(x, y), time)
    grid_in, grid_out = np.meshgrid(inputs, outputs, indexing="ij")
    surface = _terms(grid_in.ravel(), grid_out.ravel()) @ weights
    shares = interpolation_shares(x, inputs), interpolation_shares(y, outputs)
    share = np.einsum("si,sj->sij", *shares).reshape(len(time), -1)
    normal = share.T @ share + _PULL * np.eye(len(surface))
    cells = surface + np.linalg.solve(normal, share.T @ (time - share @ surface))
    result: Array = np.maximum(cells, 0.0).reshape(shape)
    return result


def _terms(inputs: npt.NDArray[Any], outputs: npt.NDArray[Any]) -> Array:
    columns = (np.ones(len(inputs)), inputs, outputs, inputs * outputs)
    terms: Array = np.stack(columns, axis=1).astype(np.float64)
    return terms


__all__ = [
    "Bench", "LatencyError", "TableOptions", "empty_table", "measure_table",
]  # fmt: skip

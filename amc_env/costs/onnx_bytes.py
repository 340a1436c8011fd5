"""Bytes of the ONNX file of a float32 network, from what the file of the original holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from amc_env.costs.cost_model import Array, CostModel, whole, with_weights
from amc_env.costs.layer_terms import LayerWeights, WidthMatrix
from amc_env.costs.presence import of_channels, of_layers
from amc_env.costs.products import Block, ProductForm
from amc_env.graph import LayerGraph
from amc_env.plan import Decision
from amc_env.validation.checks import check_least

_BYTES_PER_FLOAT = 4


@dataclass(frozen=True)
class OnnxContents:
    """What the ONNX file of the original network holds.

    Args:
        file_bytes: Its size.
        weights: Layers whose weights are in it.
        vectors: Layer, or norm, -> how many float32 vectors it has there, of its output width: a
            bias (that of a folded norm too), the four of a norm that is not folded.
        unseen_bytes: Of tensors that the file of the original shares, and another may not.
    """

    file_bytes: int
    weights: frozenset[str]
    vectors: Mapping[str, int] = field(default_factory=dict)
    unseen_bytes: int = 0

    def __post_init__(self) -> None:
        sizes = {"file_bytes": self.file_bytes, "unseen_bytes": self.unseen_bytes}
        vectors = {f"vectors[{name!r}]": number for name, number in self.vectors.items()}
        check_least("an ONNX file", sizes | vectors, 0)


class OnnxBytesCost(CostModel):
    """Bytes of the ONNX file, never less than it has.

    The file of the original, less the tensors' bytes that go with the channels of a plan. Names,
    shapes and nodes are counted as in the original, where they are a few bytes longer: lengths and
    sizes have fewer digits in a smaller file. What the file holds besides, constants say, counts
    in full.

    Args:
        graph: The network.
        decisions: All decisions in order; only those that cut channels or leave out branches
            change the file.
        contents: Of the original's file.

    Raises:
        ValueError: If that file is too small for what it is said to hold.
    """

    name = "onnx_bytes"
    unit = "B"

    def __init__(
        self, graph: LayerGraph, decisions: Sequence[Decision], contents: OnnxContents
    ) -> None:
        self._file = contents.file_bytes
        layers = with_weights(graph)
        self._weights = LayerWeights(layers, graph, decisions)
        self._held: Array = np.array([x.name in contents.weights for x in layers], dtype=np.float64)
        widths = {x.name: x.out_width for x in layers}
        widths |= {x.name: x.width for x in graph.channel_parameters}
        names = [name for name in contents.vectors if name in widths]
        self._channels = WidthMatrix([widths[name] for name in names], graph, decisions)
        self._present = of_layers(layers, graph, decisions)
        self._present_channels = of_channels(names, graph, decisions)
        self._vectors: Array = np.array([contents.vectors[n] for n in names], dtype=np.float64)
        largest = np.array([d.choices[-1] for d in decisions], dtype=np.float64)
        self._structure = contents.file_bytes + contents.unseen_bytes - self._tensors(largest)
        smallest = np.array([d.choices[0] for d in decisions], dtype=np.float64)
        if self._structure + self._tensors(smallest) < 0:
            raise ValueError(
                f"Expected a file that holds the tensors of its network, "
                f"{self._tensors(largest):,.0f} bytes, got one of {contents.file_bytes:,}; "
                f"write the original's file again."
            )

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        return whole(self._structure + self._tensors(np.asarray(values, dtype=np.float64)))

    def _tensors(self, values: Array) -> float:
        numbers = self._held @ self._present.of(self._weights.at(values)[1], values)
        channels = self._present_channels.of(self._channels.at(values), values)
        return float(_BYTES_PER_FLOAT * (numbers + self._vectors @ channels))

    def products(self) -> ProductForm:
        """Returns four bytes for each number that the file holds."""
        weights = self._weights.block()
        blocks = (
            Block(
                _BYTES_PER_FLOAT * self._held * weights.weights,
                (*weights.factors, *self._present.factors()),
            ),
            Block(
                _BYTES_PER_FLOAT * self._vectors,
                (self._channels.affine(), *self._present_channels.factors()),
            ),
        )
        return ProductForm(blocks, self._structure)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns the size of the original's file."""
        return float(self._file)

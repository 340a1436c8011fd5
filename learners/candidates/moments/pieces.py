"""The repairs of a network's layers, as many at a time as memory has room for.

The moments of a layer with ``n`` inputs take up to ``8 n^2`` bytes. Where those of all layers do
not fit, they are taken piece by piece, in the order of the network, each piece in a pass that ends
behind it (as the code of GPTQ, Frantar et al. 2022, 2210.17323, goes through the blocks of a
network). What is not held any more goes to files, and if these have no room either it is taken
again. Numbers are those of one pass, bit for bit: what is sampled of a layer depends on no other.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from amc_compress.learners.candidates.input_moments import (
    InputStatistics,
    collect_statistics,
    most_moments,
    sizes_of_moments,
)
from amc_compress.learners.candidates.moments.effort import USUAL, Effort
from amc_compress.learners.candidates.moments.order_of_calls import OrderOfCalls
from amc_compress.learners.candidates.moments.room import Room
from amc_compress.learners.candidates.reconstruction import (
    LayerReconstruction,
    prepare_reconstruction,
)
from amc_compress.learners.candidates.second_order.tensor_files import TensorFiles
from amc_compress.learners.layers.products import Report
from amc_compress.learners.numerics.freed_memory import give_back
from amc_compress.learners.tasks.inputs import Inputs, count
from amc_env.support.progress import no_bar


class FittedLayers(Mapping[str, LayerReconstruction]):
    """Layer -> what of its repair does not depend on the plan; only layers that can be repaired.

    Args:
        network: In ``eval`` mode.
        batches: Images as it takes them.
        names: Layers to watch, in network order; nothing is run for none of these and ``also``.
        norms: Layer -> batch norm right behind it.
        seed: Of the positions that are sampled.
        effort: How moments are taken.
        also: Other layers -> what is told of their products in the same run.
        progress: Whether to show a progress bar.
        room: What moments may take.

    Attributes:
        shapes: Layer -> shape of its weight with the outputs first.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Sequence[Inputs],
        names: Sequence[str],
        norms: Mapping[str, str],
        *,
        seed: int,
        effort: Effort = USUAL,
        also: Mapping[nn.Module, Report] | None = None,
        progress: bool = False,
        room: Room | None = None,
    ) -> None:
        self._network = network
        self._batches = batches
        self._asked = list(names)
        self._norms = norms
        self._seed = seed
        self._effort = effort
        self._room = room or Room()
        self.shapes: dict[str, torch.Size] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._forms: dict[str, InputStatistics] = {}
        self._held: OrderedDict[str, LayerReconstruction] = OrderedDict()
        self._pieces = self._divided() or ([[]] if also else [])
        runs = [name for name in self._asked if name in dict(network.named_modules())]
        self._order = OrderOfCalls(runs if self._is_divided else ())
        self._scratch = _Scratch(self._room.disk) if self._is_divided else None
        if self._is_divided:
            # Moments may be asked for while the network runs, whose hooks must not see another run.
            tensors = (*network.parameters(), *network.buffers())
            self._network = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
        for piece in self._pieces:
            self._take(piece, also, progress=progress)
            also = None
        if not self._is_divided:
            self._batches = []  # nothing is taken again, so that images can be let go

    @property
    def _is_divided(self) -> bool:
        return len(self._pieces) > 1

    def _divided(self) -> list[list[str]]:
        """Returns the layers by pieces whose moments fit; all in one if they all do."""
        if not self._asked:
            return []
        if most_moments(self._network, self._asked) <= self._room.memory:
            return [self._asked]
        sizes = sizes_of_moments(self._network, self._batches[0], self._asked, self._effort)
        if sum(sizes.values()) <= self._room.memory:
            return [self._asked]
        pieces: list[list[str]] = [[]]
        left = self._room.memory
        for name in self._asked:
            if pieces[-1] and sizes.get(name, 0) > left:
                pieces.append([])
                left = self._room.memory
            pieces[-1].append(name)
            left -= sizes.get(name, 0)
        return pieces

    def _take(
        self,
        piece: Sequence[str],
        also: Mapping[nn.Module, Report] | None = None,
        *,
        progress: bool = False,
    ) -> None:
        """Runs the network over the images for the moments of a piece, which are held then."""
        self._held.clear()
        give_back()
        total = sum(map(count, self._batches))
        with tqdm(total=total, desc="calibrate", unit="image", disable=no_bar(progress)) as bar:
            moments = collect_statistics(
                self._network,
                self._batches,
                self._asked,
                seed=self._seed,
                effort=self._effort,
                n_images=total,
                also=also,
                report=bar.update,
                only=piece,
                order=self._order,
            )
        give_back()
        for name in list(moments):  # one after the other is let go: they are as large as the rest
            statistics = moments.pop(name)
            self._forms[name] = statistics.without_numbers()
            if self._scratch is not None:
                self._scratch.files.write(name, statistics.numbers())
            self._hold(name, statistics)
            if self._effort.is_limited:
                give_back()  # blocks of a half leave holes that the next layer's do not fit

    def _hold(self, name: str, statistics: InputStatistics) -> LayerReconstruction:
        layer = prepare_reconstruction(self._network, {name: statistics}, self._norms)[name]
        for fact, value in self._facts.get(name, {}).items():
            setattr(layer, fact, value)
        self._held[name], self.shapes[name] = layer, layer.shape
        if self._is_divided:
            while sum(x.nbytes for x in self._held.values()) > self._room.memory:
                if len(self._held) == 1:
                    break
                self._held.popitem(last=False)
        return layer

    def __getitem__(self, name: str) -> LayerReconstruction:
        """Returns what is known of a layer; not to be changed but by :meth:`tell`."""
        form = self._forms[name]
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        assert self._scratch is not None, "a layer that is not held, and in no file"
        numbers = self._scratch.files.read(name, form.sums.device)
        if numbers is not None:
            return self._hold(name, form.with_numbers(numbers))
        (piece,) = (piece for piece in self._pieces if name in piece)
        self._take(piece)
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such a layer; nothing is read for it."""
        return name in self._forms

    def __iter__(self) -> Iterator[str]:
        return iter(self._forms)

    def __len__(self) -> int:
        return len(self._forms)

    def tell(self, name: str, **facts: Any) -> None:
        """Sets attributes of a layer, now and whenever it is read again."""
        self._facts.setdefault(name, {}).update(facts)
        if name in self._held:
            for fact, value in facts.items():
                setattr(self._held[name], fact, value)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what can be read again, or what it is read from if all is held."""
        if self._is_divided:
            return vars(self) | {"_held": OrderedDict()}
        return vars(self) | {"_network": None}


class Some(Mapping[str, LayerReconstruction]):
    """Some of the layers of a mapping, read one by one as that does.

    Args:
        layers: The mapping.
        names: Those of it.
    """

    def __init__(self, layers: Mapping[str, LayerReconstruction], names: Iterable[str]) -> None:
        self._layers = layers
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> LayerReconstruction:
        if name not in self._names:
            raise KeyError(name)
        return self._layers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Scratch:
    """Files that end with the process that has made them.

    Args:
        disk: Bytes that they may take.
    """

    def __init__(self, disk: int) -> None:
        folder = tempfile.mkdtemp(prefix="amc-moments-")
        self.files = TensorFiles(Path(folder), disk)
        weakref.finalize(self, _remove, folder, os.getpid())


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not where a forked process lets go of its copy
        shutil.rmtree(folder, ignore_errors=True)

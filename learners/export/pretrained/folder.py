"""Folders of ``transformers``: configuration, tensors and tokenizer of a compressed network."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from amc_compress.learners.export.part import part_of
from amc_compress.learners.export.pretrained.loading import (
    COMPRESSED_TENSORS,
    PACKED,
    check_integers_library,
    load,
    new_network,
    transformers_library,
    without_bars,
)
from amc_compress.learners.export.pretrained.packed_integers import (
    PackedIntegers,
    packed_integers,
)
from amc_compress.learners.export.pretrained.widths import (
    fitting_configs,
    layers_of,
    made_shapes,
    numbered_anew,
    shapes_of,
)
from amc_compress.learners.layers.finalise import plain_weights
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.packing.packed_file import save_packed
from amc_compress.learners.tasks.inputs import Inputs, ask, moved, to_inputs
from amc_env.errors import InputDataError
from amc_env.plan import CompressionPlan
from amc_env.validation.checks import check_known

if TYPE_CHECKING:
    from types import ModuleType

TOLERANCE = 1e-4
"""Largest difference of an output relative to its largest number, in float32: what is loaded may
compute attention by another kernel."""
HALF_TOLERANCE = 3e-2
ROUNDED_TOLERANCE = 5e-2
"""Where inputs are rounded: a sum in another order can fall on the other side of a half."""

_TOKENIZER = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "spiece.model", "sentencepiece*.model", "chat_template*", "*processor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class SavedFolder:
    """A folder that was written, loaded again and compared.

    Args:
        path: The folder.
        stock: Whether ``from_pretrained`` of ``transformers`` loads it; else
            ``amc_compress.load(folder)`` does.
        config: Number of the configuration -> its new value, where it is another.
        max_difference: Of an output, relative to its largest number, to the network given.
        bytes: Size of the files of tensors.
        integers: What is packed and what is not, with ``weights="compressed-tensors"``.
    """

    path: Path
    stock: bool
    config: Mapping[str, Any]
    max_difference: float
    bytes: int
    integers: PackedIntegers | None = None


def save_pretrained(
    network: nn.Module,
    folder: str | Path,
    example_input: Inputs,
    *,
    kept: Mapping[str, Tensor] | None = None,
    plan: CompressionPlan | None = None,
    part: str | None = None,
    tokenizer: Any = None,
    weights: str | None = None,
) -> SavedFolder:
    """Writes a compressed network of ``transformers`` as a folder, and proves the folder.

    Where a configuration of the network's own class describes the result (widths that are equal in
    all layers, or that the class reads by layer), the folder holds ``config.json`` and
    ``model.safetensors``, for ``AutoModel.from_pretrained(folder)``. Else, and for quantized and
    masked networks, it holds the original's ``config.json`` and a packed file, for
    ``amc_compress.load(folder)``. Nothing in either is code.

    Args:
        network: Compressed, of a class of ``transformers``; or one that holds it as its ``part``,
            which alone is written.
        folder: New or empty.
        example_input: What the network is called with.
        kept: Channel group -> units that stay, of a network whose channels were cut.
        plan: The plan that made it, for the record.
        part: The submodule that was compressed, if not the whole network.
        tokenizer: An object with ``save_pretrained``, or a folder whose tokenizer's files are
            copied as they are.
        weights: ``"compressed-tensors"`` for the integers of a quantized network in the format of
            that library, with which ``AutoModel.from_pretrained(folder)`` loads them.

    Raises:
        InputDataError: If the network is of another library, the folder is in use, the tokenizer
            is none, or what was written computes something else; with ``weights`` also if no
            configuration of the class describes the network, or it has no such integers.
        MissingDependencyError: Without ``transformers``, or the library that ``weights`` names.
    """
    if weights is not None:
        check_known("weights", weights, (COMPRESSED_TENSORS,))
        check_integers_library()
    place = Path(folder).expanduser()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputDataError(
            f"Expected a new or an empty folder, got {place}: remove it or name another."
        )
    write = _Writer(
        network.eval(), moved(to_inputs(example_input), "cpu"), kept or {}, plan, part, weights
    )
    new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    try:
        saved = write(place)
        if tokenizer is not None:
            _add_tokenizer(tokenizer, place)
    except BaseException:
        shutil.rmtree(place)
        if not new:
            place.mkdir()
        raise
    return saved


def stock(network: nn.Module, example_input: Inputs) -> Any:
    """Returns a cut network as its class makes it of a configuration, None if there is none.

    Args:
        network: Of a class of ``transformers``.
        example_input: What it is called with.
    """
    return _Writer(network, moved(to_inputs(example_input), "cpu"), {}, None, None).stock()


def tokenizer_files(folder: Path) -> list[Path]:
    """Returns the files in a folder that belong to a tokenizer or another processor of inputs."""
    found = {file for pattern in _TOKENIZER for file in folder.glob(pattern) if file.is_file()}
    return sorted(found)


def _add_tokenizer(tokenizer: Any, place: Path) -> None:
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(place)
        return
    source = Path(tokenizer).expanduser()
    files = tokenizer_files(source)
    if not files:
        raise InputDataError(
            f"Expected a folder with the files of a tokenizer (tokenizer.json, vocab.txt, ...), "
            f"got {source}."
        )
    for file in files:
        shutil.copyfile(file, place / file.name)


class _Writer:
    """Writes one network; the arguments are those of :func:`save_pretrained`."""

    def __init__(
        self,
        network: nn.Module,
        example: Inputs,
        kept: Mapping[str, Tensor],
        plan: CompressionPlan | None,
        part: str | None,
        weights: str | None = None,
    ) -> None:
        library = transformers_library()
        if part is not None and kind_of(network, library) is None:
            network, example = part_of(network, part, example)
            kept = {name.removeprefix(f"{part}."): units for name, units in kept.items()}
            part = None
        kind = kind_of(network, library)
        if kind is None:
            raise InputDataError(
                f"Expected a network of a class that transformers has, got "
                f"{type(network).__name__}: compress that network alone or as the part, or export "
                f"to .packed, .safetensors or .onnx."
            )
        self._network, self._example, self._kind = network, example, kind
        self._more: dict[str, Any] = {"kept": kept, "plan": plan, "part": part}
        self._config: Any = copy.deepcopy(network.config)
        types = {p.dtype for p in network.parameters()}
        self._config.dtype = next(iter(types)) if len(types) == 1 else torch.float32
        self._tolerance = TOLERANCE if self._config.dtype == torch.float32 else HALF_TOLERANCE
        self._packs = weights is not None
        # Of the class itself, which rounds no inputs.
        self._plain = plain_weights(network) if self._packs else network
        self._answer, self._plain_answer = self._ask(network), self._ask(self._plain)

    def _ask(self, network: nn.Module) -> Any:
        with torch.no_grad():
            return ask(network, self._example)

    def __call__(self, place: Path) -> SavedFolder:
        stock, integers = self.stock(), None
        tolerance = self._tolerance
        if self._packs:
            integers = self._save_integers(stock, place)
            rounds = any(
                "input_activations" in g for g in integers.config["config_groups"].values()
            )
            tolerance = ROUNDED_TOLERANCE if rounds else tolerance
        elif stock is None:
            self._check_kept()
            self._config.architectures = [self._kind.__name__]
            self._config.save_pretrained(place)
            if (settings := getattr(self._network, "generation_config", None)) is not None:
                settings.save_pretrained(place)
            save_packed(self._network, place / PACKED, example_input=self._example, **self._more)
        else:
            with without_bars():
                stock.save_pretrained(place)
        apart = difference(self._ask(load(place)), self._answer)
        if not apart <= tolerance:
            raise InputDataError(
                f"Expected {self._kind.__name__} to compute what the compressed network does, got "
                f"outputs that differ by {apart:.1e}: it does more than the class of that name; "
                f"export to .packed, .safetensors or .onnx."
            )
        before = self._config.to_dict()
        config = before if stock is None else stock.config.to_dict()
        changed = {
            key: value
            for key, value in config.items()
            if before.get(key) != value and key not in ("architectures", "quantization_config")
        }
        files = (file for file in place.iterdir() if file.suffix in (".packed", ".safetensors"))
        return SavedFolder(
            place,
            stock is not None,
            changed,
            apart,
            sum(file.stat().st_size for file in files),
            integers,
        )

    def _check_kept(self) -> None:
        """Checks that a network whose channels were cut can be cut so again."""
        own = made_shapes(self._kind, self._config) or {}
        cut = [k for k, shape in shapes_of(self._network).items() if own.get(k, shape) != shape]
        if cut and not self._more["kept"]:
            raise InputDataError(
                f"Expected the units that stay (kept) of a network whose channels were cut, got "
                f"none and {cut[0]} of another shape than the original's; pass what it was cut by, "
                f"such as learner.kept_units(plan)."
            )

    def _save_integers(self, stock: Any, place: Path) -> PackedIntegers:
        """Writes the stock class with its weights packed."""
        if stock is None:
            raise InputDataError(
                f"Expected a network that one configuration of {self._kind.__name__} describes for "
                f"weights in the format of {COMPRESSED_TENSORS}, got one whose layers differ in "
                f"width; leave the format out, and amc_compress.load reads the folder."
            )
        found = packed_integers(self._network, stock, numbered_anew(self._network.state_dict()))
        state = stock.state_dict()
        for layer in found.layers:
            del state[f"{layer}.weight"]
        stock.config.quantization_config = dict(found.config)
        with without_bars():
            stock.save_pretrained(place, state_dict=state | dict(found.tensors))
        return found

    def stock(self) -> Any:
        """Returns the network as its class makes it, if one of its configurations does."""
        plain = self._plain
        if quantized_layers(plain) or masked_layers(plain):
            return None
        state, shapes = plain.state_dict(), shapes_of(plain)
        names = numbered_anew(state)
        wanted = {names[key]: shape for key, shape in shapes.items()}
        for config in fitting_configs(self._kind, self._config, wanted, layers_of(state)):
            stock: Any = new_network(self._kind, config)
            stock.load_state_dict({names[key]: tensor for key, tensor in state.items()})
            for name, tensor in plain.named_parameters():
                stock.get_parameter(names[name]).data = tensor.detach().clone()
            stock.tie_weights()
            if difference(self._ask(stock), self._plain_answer) <= self._tolerance:
                if (settings := getattr(self._network, "generation_config", None)) is not None:
                    stock.generation_config = copy.deepcopy(settings)
                return stock
        return None


def kind_of(network: nn.Module, library: ModuleType) -> type[nn.Module] | None:
    """Returns the class of the library that a network, rewritten to be cut or not, is of."""
    for kind in type(network).__mro__:
        known = getattr(library, kind.__name__, None)
        if known is kind and issubclass(kind, library.PreTrainedModel):
            return kind if kind is not library.PreTrainedModel else None
    return None

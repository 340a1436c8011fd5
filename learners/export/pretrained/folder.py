"""Folders of ``transformers``: configuration, tensors and tokenizer of a compressed network."""

from __future__ import annotations

import copy
import importlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from amc_compress.learners.export.part import part_of
from amc_compress.learners.export.pretrained.widths import (
    fitting_configs,
    layers_of,
    made_shapes,
    numbered_anew,
    shapes_of,
)
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.tasks.inputs import Inputs, ask, moved, to_inputs
from amc_env.errors import InputDataError, MissingDependencyError
from amc_env.plan import CompressionPlan
from amc_env.validation.sentences import first_line

if TYPE_CHECKING:
    from types import ModuleType

PACKED = "model.packed"
TOLERANCE = 1e-4
"""Largest difference of an output relative to its largest number, in float32: what is loaded may
compute attention by another kernel."""
HALF_TOLERANCE = 3e-2

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
        bytes: Size of the tensors' file.
    """

    path: Path
    stock: bool
    config: Mapping[str, Any]
    max_difference: float
    bytes: int


def save_pretrained(
    network: nn.Module,
    folder: str | Path,
    example_input: Inputs,
    *,
    kept: Mapping[str, Tensor] | None = None,
    plan: CompressionPlan | None = None,
    part: str | None = None,
    tokenizer: Any = None,
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

    Raises:
        InputDataError: If the network is of another library, the folder is in use, the tokenizer
            is none, or what was written computes something else.
        MissingDependencyError: Without ``transformers``.
    """
    place = Path(folder).expanduser()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputDataError(
            f"Expected a new or an empty folder, got {place}: remove it or name another."
        )
    write = _Writer(network.eval(), moved(to_inputs(example_input), "cpu"), kept or {}, plan, part)
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


def load(folder: str | Path) -> nn.Module:
    """Loads a network that :func:`save_pretrained` wrote; runs no code that the folder holds.

    Args:
        folder: The folder; classes are those of ``transformers`` that ``config.json`` names.

    Returns:
        The network in ``eval`` mode.

    Raises:
        InputDataError: If it is no such folder, or damaged.
        MissingDependencyError: Without ``transformers``.
    """
    place = Path(folder).expanduser()
    library = _library()
    if not (place / "config.json").is_file():
        raise InputDataError(
            f"Expected a folder with config.json, which save_pretrained and amc export --format "
            f"transformers write, got {place}."
        )
    try:
        config = library.AutoConfig.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
        names = config.architectures or [None]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputDataError(
            f"{place / 'config.json'} is no configuration that this version of transformers "
            f"knows ({first_line(error)})."
        ) from error
    kind: Any = getattr(library, str(names[0]), None)
    if not _is_network(kind, library):
        raise InputDataError(
            f"Expected the name of a class of transformers under 'architectures' in "
            f"{place / 'config.json'}, got {names[0]!r}."
        )
    if (place / PACKED).is_file():
        return _typed(load_packed(place / PACKED, _new(kind, config)), config)
    try:
        stock: nn.Module = kind.from_pretrained(
            place, config=config, local_files_only=True, use_safetensors=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputDataError(
            f"Expected {place} to hold {PACKED} or model.safetensors of its configuration, got "
            f"{first_line(error)}."
        ) from error
    return stock.eval()


def _library() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependencyError(
            "Expected transformers for its networks, found none; `pip install transformers`."
        ) from error


def _is_network(kind: Any, library: ModuleType) -> bool:
    return isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)


def _new(kind: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """Makes a network whose weights do not matter; random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        network = kind(copy.deepcopy(config))
    return network.eval()


def _typed(network: nn.Module, config: Any) -> nn.Module:
    """Gives float networks the type that they were saved from; scales must not be rounded."""
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, torch.dtype) and not quantized_layers(network):
        network.to(dtype)
    return network


def _add_tokenizer(tokenizer: Any, place: Path) -> None:
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(place)
        return
    source = Path(tokenizer).expanduser()
    files = {file for pattern in _TOKENIZER for file in source.glob(pattern) if file.is_file()}
    if not files:
        raise InputDataError(
            f"Expected a folder with the files of a tokenizer (tokenizer.json, vocab.txt, ...), "
            f"got {source}."
        )
    for file in sorted(files):
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
    ) -> None:
        library = _library()
        if part is not None and _kind_of(network, library) is None:
            network, example = part_of(network, part, example)
            kept = {name.removeprefix(f"{part}."): units for name, units in kept.items()}
            part = None
        kind = _kind_of(network, library)
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
        with torch.no_grad():
            self._answer = ask(network, example)

    def __call__(self, place: Path) -> SavedFolder:
        stock = self._stock()
        if stock is None:
            self._check_kept()
            self._config.architectures = [self._kind.__name__]
            self._config.save_pretrained(place)
            save_packed(self._network, place / PACKED, example_input=self._example, **self._more)
        else:
            stock.save_pretrained(place)
        apart = self._apart(load(place))
        if not apart <= self._tolerance:
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
            if before.get(key) != value and key != "architectures"
        }
        files = (file for file in place.iterdir() if file.suffix in (".packed", ".safetensors"))
        return SavedFolder(
            place,
            stock is not None,
            changed,
            apart,
            sum(file.stat().st_size for file in files),
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

    def _apart(self, network: nn.Module) -> float:
        with torch.no_grad():
            return difference(ask(network, self._example), self._answer)

    def _stock(self) -> Any:
        """Returns the network as its class makes it, if one of its configurations does."""
        if quantized_layers(self._network) or masked_layers(self._network):
            return None
        state, shapes = self._network.state_dict(), shapes_of(self._network)
        names = numbered_anew(state)
        wanted = {names[key]: shape for key, shape in shapes.items()}
        for config in fitting_configs(self._kind, self._config, wanted, layers_of(state)):
            stock = _new(self._kind, config)
            stock.load_state_dict({names[key]: tensor for key, tensor in state.items()})
            for name, tensor in self._network.named_parameters():
                stock.get_parameter(names[name]).data = tensor.detach().clone()
            stock.tie_weights()  # type: ignore[operator]
            if self._apart(stock) <= self._tolerance:
                return stock
        return None


def _kind_of(network: nn.Module, library: ModuleType) -> type[nn.Module] | None:
    """Returns the class of the library that a network, rewritten to be cut or not, is of."""
    for kind in type(network).__mro__:
        known = getattr(library, kind.__name__, None)
        if known is kind and issubclass(kind, library.PreTrainedModel):
            return kind if kind is not library.PreTrainedModel else None
    return None

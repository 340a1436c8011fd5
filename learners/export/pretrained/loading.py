"""Networks of ``transformers`` from folders; nothing that a folder holds is run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.packing.packed_file import load_packed
from amc_env.errors import InputDataError
from amc_env.support.optional import needed
from amc_env.validation.sentences import first_line, some

if TYPE_CHECKING:
    from types import ModuleType

PACKED = "model.packed"
COMPRESSED_TENSORS = "compressed-tensors"
GENERATION = "generation_config.json"
_ADAPTERS = "adapter_config.json"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth")


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
    kind, config = class_of(place)
    if (place / PACKED).is_file():
        loaded = _typed(load_packed(place / PACKED, new_network(kind, config)), config)
        return _generating(loaded, place)
    held = getattr(config, "quantization_config", None)
    if isinstance(held, dict) and held.get("quant_method") == COMPRESSED_TENSORS:
        check_integers_library()
    try:
        with without_bars():
            stock, found = kind.from_pretrained(
                place,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        pickles = [file.name for kind_of in _PICKLES for file in place.glob(kind_of)]
        got = f"{first_line(error)}."
        if pickles and not any(place.glob("*.safetensors")):
            got = (
                f"{some(pickles, 3)}, which may run code as they are opened; where they are "
                f"trusted, from_pretrained and save_pretrained of transformers write safetensors."
            )
        raise InputDataError(
            f"Expected {place} to hold {PACKED} or model.safetensors of its configuration, got "
            f"{got}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise InputDataError(
            f"Expected all weights of {kind.__name__} in {place}, got none of {some(missing, 3)}; "
            f"save the network as the class that it is trained as, which config.json names."
        )
    network: nn.Module = stock.eval()
    return network


def class_of(folder: Path) -> tuple[Any, Any]:
    """Returns the class of ``transformers`` that a folder names, and its configuration.

    Raises:
        InputDataError: If there is no such class, or configuration.
        MissingDependencyError: Without ``transformers``.
    """
    place, library = folder, transformers_library()
    if (place / _ADAPTERS).is_file():
        raise InputDataError(
            f"Expected a whole network in {place}, got adapters ({_ADAPTERS}); merge them first: "
            f"model.merge_and_unload().save_pretrained(FOLDER)."
        )
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if own_code := _own_code(place):
            raise InputDataError(own_code) from error
        raise InputDataError(
            f"{place / 'config.json'} is no configuration that this version of transformers "
            f"knows ({first_line(error)})."
        ) from error
    _check_weights_are_float(config, place)
    kind: Any = getattr(library, str(names[0]), None)
    if not _is_network(kind, library):
        if own_code := _own_code(place):
            raise InputDataError(own_code)
        raise InputDataError(
            f"Expected the name of a class of transformers under 'architectures' in "
            f"{place / 'config.json'}, got {names[0]!r}."
        )
    return kind, config


def _check_weights_are_float(config: Any, place: Path) -> None:
    """Checks that weights are not packed, except in the format that is written here."""
    held = getattr(config, "quantization_config", None)
    if held is None:
        return
    facts = held if isinstance(held, dict) else held.to_dict()
    method = facts.get("quant_method")
    if method != COMPRESSED_TENSORS or facts.get("format") != "pack-quantized":
        name = getattr(method, "value", method) or "an unnamed method"
        raise InputDataError(
            f"Expected float weights in {place}, got weights quantized by {name}; give the float "
            f"network that was quantized, or dequantize and save it first."
        )


def _own_code(place: Path) -> str:
    """Returns a sentence about the class that a folder brings along, or "" if it brings none."""
    try:
        held = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if not isinstance(held, dict) or "auto_map" not in held:
        return ""
    return (
        f"Expected a class of transformers in {place}, got one of the folder's own (auto_map), "
        f"whose code is not run; pass what builds the network: package.module:factory."
    )


def tokenizer_of(folder: Path) -> Any:
    """Returns the tokenizer of a folder; no code of the folder's is run.

    Raises:
        InputDataError: If it holds none.
        MissingDependencyError: Without ``transformers``.
    """
    try:
        return transformers_library().AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputDataError(
            f"Expected the files of a tokenizer (tokenizer.json, ...) in {folder}, got "
            f"{first_line(error)}; copy them there, or pass batches: --data package.module:factory."
        ) from error


def transformers_library() -> ModuleType:
    """Returns the module ``transformers``.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    found: ModuleType = needed(
        "transformers",
        "Expected transformers for its networks, found none; `pip install transformers`.",
    )
    return found


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides the progress bars of ``transformers``, of files that take no time."""
    logging: Any = transformers_library().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_integers_library() -> None:
    """Checks that the library is there with which weights of its format are loaded.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    needed(
        "compressed_tensors",
        f"Expected {COMPRESSED_TENSORS} for weights in its format, found none; `pip install "
        f"{COMPRESSED_TENSORS}`.",
    )


def _is_network(kind: Any, library: ModuleType) -> bool:
    return isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)


def new_network(kind: Callable[[Any], nn.Module], config: Any) -> nn.Module:
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


def _generating(network: nn.Module, place: Path) -> nn.Module:
    """Gives a network the settings of a folder that say how it generates, if it has some."""
    if (place / GENERATION).is_file():
        settings = transformers_library().GenerationConfig
        network.generation_config = settings.from_pretrained(place, local_files_only=True)
    return network

"""A run's networks to and from disk: the original's tensors, and the smaller one with its plan."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.layers.structure import describe, rebuild
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.packing.example import example
from amc_compress.learners.packing.sharing import shared_names
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.models import load_weights, make_model
from amc_compress.models.arguments import parse_arguments
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.given import Given
from amc_compress.runs.storage.trust import EVERYTHING, NOTHING
from amc_env import CompressionError, CompressionPlan, InputDataError, RunFolderError
from amc_env.files import write_atomic
from amc_env.validation.json_text import parse_json
from amc_env.validation.shapes import check_shape

NETWORK_VERSION = 2
_ENTRY = "amc-network"
_FACTS = {"kept": dict[str, Sequence[int]], "structure?": dict[str, Any]}
_UNFIT = (
    CompressionError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError,
    RuntimeError,
)  # fmt: skip
_TRACED: WeakKeyDictionary[RunFolder, tuple[tuple[int, int] | None, TracedModel]] = (
    WeakKeyDictionary()
)


def example_input(facts: DataFacts) -> Inputs:
    """Returns a sample as the network takes it, for tracing: an image is black, (1, C, H, W)."""
    if facts.image_shape is not None:
        return torch.zeros(1, *facts.image_shape)
    return example(facts.inputs, torch.device("cpu"))


def example_of(folder: RunFolder) -> Inputs:
    """Returns a sample as the network of a run takes it; the first one where there are objects."""
    return example_input(folder.facts) if folder.given is None else folder.given.example


def build_original(model: str, facts: DataFacts, arguments: Sequence[str] = ()) -> nn.Module:
    """Returns the untrained network of that name for these data: plain, float32, in eval mode.

    Args:
        model: Its name, or ``package.module:factory``.
        facts: About the data.
        arguments: Further ``key=value`` for its factory, as ``--model-args`` takes them.

    Raises:
        InputDataError: If the model is unknown, or cannot be made so.
        UntraceableModelError: If the network is in no form that can be taken in.
    """
    return take_in(_built(model, facts, arguments)).network


@dataclass(frozen=True)
class WithWeights:
    """A network with its weights, and notes for the user.

    Args:
        network: Plain, float32, in eval mode.
        taken: What was taken from the weights file, as ``load_weights`` says it.
        notes: What was done to make a plain float32 network.
    """

    network: nn.Module
    taken: str
    notes: tuple[str, ...]


def build_with_weights(
    model: str,
    facts: DataFacts,
    weights: str | Path | None,
    arguments: Sequence[str] = (),
    *,
    allow_pickle: bool = False,
) -> WithWeights:
    """As :func:`build_original`, with the weights of a file; as the factory makes them if None.

    Raises:
        InputDataError: If the model is unknown, or the weights do not fit it.
        UntraceableModelError: If the network is in no form that can be taken in.
    """
    built = _built(model, facts, arguments)
    network = take_in(built)
    taken = ""
    if weights is not None:
        try:
            taken = load_weights(network.network, weights, allow_pickle=allow_pickle)
        except InputDataError:
            if not network.form.notes:
                raise
            # The file may be of the network as the factory makes it, e.g. with weight norm.
            taken = load_weights(built, weights, allow_pickle=allow_pickle)
            network = take_in(built)
    return WithWeights(network.network, taken, network.form.notes)


def _built(model: str, facts: DataFacts, arguments: Sequence[str]) -> nn.Module:
    sizes: dict[str, int] = {}
    if facts.n_classes is not None:
        sizes["n_classes"] = facts.n_classes
    if facts.image_shape is not None:
        sizes |= {"in_channels": facts.image_shape[0], "image_size": facts.image_shape[1]}
    with torch.random.fork_rng(devices=[]):  # its weights are replaced; the global RNG state stays
        return make_model(model, **sizes, arguments=parse_arguments(arguments))


def save_network(
    model: nn.Module,
    path: Path,
    *,
    plan: CompressionPlan | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a network's tensors as safetensors, atomically.

    Args:
        model: The network.
        path: The file.
        plan: The plan that the network follows, for the file's metadata.
        kept: Channel group -> indices of the units that stay, for the file's metadata. With it
            the network's shape can be rebuilt from the original one without any data; which
            layers are quantized, and how, and which have masks is noted too. What a mask hides is
            kept: in further training it can come back.
    """
    # Clones, because safetensors takes no tensors that share memory.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in _state(model).items()}
    for name, first in shared_names(model).items():
        if name in tensors and first in tensors and torch.equal(tensors[name], tensors[first]):
            del tensors[name]
    facts: dict[str, Any] = {"version": NETWORK_VERSION}
    if plan is not None:
        facts["plan"] = dict(plan)
    if kept is not None:
        facts["kept"] = {group: index.tolist() for group, index in kept.items()}
    if quantized_layers(model) or masked_layers(model):
        facts["structure"] = describe(model)
    # One entry, because safetensors writes several in an order that differs from run to run.
    metadata = {_ENTRY: json.dumps(facts)}
    write_atomic(path, safetensors.torch.save(tensors, metadata=metadata))


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict; weights that were assigned to centroids for good are those centroids.

    Loaded again, every one of them is nearest to the centroid that it is, so that the assignments
    need no tensor of their own.
    """
    state: dict[str, Tensor] = model.state_dict()
    for name, layer in quantized_layers(model).items():
        for parameter in layer.quantized_parameters:
            if state.pop(f"{name}.{parameter}_quantizer.assignments", None) is not None:
                state[f"{name}.{parameter}"] = layer.quantized_weight(parameter)
    return state


@dataclass(frozen=True)
class Shape:
    """Facts that turn the original network into the shape of a saved smaller one.

    Args:
        kept: Channel group -> sorted indices of the units that stay; groups that lose none are
            missing.
        structure: Which layers are quantized, and how, and which have masks; None if none is or
            has.
    """

    kept: dict[str, Tensor]
    structure: dict[str, Any] | None = None


def read_shape(path: Path) -> Shape:
    """Returns how the network in a file is built from the original one.

    Raises:
        RunFolderError: If the file is missing, damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        facts = parse_json(metadata[_ENTRY]) if _ENTRY in metadata else metadata
        if (version := facts.get("version")) != NETWORK_VERSION:
            raise RunFolderError(
                f"{path} has version {version}, this release reads {NETWORK_VERSION}; use the "
                f"release that wrote it."
            )
        check_shape(facts, _FACTS)
        rows = facts["kept"]
        kept = {group: torch.tensor(index, dtype=torch.int64) for group, index in rows.items()}
        return Shape(kept, facts.get("structure"))
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} is missing; continue the run with `amc compress ... --resume`."
        ) from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path} is damaged or holds no compressed network ({type(error).__name__}: {error}); "
            f"start the run again in a new folder."
        ) from error


def load_original(folder: RunFolder) -> nn.Module:
    """Returns the uncompressed network of a run, in eval mode.

    Raises:
        RunFolderError: If the run has none yet.
        InputDataError: If the file is damaged.
    """
    path = folder / "original.safetensors"
    if not path.exists():
        raise RunFolderError(
            f"{path} is missing; continue the run with `amc compress ... --resume`."
        )
    if folder.given is not None:
        model = copy.deepcopy(folder.given.network)
    else:
        model = build_original(folder.config.model, folder.facts, folder.config.model_args)
    load_weights(model, path)
    return model.eval()


def load_smaller(folder: RunFolder, name: str) -> nn.Module:
    """Returns a compressed network of a run: the original, cut, masked, quantized, and its tensors.

    Args:
        folder: The run.
        name: ``"pruned.safetensors"`` (before fine-tuning) or ``"model.safetensors"``.
    """
    path = folder / name
    shape = read_shape(path)
    model = _of_shape(trace_original(folder), shape, path)
    load_weights(model, path)
    return model.eval()


def _of_shape(traced: TracedModel, shape: Shape, path: Path) -> nn.Module:
    """The original, cut and rebuilt as a file says."""
    try:
        model = traced.slice(shape.kept)
        return model if shape.structure is None else rebuild(model, shape.structure)
    except _UNFIT as error:
        raise RunFolderError(
            f"{path} is damaged, or of another network ({str(error).rstrip('.')}); restore it, or "
            f"start the run again in a new folder."
        ) from error


def _traced(folder: RunFolder) -> TracedModel:
    config = folder.config
    original, example = load_original(folder), example_of(folder)
    with folder.naming_options():
        return trace(
            original, example, ignore=config.ignore, part=config.part, branches=config.depth
        )


def trace_original(folder: RunFolder) -> TracedModel:
    """Returns a run's network, traced as its search did; every stage gets the same, to look at.

    Tracing proves every cut, which takes long: it is done again only if the file is another one.

    Raises:
        RunFolderError: If the run has not come to a network yet.
        InputDataError: If the file is damaged.
    """
    path = folder / "original.safetensors"
    state = (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None
    found = _TRACED.get(folder)
    if found is None or found[0] != state:
        found = state, _traced(folder)
        _TRACED[folder] = found
    return found[1]


def compressed_name(folder: RunFolder) -> str:
    """Returns the file with the most finished smaller network: fine-tuned, else as pruned.

    Raises:
        RunFolderError: If there is none yet.
    """
    for stage, name in (("finetune", "model.safetensors"), ("search", "pruned.safetensors")):
        if folder.is_done(stage):
            return name
    raise RunFolderError(
        f"{folder.path} holds no compressed network yet; run `amc search` or `amc compress` first."
    )


def load_compressed(
    directory: str | Path, *, trust: bool = False, model: nn.Module | None = None
) -> nn.Module:
    """Returns the compressed network of a run folder, ready to use; needs no data.

    Args:
        directory: The folder.
        model: The original network, trained or not, of a run of ``compress``: such a folder holds
            no code that makes it.
        trust: Whether to run the code that the folder names as its model, if it names any. Without
            it a folder may come from anywhere.

    Example:
        >>> model = load_compressed("runs/resnet20")      # doctest: +SKIP
        >>> logits = model(images)                        # doctest: +SKIP

    Raises:
        RunFolderError: If the folder is no run, damaged, not that far yet, or names code.
    """
    if model is not None:
        folder = RunFolder.open(Path(directory), uses=())
        network = take_in(model, "cpu").network
        folder.given = Given(network, example_input(folder.facts), CLASSIFICATION)
        return load_smaller(folder, compressed_name(folder))
    allowed = EVERYTHING if trust else NOTHING
    folder = RunFolder.open(Path(directory), trust=allowed, uses=("model",))
    return load_smaller(folder, compressed_name(folder))

"""Packed files: quantized and sparse networks on disk at the size promised, and back again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amc_compress.learners.layers.bit_layers import is_bit_module
from amc_compress.learners.layers.masked import MASK, mask_of, masked_layers
from amc_compress.learners.layers.quantized import QuantizedLayer, quantized_layers
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.structure import describe, rebuild
from amc_compress.learners.networks.intake import plain_float, take_in
from amc_compress.learners.packing.example import described, example
from amc_compress.learners.packing.format import (
    Entry,
    Stored,
    bfloat16,
    build_file,
    codes,
    pack_bits,
    raw,
    read_file,
    sparse,
    unpack_bits,
)
from amc_compress.learners.packing.sharing import shared_names, with_shared
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tracing.branches.left_out import DEPTH
from amc_compress.learners.tracing.traced_model import trace
from amc_env.errors import InputDataError
from amc_env.files import save_bytes
from amc_env.plan import CompressionPlan

Array = npt.NDArray[Any]

_FIXED = "_quantizer.assignments"  # the codes themselves hold them


def save_packed(
    network: nn.Module,
    path: str | Path,
    *,
    kept: Mapping[str, Tensor] | None = None,
    plan: CompressionPlan | None = None,
    example_input: Inputs | None = None,
    part: str | None = None,
) -> int:
    """Writes a quantized network to one file, atomically.

    Weights of quantized layers are stored as codes of their bits, everything else as it is: the
    network that :func:`load_packed` returns computes the same outputs, bit for bit. If a layer has
    a mask, the weights of all layers are entropy-coded, and of masked ones only those stored that
    count; what is kept behind a mask is not.

    Args:
        network: Of any learner; without quantized and masked layers everything is stored in
            float32, zeros as well. So are float16, bfloat16 and float64 weights.
        path: Where to write; conventionally ``*.packed``.
        kept: Channel group -> units that stay, if the network was sliced before, and
            ``"branch:depth"`` -> none for branches that are left out.
        plan: The plan that made it, for the record.
        example_input: What the network is called with, of which structure and shapes are stored.
            Needed to load sliced networks, here or there.
        part: The submodule that was compressed, if not the whole network.

    Returns:
        The size of the file in bytes.

    Raises:
        InputDataError: If weights are NaN or infinite.
        RunFolderError: If the file cannot be written.
    """
    data = packed_bytes(network, kept=kept, plan=plan, example_input=example_input, part=part)
    save_bytes(Path(path), data)
    return len(data)


def packed_bytes(
    network: nn.Module,
    *,
    kept: Mapping[str, Tensor] | None = None,
    plan: CompressionPlan | None = None,
    example_input: Inputs | None = None,
    part: str | None = None,
) -> bytes:
    """Returns the content of a packed file; the arguments are those of :func:`save_packed`."""
    network = plain_float(network)
    document: dict[str, Any] = {"structure": describe(network)}
    if kept:
        document["kept"] = {group: _mask(units) for group, units in kept.items()}
        document |= {} if part is None else {"part": part}
    if example_input is not None:
        document["input"] = described(example_input)
    if plan is not None:
        document["plan"] = dict(plan)
    return build_file(document, _arrays(network))


def _arrays(network: nn.Module) -> list[tuple[Entry, bytes]]:
    weights = dict(_held_weights(network))
    is_sparse = bool(masked_layers(network))
    arrays = []
    again = _stored_under_another_name(network)
    scales = dict(_short_scales(network))
    for key, tensor in network.state_dict().items():
        if key in again or f".{key}".endswith((_FIXED, f".{MASK}")):
            continue
        held = weights.get(key)
        if held is not None and held.mask is not None:
            tensor = tensor * held.mask
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputDataError(
                f"Expected finite weights to store, got NaN or infinite numbers in {key!r}."
            )
        if held is None:
            arrays.append(_plain(key, tensor, scales.get(key, torch.float32)))
        else:
            arrays.append(_weights(key, held, tensor, is_sparse))
    return arrays


@dataclass(frozen=True)
class _Held:
    """What a layer does with one of its weights."""

    quantizer: Quantizer | None
    mask: Tensor | None


def _held_weights(network: nn.Module) -> Iterator[tuple[str, _Held]]:
    """Yields the weights that are stored as codes, or entropy-coded in a sparse network."""
    for name, layer in network.named_modules(remove_duplicate=False):
        if isinstance(layer, QuantizedLayer):
            for parameter in layer.quantized_parameters:
                mask = mask_of(layer) if parameter == "weight" else None
                quantizer = layer.weight_quantizers().get(parameter)
                yield _key(name, parameter), _Held(quantizer, mask)
        elif is_bit_module(layer):
            for parameter, _ in layer.named_parameters(recurse=False):
                if parameter.startswith("weight"):
                    yield _key(name, parameter), _Held(None, mask_of(layer))


def _stored_under_another_name(network: nn.Module) -> set[str]:
    """Keys of tensors that are stored before; layers may quantize or mask one weight each."""
    own = {
        key
        for key, held in _held_weights(network)
        if held.quantizer is not None or held.mask is not None
    }
    return {key for key, first in shared_names(network).items() if not {key, first} & own}


def _weights(key: str, held: _Held, weight: Tensor, is_sparse: bool) -> tuple[Entry, bytes]:
    """Returns entry and bytes of a layer's weights: as they are, as codes, or entropy-coded."""
    places = None if held.mask is None else held.mask.cpu().numpy()
    if held.quantizer is not None:
        numbers = held.quantizer.encode(weight.detach()).cpu().numpy()
        if is_sparse:
            return sparse(key, numbers, places, held.quantizer.bits)
        return codes(key, numbers, held.quantizer.bits)
    if is_sparse and weight.is_floating_point():
        return sparse(key, _numbers(weight), places)
    return raw(key, _numbers(weight))


def _short_scales(network: nn.Module) -> Iterator[tuple[str, torch.dtype]]:
    """Yields the scales that are stored in half the bytes, and as what."""
    for name, quantizer in network.named_modules(remove_duplicate=False):
        kind = getattr(quantizer, "scale_dtype", torch.float32)
        if isinstance(quantizer, Quantizer) and kind != torch.float32:
            yield _key(name, "scale"), kind


def _plain(key: str, tensor: Tensor, kind: torch.dtype) -> tuple[Entry, bytes]:
    """Returns entry and bytes of a tensor that is no weight, as a type that has its numbers."""
    if kind == torch.float32 or not torch.equal(tensor.to(kind).to(tensor), tensor):
        return raw(key, _numbers(tensor))
    if kind == torch.bfloat16:
        return bfloat16(key, _numbers(tensor))
    return raw(key, _numbers(tensor.to(kind)))


def _numbers(tensor: Tensor) -> Array:
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    numbers: Array = tensor.detach().cpu().numpy()
    return numbers


def _key(name: str, tensor: str) -> str:
    """Returns the key in the state dict."""
    return f"{name}.{tensor}".lstrip(".")


def load_packed(
    path: str | Path, original: nn.Module, *, example_input: Inputs | None = None
) -> nn.Module:
    """Loads a network that :func:`save_packed` wrote; needs no data and runs no stored code.

    Args:
        path: The file.
        original: The uncompressed network in any form; it is not changed, and its weights do not
            matter.
        example_input: What the network is called with, for a sliced one whose file does not hold
            the shapes.

    Returns:
        The network in ``eval`` mode and float32, on the device of ``original``, trainable like the
        saved one.

    Raises:
        InputDataError: If the file is missing, damaged, of another version, or of another network.
    """
    document, arrays = _read(path)
    float_network = original = take_in(original).network
    if kept := document.get("kept"):
        known = document.get("input"), document.get("part")
        float_network = _sliced(original, kept, known, example_input, path)
    try:
        network = rebuild(float_network, document["structure"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _other_network(path, error) from error
    _fill(network, arrays, path)
    return network.eval()


def read_packed_plan(path: str | Path) -> CompressionPlan | None:
    """Returns the plan stored in a packed file, or ``None`` where there is none.

    Raises:
        InputDataError: If the file is missing, damaged or of another version.
    """
    plan = _read(path)[0].get("plan")
    return None if plan is None else CompressionPlan(plan)


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Returns what a packed file says, and its arrays."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputDataError(
            f"Expected a packed network at {path}, got {error.strerror or error}."
        ) from error
    return read_file(data, str(path))


def _mask(units: Tensor) -> str:
    """Returns the units as a bit mask, hexadecimal; bit ``i % 8`` of byte ``i // 8`` is unit i."""
    indices = torch.as_tensor(units).cpu().numpy()
    flags = np.zeros(int(indices.max(initial=-1)) + 1, dtype=np.uint8)
    flags[indices] = 1
    return pack_bits(flags, 1).hex()


def _units(mask: str) -> Tensor:
    data = bytes.fromhex(mask)
    return torch.from_numpy(np.flatnonzero(unpack_bits(data, 1, 8 * len(data))))


def _sliced(
    original: nn.Module,
    kept: Mapping[str, str],
    known: tuple[Any, str | None],
    given: Inputs | None,
    path: str | Path,
) -> nn.Module:
    """Cuts the original as a file says, which may know an example and the part that was cut."""
    stored, part = known
    if given is None and stored is None:
        raise InputDataError(
            f"{path} holds a network with channels cut, but not the shape of its input; pass "
            f"example_input."
        )
    if given is None:
        device = next((p.device for p in original.parameters()), torch.device("cpu"))
        try:
            given = example(stored, device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _other_network(path, error) from error
    try:
        has_branches = any(name.endswith(DEPTH) for name in kept)
        return trace(original, given, part=part, branches=has_branches).slice(
            {name: _units(mask) for name, mask in kept.items()}
        )
    except ValueError as error:
        raise _other_network(path, error) from error


def _fill(network: nn.Module, arrays: Mapping[str, Stored], path: str | Path) -> None:
    """Copies the arrays into the rebuilt network, the tables first, then what they decode."""
    masks = {
        _key(name, MASK): _key(name, "weight")
        for name, layer in network.named_modules(remove_duplicate=False)
        if mask_of(layer) is not None
    }
    state = {k: v for k, v in network.state_dict().items() if k not in masks}
    arrays = with_shared(arrays, network)
    if missing := sorted(state.keys() - arrays.keys()):
        raise _other_network(path, f"it lacks {missing[:3]}")
    if unknown := sorted(arrays.keys() - state.keys()):
        raise _other_network(path, f"it holds {unknown[:3]}")
    for key, stored in arrays.items():
        if tuple(state[key].shape) != stored.entry.shape:
            raise _other_network(
                path,
                f"{key} has shape {stored.entry.shape} there and {tuple(state[key].shape)} here",
            )
    tensors = {key: torch.from_numpy(stored.array.copy()) for key, stored in arrays.items()}
    tensors |= _stored_masks(masks, arrays, path)
    network.load_state_dict(tensors)
    for name, layer in quantized_layers(network).items():
        for parameter, quantizer in layer.weight_quantizers().items():
            stored = arrays[_key(name, parameter)]
            if stored.entry.bits != quantizer.bits:
                raise _other_network(path, f"{name} is stored as {stored.entry.kind!r}")
            weight = layer.get_parameter(parameter)
            values = torch.from_numpy(stored.array).to(weight.device)
            with torch.no_grad():
                weight.copy_(quantizer.decode(values))
                if layer.weight_mask is not None and parameter == "weight":
                    weight.masked_fill_(~layer.weight_mask, 0.0)


def _stored_masks(
    masks: Mapping[str, str], arrays: Mapping[str, Stored], path: str | Path
) -> dict[str, Tensor]:
    """Returns the masks, which the weights hold."""
    found = {}
    weights = set(masks.values())
    for key, stored in arrays.items():
        if key not in weights and stored.mask is not None and not stored.mask.all():
            raise _other_network(path, f"{key} has a mask there and none here")
    for key, weight in masks.items():
        mask = arrays[weight].mask
        if mask is None:
            raise _other_network(path, f"{weight} has no mask there")
        found[key] = torch.from_numpy(mask.copy())
    return found


def _other_network(path: str | Path, reason: object) -> InputDataError:
    return InputDataError(
        f"{path} was packed from another network than the one given ({reason}); pass the original "
        f"that was compressed."
    )

"""Builds compressed networks: folds norms, describes and rebuilds them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from amc_compress.learners.layers.bit_layers import bit_layer, is_bit_module
from amc_compress.learners.layers.following_norms import following_norms
from amc_compress.learners.layers.masked import Masked, mask_of, sparse_layer
from amc_compress.learners.layers.quantized import (
    QuantizedLayer,
    quantized_layers,
)
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.shared_weights import sharing_weights
from amc_compress.learners.tasks.inputs import Inputs, ask, hooked
from amc_compress.learners.tasks.outputs import tensors_in
from amc_env.errors import InputDataError, PlanMismatchError

DESCRIPTION_VERSION = 1

_N_COMPARED = 4096  # numbers of a norm's answer

_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Axes of a weight -> the norm over the outputs of such a layer."""


def foldable_norms(network: nn.Module) -> dict[str, str]:
    """Returns norm -> convolution or linear layer that it directly follows, of a subclass too.

    Norms in parts that ``torch.fx`` cannot trace have none, and stay in float.
    """
    modules = dict(network.named_modules())
    found = {}
    for layer, norm in following_norms(network).items():
        before = modules[layer]
        products = isinstance(before, _ConvNd | nn.Linear) and not isinstance(
            before, QuantizedLayer
        )
        if products and type(modules[norm]) is _NORMS.get(before.weight.dim()):
            found[norm] = layer
    return found


@torch.no_grad()
def fold_norms(network: nn.Module, norms: Mapping[str, str] | None = None) -> dict[str, str]:
    """Folds batch norms into the layers before them, in place: ``W' = W g / sqrt(v + eps)``.

    The norm becomes an ``nn.Identity``, the layer gains a bias. Equal to the network in ``eval``
    mode up to rounding.

    Args:
        network: The network, changed.
        norms: Norm -> layer; found by tracing if ``None``.

    Returns:
        What was folded: norm -> layer.
    """
    folded = dict(foldable_norms(network) if norms is None else norms)
    for norm, layer in folded.items():
        _fold(network.get_submodule(layer), network.get_submodule(norm))
        replace_module(network, norm, nn.Identity())
    return folded


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    assert isinstance(layer, _ConvNd | nn.Linear)
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    shift = torch.zeros_like(factor)
    if norm.affine:
        factor, shift = factor * norm.weight, norm.bias.detach().clone()
    before: Tensor | float = 0.0 if layer.bias is None else layer.bias
    weight = layer.weight * _by_outputs(factor, layer)
    # New parameters, because the old ones may be shared with another layer.
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter((before - norm.running_mean) * factor + shift)


def _by_outputs(factor: Tensor, layer: _ConvNd | nn.Linear) -> Tensor:
    """Returns a factor of every output so that it broadcasts over a layer's weights."""
    size, rest = layer.weight.shape[:2], (1,) * (layer.weight.dim() - 2)
    if not isinstance(layer, _ConvTransposeNd):
        return factor.view(-1, 1, *rest)
    by_group = factor.view(layer.groups, 1, -1)
    return by_group.expand(-1, size[0] // layer.groups, -1).reshape(*size, *rest)


def folded_copy(network: nn.Module, probe: Inputs) -> tuple[nn.Module, dict[str, str]]:
    """Returns a copy with its norms folded, unless that changes its answers, and what was folded.

    Weights that stay what they are are shared with the network.

    A norm behind a linear layer may run over another axis than the layer's outputs, which only
    running it can tell.

    Args:
        network: The network in ``eval`` mode.
        probe: A few real inputs.
    """
    folded = sharing_weights(network)
    norms = fold_norms(folded)
    expected, calls = _answers(network, probe, norms)
    found, _ = _answers(folded, probe, norms)
    alone = all(calls[layer] == calls[norm] for norm, layer in norms.items())
    if alone and len(expected) == len(found) and all(map(_near, found, expected)):
        return folded, norms
    return sharing_weights(network), {}


def _answers(
    network: nn.Module, probe: Inputs, norms: Mapping[str, str]
) -> tuple[list[Tensor], Counter[str]]:
    """Returns what a network answers, and how often it calls its modules.

    A detector's answers are those of its norms, or of what took their place: rounding may exchange
    two detections of equal score.
    """
    inside: list[Tensor] = []
    calls: Counter[str] = Counter()

    def note(name: str, answer: object) -> None:
        calls[name] += 1
        if name in norms:
            flat = (tensor.detach().flatten() for tensor in tensors_in(answer))
            inside.extend(x[:: 1 + len(x) // _N_COMPARED].clone() for x in flat)

    handles = [
        module.register_forward_hook(lambda _, __, answer, name=name: note(name, answer))
        for name, module in network.named_modules()
        if name in norms or name in norms.values()
    ]
    with hooked(handles), torch.no_grad():
        answer = ask(network, probe)
    detections = isinstance(answer, list) and any(isinstance(x, dict) for x in answer)
    return inside if detections else list(tensors_in(answer)), calls


def _near(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    if not expected.is_floating_point() or not expected.numel():
        return torch.equal(found, expected)
    scale = expected.abs().max().clamp(min=1e-6)
    return bool(((found - expected).abs() <= 1e-3 * scale).all())


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the module of a qualified name."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent) if parent else network, last, module)


def quantize_layer(
    layer: nn.Module,
    weights: Quantizer | Mapping[str, Quantizer | None] | None,
    inputs: Quantizer | None,
) -> QuantizedLayer:
    """Returns the quantized twin of a layer with weights; parameters are shared.

    Args:
        layer: Any layer that gets bits, see ``bit_layers``.
        weights: Quantizer of its weight, or parameter -> quantizer.
        inputs: Quantizer of its input.
    """
    kind = layer.plain if isinstance(layer, Masked) else type(layer)
    return QuantizedLayer.of_class(kind).of(layer, weights, inputs)


def quantize_layers(
    network: nn.Module, quantizers: Mapping[str, tuple[Quantizer | None, Quantizer | None]]
) -> nn.Module:
    """Replaces layers by their quantized twins, in place; all parameters become trainable.

    Args:
        network: The folded network.
        quantizers: Layer, as a graph names it -> quantizers of its weights and of its input.
    """
    network.requires_grad_(True)
    weights: dict[str, dict[str, Quantizer | None]] = {}
    inputs: dict[str, Quantizer | None] = {}
    for name, (of_weights, of_input) in quantizers.items():
        place = bit_layer(network, name)
        assert place is not None
        weights.setdefault(place.module, {})[place.parameter] = of_weights
        inputs[place.module] = of_input
    for module, by_parameter in weights.items():
        layer = network.get_submodule(module)
        replace_module(network, module, quantize_layer(layer, by_parameter, inputs[module]))
    return network.eval()


def folded_like(network: nn.Module, norms: Mapping[str, str], layers: Sequence[str]) -> nn.Module:
    """Returns a folded copy of a float network with the original's module names.

    Weights that stay what they are are shared with the network.

    Args:
        network: The network, sliced for example; norms folded already are skipped.
        norms: What was folded in the original: norm -> layer.
        layers: What will be quantized.

    Raises:
        PlanMismatchError: If a layer is missing, or quantized already.
    """
    modules = dict(network.named_modules())
    for name in layers:
        place = bit_layer(network, name)
        if place is None or isinstance(modules[place.module], QuantizedLayer):
            raise PlanMismatchError(
                f"Expected a float layer {name!r} as in the original network, got "
                f"{type(modules.get(name)).__name__}."
            )
    folded = sharing_weights(network).eval()
    fold_norms(folded, {n: x for n, x in norms.items() if isinstance(modules.get(n), _BatchNorm)})
    return folded


def same_state(network: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have equal parameters and buffers."""
    state, expected = network.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(value, expected[key]) for key, value in state.items()
    )


def describe(network: nn.Module) -> dict[str, Any]:
    """Returns plain JSON values from which :func:`rebuild` makes the same modules."""
    layers = {}
    for name, layer in quantized_layers(network).items():
        found, inputs = layer.weight_quantizers(), layer.input_quantizer
        weights = {
            parameter: found[parameter].describe() if parameter in found else None
            for parameter in layer.quantized_parameters
        }
        layers[name] = {
            **({"weights": weights} if weights.keys() != {"weight"} else weights),
            "input": None if inputs is None else inputs.describe(),
            "bias": _has_bias(layer),
        }
    identities = [name for name, m in network.named_modules() if type(m) is nn.Identity]
    described = {"version": DESCRIPTION_VERSION, "layers": layers, "identities": identities}
    # Under all its names, where one layer is used in several places.
    modules = network.named_modules(remove_duplicate=False)
    masked = {n: _has_bias(m) for n, m in modules if mask_of(m) is not None}
    if masked:
        described["masked"] = masked
    return described


def rebuild(float_network: nn.Module, description: Mapping[str, Any]) -> nn.Module:
    """Builds the modules that :func:`describe` saw; values come by ``load_state_dict``.

    Masks are values too: until they come, all weights count.

    Args:
        float_network: The network before masking, folding and quantizing, sliced already if the
            described one was; it is copied.
        description: What :func:`describe` returned.

    Raises:
        InputDataError: If the description is of another network or version.
    """
    if description.get("version") != DESCRIPTION_VERSION:
        raise InputDataError(
            f"Expected a description of version {DESCRIPTION_VERSION}, got "
            f"{description.get('version')!r}; write it again with this release."
        )
    network = copy.deepcopy(float_network).eval()
    masked: dict[nn.Module, nn.Module] = {}
    for name, has_bias in description.get("masked", {}).items():
        layer = _described_layer(network, name, has_bias)
        if layer not in masked:
            every = torch.ones_like(layer.get_parameter("weight"), dtype=torch.bool)
            masked[layer] = sparse_layer(layer, every)
        network = _with_module(network, name, masked[layer])
    modules = dict(network.named_modules())
    for name, entry in description["layers"].items():
        layer = _described_layer(network, name, entry["bias"])
        parts = entry["weights"] if "weights" in entry else {"weight": entry["weight"]}
        weights = {parameter: _described(part) for parameter, part in parts.items()}
        made = quantize_layer(layer, weights, _described(entry["input"]))
        network = _with_module(network, name, made)
    for name in description["identities"]:
        if isinstance(modules.get(name), _BatchNorm):
            replace_module(network, name, nn.Identity())
    return network


def _described(quantizer: Mapping[str, Any] | None) -> Quantizer | None:
    return None if quantizer is None else Quantizer.from_description(dict(quantizer))


def _has_bias(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "bias", None), Tensor)


def _described_layer(network: nn.Module, name: str, has_bias: bool) -> nn.Module:
    """Returns a layer of the float network, with the bias that it got from a folded norm."""
    layer = dict(network.named_modules(remove_duplicate=False)).get(name)
    if layer is None or not is_bit_module(layer):
        raise InputDataError(
            f"Expected a layer {name!r} as described, got "
            f"{type(layer).__name__}; rebuild from the network that was compressed."
        )
    if has_bias and layer.bias is None:
        assert isinstance(layer, _ConvNd | nn.Linear)
        outputs = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
        layer.bias = nn.Parameter(layer.weight.new_zeros(outputs))
    return layer


def _with_module(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replaces a module of the network, or the network itself."""
    if name == "":
        return module
    replace_module(network, name, module)
    return network


def layer_weights(network: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Returns the weights of a layer, and which of them count (``None`` if all do)."""
    place = bit_layer(network, name)
    assert place is not None
    layer = network.get_submodule(place.module)
    return layer.get_parameter(place.parameter).detach(), mask_of(layer)


def same_weights(network: nn.Module, other: nn.Module, name: str) -> bool:
    """Whether a layer has the same weights in two networks, and the same of them count."""
    (weight, mask), (expected, kept) = layer_weights(network, name), layer_weights(other, name)
    if mask is None or kept is None:
        return mask is kept and torch.equal(weight, expected)
    return torch.equal(mask, kept) and torch.equal(weight, expected)

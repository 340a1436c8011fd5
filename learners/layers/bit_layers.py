"""Which layers get bits: whose weights, along which axis these have channels, and whose inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from amc_compress.learners.layers.shared_weights import holders_of
from amc_compress.learners.layers.weight_forms import is_matrix_layer
from amc_env.graph import LayerGraph, LayerSpec
from amc_env.validation.sentences import some

IGNORED = "to be ignored"
_KINDS = ("conv", "linear", "recurrent", "embedding")


@dataclass(frozen=True)
class BitLayer:
    """A weight that can be quantized: a layer of the graph, by the name it has there.

    Args:
        module: Qualified name of the module that holds it.
        parameter: Its name in that module.
        axis: Along which its outputs lie; with the granularity ``"channel"`` each has a scale.
            Groups of a transposed convolution share those along axis 1, where ``x @ weight`` has
            its outputs too.
        has_input: Whether the module's input gets bits as well, because it is what the weight
            multiplies.
    """

    module: str
    parameter: str = "weight"
    axis: int = 0
    has_input: bool = True


@dataclass(frozen=True)
class BitLayers:
    """What of a network gets bits, and what stays in float.

    Attributes:
        layers: In network order.
        left: Weights that stay in float, by layer or parameter -> the reason.
    """

    layers: Mapping[str, BitLayer]
    left: Mapping[str, str] = field(default_factory=dict)

    def without(self, idle: Sequence[str]) -> BitLayers:
        """Returns the same without some layers, whose modules never run."""
        layers = {name: layer for name, layer in self.layers.items() if name not in idle}
        reason = "the module around it reads its weight, or it never runs"
        return BitLayers(layers, {**self.left, **dict.fromkeys(idle, reason)})

    def notes(self) -> tuple[str, ...]:
        """Returns sentences on what stays in float, or none."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            if reason != IGNORED:  # the user knows
                reasons.setdefault(reason, []).append(name)
        told = [f"{some(names)} ({reason})" for reason, names in reasons.items()]
        found = [f"weights that stay in float32: {'; '.join(told)}."] if told else []
        alone = [name for name, layer in self.layers.items() if not layer.has_input]
        if alone:
            found.append(
                f"inputs that stay in float32, because only the weights get bits there (tables, "
                f"recurrent layers): those of {some(alone)}."
            )
        return tuple(found)


def bit_layer(network: nn.Module, name: str) -> BitLayer | None:
    """Returns the weight of a layer's name, ``None`` where it can get no bits."""
    found = _bit_layer(network, name)
    return found if isinstance(found, BitLayer) else None


def bit_layers(network: nn.Module, graph: LayerGraph, ignore: Sequence[str]) -> BitLayers:
    """Returns the layers that may be quantized, and why others may not.

    Args:
        network: The network of ``graph``.
        graph: Facts about it.
        ignore: Layers, or modules that hold them, that stay as they are.

    Raises:
        ValueError: If a name to ignore is that of no layer.
    """
    check_ignored(graph, ignore)
    owners = holders_of(network.modules())
    layers, left = {}, {}
    for layer in graph.layers:
        if layer.kind not in _KINDS:
            continue
        found: BitLayer | str
        if is_within(layer.name, ignore):
            found = IGNORED
        elif reason := _unused(layer, graph):
            found = reason
        else:
            found = _bit_layer(network, layer.name)
        if isinstance(found, BitLayer):
            module = network.get_submodule(found.module)
            shared = owners[id(module.get_parameter(found.parameter))] > 1
            if shared and isinstance(module, nn.Embedding):
                found = "it is the weight of another layer too"
        if isinstance(found, BitLayer):
            layers[layer.name] = found
        else:
            left[layer.name] = found
    held = {f"{x.module}.{x.parameter}" for x in layers.values()}
    return BitLayers(layers, left | _other_weights(network, held, left))


def check_ignored(graph: LayerGraph, ignore: Sequence[str]) -> None:
    """Rejects names to ignore that are those of no layer.

    Raises:
        ValueError: If there is one.
    """
    names = [layer.name for layer in graph.layers if layer.kind in _KINDS]
    for name in ignore:
        if not any(is_within(layer, [name]) for layer in names):
            raise ValueError(f"Expected layers to ignore, got {name!r}; layers: {names}.")


def is_within(layer: str, names: Sequence[str]) -> bool:
    """Whether a layer is one of these, or in a module that is."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def is_bit_module(module: nn.Module) -> bool:
    """Whether weights of such a module can get bits."""
    return is_product(module) or isinstance(module, _WEIGHTS_ALONE)


def is_product(module: nn.Module) -> bool:
    """Whether a module's input is what its weight multiplies, padded or not; subclasses too."""
    return isinstance(module, _PRODUCTS) or is_matrix_layer(module)


def along(values: Tensor, axis: int, dims: int) -> Tensor:
    """Returns values, shape (n,), so that they broadcast along one axis of a tensor."""
    shape = [1] * dims
    shape[axis] = -1
    return values.view(shape)


def weight_axis(module: nn.Module) -> int:
    """Returns the axis of a module's weights along which their outputs lie."""
    if isinstance(module, nn.Embedding):
        return 1
    # Every input of a depthwise one is a group of outputs.
    upside_down = isinstance(module, _ConvTransposeNd) and not 1 < module.groups == len(
        module.weight
    )
    return int(upside_down or is_matrix_layer(module))


def channel_axis(layer: nn.Module, outputs: Tensor) -> int:
    """Returns the axis of a layer's outputs that has its channels."""
    spatial = layer.weight.dim() - 2 if isinstance(layer, _ConvNd) else 0
    return outputs.dim() - 1 - spatial


_PRODUCTS = (_ConvNd, nn.Linear)
_WEIGHTS_ALONE = (nn.Embedding, nn.RNNBase, nn.RNNCellBase)


def _bit_layer(network: nn.Module, name: str) -> BitLayer | str:
    """Returns the weight of a layer, or why it can get no bits."""
    place, parameter = name, "weight"
    try:
        module = network.get_submodule(place)
    except AttributeError:  # named after the parameter
        place, _, parameter = name.rpartition(".")
        module = network.get_submodule(place)
    if not place or not is_bit_module(module):
        return f"{type(module).__name__} is no layer that gets bits"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "the module around it reads its weight"
    weight = vars(module)["_parameters"].get(parameter)
    if not isinstance(weight, nn.Parameter):
        return "its weight is computed in every call"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
        return "its table changes as it is read, or has sparse gradients"
    return BitLayer(place, parameter, weight_axis(module), is_product(module))


def _unused(layer: LayerSpec, graph: LayerGraph) -> str | None:
    if layer.name in graph.computed:
        return "its weight is computed in every call"
    # What the example does not run has no inputs to measure ranges on.
    runs = layer.positions or layer.kind == "embedding"
    return None if runs else "the example does not run it"


def _other_weights(network: nn.Module, held: set[str], left: Mapping[str, str]) -> dict[str, str]:
    """Returns what varies along more than one axis and is no layer's weight -> the reason."""
    found: dict[str, str] = {}
    for name, parameter in network.named_parameters():
        place = name.rpartition(".")[0]
        known = name in held or {name, name.removesuffix(".weight")} & left.keys()
        if sum(size > 1 for size in parameter.shape) > 1 and not known:
            kind = type(network.get_submodule(place)).__name__
            found[name] = f"{kind} is no layer that gets bits"
    return found

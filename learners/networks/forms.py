"""Forms of networks: wrapped, parametrised, or unusable.

``intake`` makes a plain network of them; here is what it needs to know about
each form.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from amc_compress.learners.networks.closures import check_functions
from amc_env.errors import UntraceableModelError
from amc_env.validation.sentences import some

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""Classes whose child ``module`` computes what they compute."""

_QUANTIZED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
)
_ADAPTED = ({"lora_A", "lora_B"}, {"base_layer", "merged_adapters"})
"""What modules hold that adapters (LoRA and its kind) are put around."""

_PACKED = ({"qweight", "scales"}, {"weight_packed", "weight_scale"})
"""What modules hold that compute with packed weights, of GPTQ, AWQ and compressed-tensors."""

_STATES = ("quant_state", "SCB")  # of a weight of bitsandbytes
_DEPTH = 6  # of containers in an attribute
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# ---------------------------------------------------------------------- what cannot be taken


def check_form(model: nn.Module) -> None:
    """Checks that a network is one whose weights can be read, copied and run here.

    Raises:
        UntraceableModelError: If it is none, naming the module or weight and the way out.
    """
    if isinstance(model, torch.export.ExportedProgram):
        _reject_module("", "an exported program", "pass the module that was exported")
    if not isinstance(model, nn.Module):
        raise UntraceableModelError(
            f"Expected a torch.nn.Module as the network, got {type(model).__name__}; load or build"
            " the network first."
        )
    for name, module in model.named_modules():
        _check_module(name, module)
    check_functions(model)
    check_weight_forms(model)


def check_weight_forms(model: nn.Module) -> None:
    """Checks that a network's weights are dense numbers of a type that can be computed with.

    Raises:
        UntraceableModelError: If one is not, naming it and the way out.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _check_tensor(name, tensor)


def _check_module(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        _reject_module(name, "a TorchScript module", "pass the module that was scripted or traced")
    homes = [kind.__module__ for kind in type(module).__mro__]
    if any(home.startswith("torch.export.") for home in homes):
        _reject_module(name, "an exported program", "pass the module that was exported")
    if any(home.startswith("torch.distributed.fsdp") for home in homes):
        _reject_module(
            name, "an FSDP module, whose weights are spread over processes",
            "load its full state dict into the module that was wrapped, and pass that",
        )  # fmt: skip
    if any(home.startswith(_QUANTIZED) for home in homes):
        _reject_module(
            name, f"a quantized {type(module).__name__}",
            "pass the float network that was quantized",
        )  # fmt: skip
    _check_language_model(name, module)


def _check_language_model(name: str, module: nn.Module) -> None:
    """Checks for what is done to networks of ``transformers`` before they come here.

    By the tensors and children that peft, bitsandbytes, GPTQ, AWQ, HQQ and compressed-tensors give
    their modules: none of them need be installed.
    """
    held = {*module._parameters, *module._buffers, *module._modules, *vars(module)}
    kind = type(module).__name__
    if any(names <= held for names in _ADAPTED):
        _reject_module(
            name, f"the adapter {kind}",
            "merge it first, model = model.merge_and_unload()", whole=False,
        )  # fmt: skip
    weights = [module._parameters.get(x) for x in ("weight", "W_q")]  # the second one of HQQ
    if any(names <= held for names in _PACKED) or any(_is_packed(x) for x in weights):
        _reject_module(
            name, f"a quantized {kind}",
            "load the float network that was quantized, or dequantize it first", whole=False,
        )  # fmt: skip


def _is_packed(weight: Tensor | None) -> bool:
    if weight is None:
        return False
    is_number = weight.dtype.is_floating_point or weight.dtype.is_complex
    return not is_number or any(hasattr(weight, name) for name in _STATES)


def _reject_module(name: str, got: str, way_out: str, *, whole: bool = True) -> NoReturn:
    where = f" as {name!r}" if name else ""
    hint = " (the module itself rather than an exported or converted one)" if whole else ""
    raise UntraceableModelError(
        f"Expected a network of plain PyTorch modules, got {got}{where}; {way_out}{hint}."
    )


def _check_tensor(name: str, tensor: Tensor) -> None:
    got, way_out = "", ""
    if nn.parameter.is_lazy(tensor):
        raise UntraceableModelError(
            f"Expected a complete network, but {name!r} has no shape yet; run the network once"
            " on an example."
        )
    if is_traceable_wrapper_subclass(tensor):
        got, way_out = f"is a {type(tensor).__name__}", "load the plain float weights"
    elif tensor.is_meta:
        got, way_out = "has no values (device meta)", "load its weights on the cpu"
    elif tensor.is_quantized:
        got, way_out = f"has type {tensor.dtype}", "pass the float network that was quantized"
    elif tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        got, way_out = f"has the layout {layout}", "convert it with to_dense()"
    elif tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        got, way_out = f"has type {tensor.dtype}", "convert the network with model.float()"
    if got:
        raise UntraceableModelError(
            f"Expected dense weights in float16, bfloat16, float32 or float64, but {name!r} {got};"
            f" {way_out}."
        )


# ---------------------------------------------------------------------- wrappers


def wrapped_child(module: nn.Module) -> nn.Module | None:
    """Returns the network inside of a wrapper, None where there is no wrapper.

    Raises:
        UntraceableModelError: If the wrapper has hooks, which would be lost with it.
    """
    name = "_orig_mod" if _is_compiled(module) else "module"
    if name == "module" and not _is_wrapper(module):
        return None
    if module._forward_hooks or module._forward_pre_hooks:
        raise UntraceableModelError(
            f"Expected a {type(module).__name__} without forward hooks of its own, got one with"
            f" hooks; register them on its .{name}, or pass that."
        )
    return module._modules[name]


def _is_compiled(module: nn.Module) -> bool:
    # Only a process that has compiled something has loaded the compiler, which takes a second.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


def stays_wrapped(model: nn.Module) -> bool:
    """Whether a network reaches through wrappers inside of it, as ``self.body.module.stem(x)``.

    What ``torch.compile`` returns has the attributes of what it was given; of the others only
    ``module`` leads inside, so that they cannot be taken out of the way.
    """
    forwards = (getattr(type(m), "forward", None) for m in model.modules() if not _is_wrapper(m))
    codes = (getattr(forward, "__code__", None) for forward in forwards)
    return any(code is not None and "module" in code.co_names for code in codes)


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, _WRAPPERS)


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network inside of all wrappers around it, itself if there are none.

    A module without a forward of its own and with a single child, as libraries keep moving
    averages of weights in, is a wrapper too.
    """
    while isinstance(model, nn.Module):
        inner = wrapped_child(model)
        if inner is None and _only_holds(model):
            inner = next(model.children())
        if inner is None:
            break
        model = inner
    return model


def _only_holds(model: nn.Module) -> bool:
    return (
        getattr(type(model), "forward", None) is nn.Module.forward
        and "forward" not in vars(model)
        and not isinstance(model, nn.ModuleList | nn.ModuleDict)
        and not model._parameters
        and len(list(model.children())) == 1
    )


# ---------------------------------------------------------------------- computed weights


def resolve_weights(model: nn.Module) -> list[str]:
    """Replaces computed weights by their values, in place; for a copy in ``eval`` mode.

    What ``torch.nn.utils`` computes before or at every use: ``weight_norm`` and ``spectral_norm``,
    old and new, pruning masks, and parametrisations of any kind whose value depends on nothing but
    their own tensors. In ``eval`` mode the network computes the same as before, bit by bit.

    Returns:
        A sentence for every kind that was found, naming its layers.
    """
    found: dict[str, list[str]] = {}
    shared = _shared(model)
    for name, module in list(model.named_modules()):
        for kind in [*_resolve_hooks(module), *_resolve_parametrisations(module, shared)]:
            found.setdefault(kind, []).append(name or type(module).__name__)
    return [
        f"{kind} resolved in {some(names, 3)}: its present value is the weight from here on"
        for kind, names in found.items()
    ]


def _resolve_hooks(module: nn.Module) -> Iterator[str]:
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod):
            hook.remove(module)
            del module._forward_pre_hooks[key]
            yield "pruning mask"
        elif isinstance(hook, WeightNorm):
            hook.remove(module)
            del module._forward_pre_hooks[key]
            yield "weight_norm"
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            yield "spectral_norm"


def _shared(model: nn.Module) -> set[int]:
    """Returns which parameters have several places: a tie is lost with what it is made of."""
    seen: set[int] = set()
    twice: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _resolve_parametrisations(module: nn.Module, shared: set[int]) -> Iterator[str]:
    if not parametrize.is_parametrized(module):
        return
    lists = dict(module.parametrizations.items())  # type: ignore[operator,union-attr]
    values = {}
    for name, parametrisation in lists.items():
        value = _constant_value(module, name)
        tied = any(id(p) in shared for p in parametrisation.parameters())
        if value is None or tied:
            return  # what is not exact is left as it is
        trained = any(p.requires_grad for p in parametrisation.parameters(recurse=False))
        is_weight = isinstance(next(_originals(parametrisation)), nn.Parameter)
        values[name] = nn.Parameter(value, requires_grad=trained) if is_weight else value
    del module._modules["parametrizations"]
    # Not remove_parametrizations: a copy shares its class with the original, and that function
    # takes the property out of the class.
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if isinstance(value, nn.Parameter):
            module.register_parameter(name, value)
        else:
            module.register_buffer(name, value)
    for name, parametrisation in lists.items():
        kinds = [type(step).__name__.lstrip("_") for step in parametrisation]
        yield f"parametrisation {' and '.join(kinds)} of {name}"


def _originals(parametrisation: nn.Module) -> Iterator[Tensor]:
    for tensors in (parametrisation._parameters, parametrisation._buffers):
        yield from (tensor for tensor in tensors.values() if tensor is not None)


def _constant_value(module: nn.Module, name: str) -> Tensor | None:
    """Returns the value of a parametrised weight if it is the same every time, else None."""
    values: list[Tensor] = []
    with suppress(Exception), torch.random.fork_rng(), torch.no_grad():
        for seed in range(2):
            torch.manual_seed(seed)
            values.append(getattr(module, name).detach().clone())
    if len(values) == 2 and torch.equal(*values):
        return values[0]
    return None


# ---------------------------------------------------------------------- tensors of earlier runs


def detached(model: nn.Module) -> dict[int, object]:
    """Returns what ``copy.deepcopy`` takes for tensors that modules keep from an earlier run.

    They come with the graph that they were computed by, which cannot be copied.

    Returns:
        The start of a ``memo``: id -> the tensor alone.
    """
    return {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for value in list(vars(module).values())
        for tensor in _tensors_of(value)
        if tensor.requires_grad and not tensor.is_leaf
    }


def _tensors_of(value: object, depth: int = 0) -> Iterator[Tensor]:
    """Yields the tensors in an attribute: itself, or what lists and dictionaries hold."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | set) and depth < _DEPTH:
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors_of(entry, depth + 1)

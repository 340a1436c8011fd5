"""Intake of user networks: a plain float32 copy, and conversion back.

Whatever comes (``forms``), the rest works on plain float32 networks that can be
copied, and hands back networks of the type that came.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from amc_compress.learners.networks.forms import (
    check_form,
    check_weight_forms,
    detached,
    resolve_weights,
    stays_wrapped,
    unwrapped,
    wrapped_child,
)
from amc_compress.learners.numerics.precision import check_device
from amc_env.errors import UntraceableModelError
from amc_env.validation.sentences import first_line

_CHECKPOINTING = ("gradient_checkpointing", "grad_checkpointing")
"""What networks of ``transformers`` and ``timm`` call it."""


@dataclass(frozen=True)
class Form:
    """The form in which a network came.

    Attributes:
        dtypes: Parameter or buffer -> its type, where that is another than float32, of a network
            that has such weights.
        notes: What was done to make a plain float network, for the user.
    """

    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def hand_back(self, network: nn.Module) -> nn.Module:
        """Gives a network the types in which the original came, in place.

        New tensors, for example a bias that a repair has added, get the type of their layer.
        Networks with quantized layers stay in float32: a scale or centroid that is rounded again
        would change every weight that it stands for.

        Args:
            network: With the original's module names, in float32.

        Returns:
            The same network.
        """
        # Not above: quantizers import the training loop, which imports this module.
        from amc_compress.learners.layers.quantized import quantized_layers

        if not self.dtypes or quantized_layers(network):
            return network
        for prefix, module in network.named_modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.is_floating_point():
                        tensor.data = tensor.data.to(self._dtype(prefix, name))
                        tensor.grad = None
        return network

    def _dtype(self, module: str, name: str) -> torch.dtype:
        key = f"{module}.{name}".lstrip(".")
        if key in self.dtypes:
            return self.dtypes[key]
        parent = key.rpartition(".")[0]
        found = (d for n, d in self.dtypes.items() if n.rpartition(".")[0] == parent)
        return next(found, torch.float32)


@dataclass(frozen=True)
class TakenIn:
    """A network as all algorithms use it.

    Attributes:
        network: A private copy: plain modules, float32, in ``eval`` mode, on the device.
        form: In which form it came.
        live: The user's own network without wrappers, whose module names are those of ``network``;
            where names have changed, a copy in the types and mode that came.
    """

    network: nn.Module
    form: Form
    live: nn.Module


def take_in(
    model: nn.Module, device: str | torch.device | None = None, *, live: bool = False
) -> TakenIn:
    """Converts a user's network; the original is not touched.

    ``DataParallel``, ``DistributedDataParallel``, ``torch.compile`` and ``AveragedModel`` are
    unwrapped, wherever they are; ``weight_norm``, ``spectral_norm``, pruning masks and
    parametrisations are resolved where that is exact; float16, bfloat16 and float64 become
    float32. The random numbers of PyTorch are left alone.

    Args:
        model: The network.
        device: Where the copy goes; where the network is if not given.
        live: Whether ``TakenIn.live`` is needed, which may take another copy.

    Raises:
        UntraceableModelError: If it is no network that can be copied and run: lazy, scripted or
            exported modules, meta, sparse, 8-bit or quantized weights.
        ValueError: If nothing can be computed on the device.
    """
    check_device(device)
    inner = unwrapped(model)
    check_form(inner)
    notes = [] if inner is model else [f"taken out of its wrapper: {type(model).__name__}"]
    copied, nested = _copied(inner)
    notes += [f"wrapper taken out of the way: {name}" for name in nested]
    try:
        modes = [(module, module.training) for module in copied.modules()]
        copied.eval()
        if _keep_activations(copied):
            notes.append("gradient checkpointing turned off: activations are kept in training")
        resolved = resolve_weights(copied)
        own = inner
        if live and (nested or resolved):
            own = _in_modes(copied, modes)
        dtypes = float_types(copied)
        if dtypes:
            copied.float()
    except Exception as error:
        raise _uncopied(error) from error
    notes += resolved
    if dtypes:
        came = ", ".join(sorted({str(d).removeprefix("torch.") for d in dtypes.values()}))
        notes.append(f"weights in {came}: everything is computed in float32")
    copied = copied if device is None else copied.to(device)
    return TakenIn(copied.eval(), Form(dtypes, tuple(notes)), own)


def plain_float(model: nn.Module) -> nn.Module:
    """Returns the network itself if it is plain and in float32, else a copy that is.

    The device and the mode stay.

    Raises:
        UntraceableModelError: As :func:`take_in`.
    """
    inner = unwrapped(model)
    check_weight_forms(inner)
    if not float_types(inner):
        return inner
    return take_in(inner).network.train(inner.training)


@contextmanager
def as_float(model: nn.Module) -> Iterator[nn.Module]:
    """Converts a network to float32 within the block, in place, and back afterwards.

    Yields:
        The network without wrappers.
    """
    inner = unwrapped(model)
    check_weight_forms(inner)
    form = Form(float_types(inner))
    if form.dtypes:
        inner.float()
    try:
        yield inner
    finally:
        form.hand_back(inner)


def float_types(model: nn.Module) -> dict[str, torch.dtype]:
    """Returns the types of a network's tensors that are not float32, nothing if no weight is so.

    A float64 or half buffer in a float32 network is how that network computes.
    """
    if not any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
        return {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {
        name: tensor.dtype
        for name, tensor in tensors
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }


def private_copy(model: nn.Module) -> nn.Module:
    """Returns a copy in the same types and mode, nothing resolved.

    Raises:
        UntraceableModelError: If it cannot be copied.
    """
    return _copied(model)[0]


def _keep_activations(network: nn.Module) -> bool:
    """Turns gradient checkpointing off, in place; returns whether it was on.

    What runs again in the backward pass runs outside of what a training step sets up.
    """
    found = [
        (module, name)
        for module in network.modules()
        for name in _CHECKPOINTING
        if getattr(module, name, False) is True
    ]
    for module, name in found:
        setattr(module, name, False)
    return bool(found)


def _in_modes(network: nn.Module, modes: list[tuple[nn.Module, bool]]) -> nn.Module:
    """Returns a copy in the modes that came; the network itself stays in ``eval`` mode."""
    for module, training in modes:
        module.training = training
    own = copy.deepcopy(network)
    network.eval()
    return own


def _copied(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Returns a copy without wrappers inside, and which there were."""
    memo, nested = detached(model), list[str]()
    try:
        reached = stays_wrapped(model)
        # From the inside out, so that a wrapper inside of a wrapper is gone already.
        for name, module in reversed(list(model.named_modules())):
            inner = wrapped_child(module)
            if inner is not None and not (reached and "module" in module._modules):
                memo[id(module)] = copy.deepcopy(inner, memo)
                nested.append(f"{type(module).__name__} of {name}")
        copied = copy.deepcopy(model, memo)
        for module in copied.modules():
            if isinstance(module, nn.DataParallel):
                module.device_ids = []  # it stayed, and calls its module as it is
        return copied, nested[::-1]
    except UntraceableModelError:
        raise
    except Exception as error:
        raise _uncopied(error) from error


def _uncopied(error: Exception) -> UntraceableModelError:
    return UntraceableModelError(
        f"Expected a network that copy.deepcopy and eval() work on, but it raised"
        f" {type(error).__name__}: {first_line(error)}; take out of its attributes what cannot be"
        " copied (locks, open files, generators), or give the module a __deepcopy__."
    )

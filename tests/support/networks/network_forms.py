"""The forms in which users have their networks, and forms that nothing can be done with."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable

import torch
import torch.ao.quantization
import torch.nn.utils.prune as prune
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

EXAMPLE = torch.zeros(1, 3, 8, 8)
CLASSES = 4


def network(seed: int = 0) -> nn.Sequential:
    """Convolutions, norms and linear layers; with statistics, so that a norm does something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(16, 16),
            nn.ReLU(),
            nn.Linear(16, CLASSES),
        )
        nn.init.normal_(net[1].running_mean)
        nn.init.uniform_(net[1].running_var, 0.5, 1.5)
    return net


class Scaled(nn.Module):
    """A parametrisation of the user."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * weight.abs().mean()


class KeepsItsOutput(nn.Module):
    """A network that keeps a tensor with its graph, which ``copy.deepcopy`` alone cannot take."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen = {"first": [inner(EXAMPLE)]}

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class ReachesInside(nn.Module):
    """A network whose forward goes through a wrapper, which therefore has to stay."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.DataParallel(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.module(x)


class Average(nn.Module):
    """As libraries keep moving averages: a module that holds a network and has no forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def old_weight_norm(net: nn.Sequential) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(net[0])
        nn.utils.weight_norm(net[5], dim=1)
    return net


def new_weight_norm(net: nn.Sequential) -> nn.Module:
    parametrizations.weight_norm(net[0])
    parametrizations.weight_norm(net[3][0], dim=None)
    return net


def stacked_parametrisations(net: nn.Sequential) -> nn.Module:
    parametrizations.spectral_norm(net[0])
    parametrize.register_parametrization(net[0], "weight", Scaled())
    parametrize.register_parametrization(net[0], "bias", Scaled())
    return net


def orthogonal(net: nn.Sequential) -> nn.Module:
    parametrizations.orthogonal(net[5])
    return net


def old_spectral_norm(net: nn.Sequential) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.spectral_norm(net[0])
    net(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return net


def pruned(net: nn.Sequential) -> nn.Module:
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.random_unstructured(net[0], "weight", 0.5)
    prune.ln_structured(net[5], "weight", 0.25, 2, 0)
    prune.l1_unstructured(net[5], "bias", 2)
    return net


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # the default one takes seconds to load


def compiled_inside(net: nn.Sequential) -> nn.Module:
    net[3] = compiled(net[3])
    net[5] = nn.DataParallel(compiled(net[5]))
    return net


def compiled_in_place(net: nn.Sequential) -> nn.Module:
    net[3].compile(backend="eager")
    return net


def mixed(net: nn.Sequential) -> nn.Module:
    """Norms in float32, all else in half, as large networks are kept."""
    net.half()
    net[1].float()
    return net


EXACT: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "plain": lambda net: net,
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "compiled DataParallel": lambda net: compiled(nn.DataParallel(net)),
    "average of compiled": lambda net: AveragedModel(compiled(net)),
    "average without forward": Average,
    "compiled inside": compiled_inside,
    "compiled in place": compiled_in_place,
    "old weight_norm": old_weight_norm,
    "new weight_norm": new_weight_norm,
    "old spectral_norm": old_spectral_norm,
    "stacked parametrisations": stacked_parametrisations,
    "orthogonal": orthogonal,
    "prune": pruned,
    "keeps its output": KeepsItsOutput,
    "reaches inside": ReachesInside,
}
"""Name -> what makes a network of that form; it computes the same as a plain float32 network."""

TYPED: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "float16": lambda net: net.half(),
    "bfloat16": lambda net: net.bfloat16(),
    "float64": lambda net: net.double(),
    "mixed": mixed,
    "DataParallel of bfloat16": lambda net: nn.DataParallel(net.bfloat16()),
    "bfloat16 of weight_norm": lambda net: new_weight_norm(net).bfloat16(),
    "float16 of prune": lambda net: pruned(net).half(),
}
"""The same with weights of other types."""


def with_weight(net: nn.Sequential, change: Callable[[Tensor], Tensor]) -> nn.Module:
    net[5].weight = nn.Parameter(change(net[5].weight.detach()), requires_grad=False)
    return net


class Locked(nn.Sequential):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.lock = threading.Lock()


def dynamically_quantized(net: nn.Sequential) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear})


def hooked_wrapper(net: nn.Sequential) -> nn.Module:
    wrapper = nn.DataParallel(net)
    wrapper.register_forward_hook(lambda module, inputs, output: 2 * output)
    return wrapper


def scripted_inside(net: nn.Sequential) -> nn.Module:
    net[3] = scripted(net[3], torch.zeros(1, 16, 8, 8))
    return net


def scripted(net: nn.Module, example: Tensor = EXAMPLE) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net.eval(), example)


BAD: dict[str, tuple[Callable[[nn.Sequential], object], str]] = {
    "lazy": (lambda net: net.append(nn.LazyLinear(3)), "has no shape yet; run the network once"),
    "scripted": (scripted, "got a TorchScript module; pass the module that was scripted"),
    "scripted inside": (scripted_inside, "got a TorchScript module as '3'; pass the module"),
    "exported": (
        lambda net: torch.export.export(net.eval(), (EXAMPLE,)).module(),
        "the module itself rather than an exported",
    ),
    "meta": (lambda net: net.to("meta"), r"has no values \(device meta\); load its weights"),
    "sparse": (lambda net: with_weight(net, Tensor.to_sparse), r"sparse_coo; convert it with"),
    "float8": (
        lambda net: with_weight(net, lambda w: w.to(torch.float8_e4m3fn)),
        r"has type torch.float8_e4m3fn; convert the network with model.float\(\)",
    ),
    "quantized": (dynamically_quantized, "got a quantized Linear as '5'; pass the float network"),
    "hooks on a wrapper": (hooked_wrapper, "without forward hooks of its own"),
    "locked": (Locked, r"copy.deepcopy and eval\(\) work on, but it raised TypeError"),
}
"""Name -> what makes a network of that form, and what its one sentence says."""


class Untouched:
    """Remembers everything about a network that must be the same afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = self._facts()

    def _facts(self) -> list[tuple]:
        modules = [
            (
                name, type(module), module.training, sorted(vars(module)),
                list(module._forward_hooks), list(module._forward_pre_hooks),
            )
            for name, module in self.model.named_modules()
        ]  # fmt: skip
        tensors = [
            (name, id(t), t.dtype, t.requires_grad, None if t.is_meta else copy.deepcopy(t.data))
            for name, t in [*self.model.named_parameters(), *self.model.named_buffers()]
        ]
        return [*modules, *tensors, torch.get_rng_state()]

    def check(self) -> None:
        for before, after in zip(self.before, self._facts(), strict=True):
            if isinstance(before, Tensor):
                assert torch.equal(before, after)
            elif isinstance(before[-1], Tensor):
                assert before[:-1] == after[:-1]
                assert torch.equal(before[-1], after[-1])
            else:
                assert before == after

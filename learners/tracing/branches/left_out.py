"""Leaves a branch out of a network: its modules go, and what they returned is 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.layers.structure import replace_module
from amc_env.kinds import DecisionKind

_SETTINGS = (bool, int, float, str, tuple)
_OTHER_SEQUENCES = ("key_value_states", "encoder_hidden_states")  # of attention across two

DEPTH = f":{DecisionKind.DEPTH.name}"
"""What follows the name of a branch where units that stay are listed: a branch keeps none."""


class LeftOut(nn.Module):
    """Takes the place of a module in a branch that is left out: returns 0, and computes nothing.

    Code around it may still read the module's settings; its tensors are None.

    Args:
        module: Whose place it takes.
        source: Which argument tells the shape: its position, or its name.
        is_scalar: Whether the 0 has no axes, so that a sum with it costs nothing; else it has the
            shape of the source.
        outputs: None where the module returned a tensor; of a tuple, which items were tensors.
    """

    def __init__(
        self,
        module: nn.Module,
        source: int | str,
        is_scalar: bool = False,
        outputs: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        self.settings: dict[str, Any] = {name: None for name, _ in named}
        self.settings |= {key: x for key, x in vars(module).items() if isinstance(x, _SETTINGS)}
        self.training = module.training
        self.source = source
        self.is_scalar = is_scalar
        self.outputs = None if outputs is None else tuple(outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns zeros in the form of the module's output."""
        given = kwargs[self.source] if isinstance(self.source, str) else args[self.source]
        self._count_tokens(given, args, kwargs)
        zeros = given.new_zeros(()) if self.is_scalar else torch.zeros_like(given)
        if self.outputs is None:
            return zeros
        return tuple(zeros if is_tensor else None for is_tensor in self.outputs)

    def _count_tokens(self, given: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Writes into the place of an attention in a cache of ``transformers``, one channel wide.

        Such a cache knows by what is in its first place how many tokens there have been.
        """
        layer = self.settings.get("layer_idx")
        if layer is None or any(kwargs.get(name) is not None for name in _OTHER_SEQUENCES):
            return
        for cache in (*args, *kwargs.values()):
            if callable(getattr(cache, "get_seq_length", None)) and hasattr(cache, "update"):
                keys = given.new_zeros(given.shape[0], 1, given.shape[1], 1)
                cache.update(keys, keys, layer)

    def __getattr__(self, name: str) -> Any:
        """Returns a setting of the module whose place it takes."""
        settings = self.__dict__.get("settings", {})
        return settings[name] if name in settings else super().__getattr__(name)


@dataclass(frozen=True)
class Place:
    """Where a branch is in a network.

    Args:
        name: Of the branch.
        modules: Names of the modules that go, in the order of their run -> what takes their place.
        exit: The one whose output is added.
        last: The innermost module that returns just what is added, where the first module reads
            just what it is added to; else None.
    """

    name: str
    modules: Mapping[str, tuple[int | str, bool, tuple[bool, ...] | None]]
    exit: str
    last: str | None = None

    @property
    def entry(self) -> str:
        """The module that runs first: it reads what the branch is added to, or what came of it."""
        return next(iter(self.modules))

    @property
    def key(self) -> str:
        """What stands for the branch among units that stay."""
        return f"{self.name}{DEPTH}"

    def holds(self, name: str) -> bool:
        """Whether something of this name, a layer or a parameter, goes with the branch."""
        return _is_held(name, self.modules)

    def remove(self, network: nn.Module) -> None:
        """Leaves the branch out, in place; what an outer branch has taken along is gone."""
        present = {name for name, _ in network.named_modules()}
        for name, how in self.modules.items():
            if name in present:
                replace_module(network, name, LeftOut(network.get_submodule(name), *how))
                around = network.get_submodule(name.rpartition(".")[0])
                if isinstance(around, nn.TransformerEncoderLayer):
                    around.activation_relu_or_gelu = 0  # else a fused kernel reads all weights

    def silence(self, network: nn.Module) -> None:
        """Multiplies what the branch adds by 0, in place: the reference for :meth:`remove`."""
        network.get_submodule(self.exit).register_forward_hook(_silenced)


def layers_there(network: nn.Module, names: Iterable[str]) -> list[str]:
    """Returns those of some layers or parameters that did not go with a branch, in their order.

    Args:
        network: What is left of the one that has all of them.
        names: As a graph names them.
    """
    gone = [name for name, module in network.named_modules() if isinstance(module, LeftOut)]
    return [name for name in names if not _is_held(name, gone)]


def _is_held(name: str, modules: Iterable[str]) -> bool:
    return any(name == m or name.startswith((f"{m}.", f"{m}#")) for m in modules)


def _silenced(_: nn.Module, __: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output * 0
    return type(output)(x * 0 if isinstance(x, Tensor) else x for x in output)


def left_out(kept: Mapping[str, Tensor], places: Mapping[str, Place]) -> list[Place]:
    """Returns the branches that a listing of units leaves out.

    Args:
        kept: Group -> units that stay; ``"branch:depth"`` -> none.
        places: By name.

    Raises:
        ValueError: If there is no such branch, or units of it are listed.
    """
    found = []
    for key, units in kept.items():
        if not key.endswith(DEPTH):
            continue
        name = key.removesuffix(DEPTH)
        if name not in places or len(units):
            raise ValueError(
                f"Expected no units of a branch to leave out, one of {sorted(places)}, got "
                f"{len(units)} of {name!r}."
            )
        found.append(places[name])
    return found


def of_groups(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the listing without branches."""
    return {name: units for name, units in kept.items() if not name.endswith(DEPTH)}

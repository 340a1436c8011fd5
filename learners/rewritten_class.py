"""Makes the class of a module whose forward was rewritten, and lets its instances be pickled."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

_counter = itertools.count()

_classes: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}


def rebuild_class(base: type[nn.Module], source: str, names: Mapping[str, Any]) -> type[nn.Module]:
    """Returns the subclass of ``base`` with the forward that ``source`` holds.

    Equal sources share a class. Its instances pickle: the class is rebuilt where they are loaded.
    """
    key = (base, source)
    if key not in _classes:
        scope = dict(names)
        exec(compile(source, f"<rewritten {base.__name__} {next(_counter)}>", "exec"), scope)
        body = {
            "forward": scope["forward"],
            "__reduce_ex__": _reduce,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "_recipe": Recipe(base, source, names),
        }
        _classes[key] = type(base.__name__, (base,), body)
    return _classes[key]


class Recipe:
    """What a rewritten class is made from; copied by reference, pickled by value."""

    def __init__(self, base: type[nn.Module], source: str, names: Mapping[str, Any]) -> None:
        self.base = base
        self.source = source
        self.names = dict(names)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self

    def __reduce__(self) -> Any:
        modules = {k: v.__name__ for k, v in self.names.items() if isinstance(v, ModuleType)}
        others = {k: v for k, v in self.names.items() if k not in modules}
        return _unpickled, (self.base, self.source, modules, others)


def _unpickled(
    base: type[nn.Module], source: str, modules: Mapping[str, str], others: Mapping[str, Any]
) -> Recipe:
    imported = {key: import_module(name) for key, name in modules.items()}
    return Recipe(base, source, {**imported, **others})


def _reduce(self: Any, protocol: Any) -> Any:
    return _restore, (type(self)._recipe,), self.__getstate__()


def _restore(recipe: Recipe) -> nn.Module:
    cls = rebuild_class(recipe.base, recipe.source, recipe.names)
    module: nn.Module = cls.__new__(cls)
    return module

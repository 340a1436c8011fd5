"""Makes the class of a module whose forward was rewritten, and lets its instances be pickled.

The new forward has the signature of the old one. It hands the leaves of its arguments to the one of
its variants that holds for them: most modules have one variant that holds for all.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_unflatten

from amc_compress.learners.tracing.rewriting.call_arguments import flattened, signature_of
from amc_compress.learners.tracing.rewriting.symbolic_forward import same
from amc_compress.learners.tracing.rewriting.symbolic_tracer import shape_of
from amc_env.errors import InputDataError

_counter = itertools.count()

_classes: dict[tuple[Any, ...], type[nn.Module]] = {}


@dataclass(frozen=True)
class Source:
    """Code of one function, and the names that it reads."""

    code: str
    names: dict[str, Any]

    def compiled(self, title: str) -> Callable[..., Any]:
        """Returns the function."""
        scope = dict(self.names)
        exec(compile(self.code, f"<rewritten {title} {next(_counter)}>", "exec"), scope)
        function: Callable[..., Any] = scope["forward"]
        return function

    def __reduce__(self) -> Any:
        modules = {k: v.__name__ for k, v in self.names.items() if isinstance(v, ModuleType)}
        others = {k: v for k, v in self.names.items() if k not in modules}
        return _unpickled, (self.code, modules, others)


def _unpickled(code: str, modules: Mapping[str, str], others: Mapping[str, Any]) -> Source:
    imported = {key: import_module(name) for key, name in modules.items()}
    return Source(code, {**imported, **others})


@dataclass(frozen=True)
class VariantCode:
    """A rewritten forward for one kind of arguments.

    Args:
        forward: Its code, a function of the module and the free leaves.
        guards: Code of a function that returns the numbers which the variant depends on.
        expected: What those must be.
        spec: How the arguments must be packed.
        free: Leaves that it takes.
        constants: ``(leaf, value that it must have)``.
        present: Leaves that must not be None.
        pinned: What the module was cut for, as in ``attn_mask=None``.
    """

    forward: Source
    guards: Source
    expected: tuple[Any, ...]
    spec: TreeSpec
    free: tuple[int, ...]
    constants: tuple[tuple[int, Any], ...]
    present: tuple[int, ...]
    pinned: str

    @property
    def takes_all(self) -> bool:
        """Whether it holds for whatever the arguments are."""
        plain = all(child.is_leaf() for child in self.spec.children())
        return plain and not (self.expected or self.constants or self.present)

    @property
    def key(self) -> tuple[Any, ...]:
        """What distinguishes it from others."""
        rest = (self.expected, self.spec, self.free, self.constants, self.present)
        return self.forward.code, self.guards.code, repr(rest)

    def __getstate__(self) -> dict[str, Any]:
        leaves = [0] * self.spec.num_leaves
        return {**vars(self), "spec": tree_unflatten(leaves, self.spec)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, spec=flattened(state["spec"])[1])

    def takes(self, guards: Callable[..., Any], leaves: Sequence[Any], spec: TreeSpec) -> bool:
        """Whether it holds for these arguments."""
        if spec != self.spec or any(leaves[index] is None for index in self.present):
            return False
        if not all(same(leaves[index], value) for index, value in self.constants):
            return False
        if not self.expected:
            return True
        try:
            numbers = guards(None, *map(shape_of, self.arguments(leaves)))
        except Exception:  # the numbers do not exist for these arguments
            return False
        return all(map(same, numbers, self.expected))

    def arguments(self, leaves: Sequence[Any]) -> list[Any]:
        """Returns the leaves that its forward takes."""
        return [leaves[index] for index in self.free]


@dataclass(frozen=True)
class ClassRecipe:
    """What a rewritten class is made from; copied by reference, pickled by value."""

    base: type[nn.Module]
    variants: tuple[VariantCode, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> ClassRecipe:
        return self


def rebuild_class(recipe: ClassRecipe) -> type[nn.Module]:
    """Returns the subclass of the recipe's base with the rewritten forward.

    Equal recipes share a class. Its instances pickle: the class is rebuilt where they are loaded.
    """
    base, variants = recipe.base, recipe.variants
    key = (base, *(variant.key for variant in variants))
    if key not in _classes:
        title = base.__name__
        body: dict[str, Any] = {
            "__reduce_ex__": _reduce,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "_recipe": recipe,
            "_cut_call": _call,
            "_cut_guards": tuple(variant.guards.compiled(title) for variant in variants),
        }
        for index, variant in enumerate(variants):
            body[_name(index)] = variant.forward.compiled(title)
        body["forward"] = _forward(base, direct=len(variants) == 1 and variants[0].takes_all)
        _classes[key] = type(base.__name__, (base,), body)
    return _classes[key]


def _name(index: int) -> str:
    return f"_cut_forward_{index}"


def _forward(base: type[nn.Module], direct: bool) -> Callable[..., Any]:
    """Returns a forward with the parameters and defaults of the original."""
    parameters = list(signature_of(base).parameters.values())
    names = ", ".join(parameter.name for parameter in parameters)
    kinds = inspect.Parameter
    entries = ", ".join(
        f"{p.name!r}: dict(sorted({p.name}.items()))" if p.kind is kinds.VAR_KEYWORD
        else f"{p.name!r}: {p.name}" for p in parameters
    )  # fmt: skip
    call = f"{_name(0)}({names})" if direct else f"_cut_call({{{entries}}})"
    plain = [p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else None)
             for p in parameters]  # fmt: skip
    owner = kinds("_cut_self", kinds.POSITIONAL_ONLY if _is_positional(parameters)
                  else kinds.POSITIONAL_OR_KEYWORD)  # fmt: skip
    header = inspect.Signature([owner, *plain])
    forward = Source(f"def forward{header}:\n    return _cut_self.{call}\n", {}).compiled(
        base.__name__
    )
    defaults = [p for p in parameters if p.default is not p.empty]
    forward.__defaults__ = tuple(p.default for p in defaults if p.kind is not p.KEYWORD_ONLY)
    forward.__kwdefaults__ = {p.name: p.default for p in defaults if p.kind is p.KEYWORD_ONLY}
    forward.__doc__ = base.forward.__doc__
    return forward


def _is_positional(parameters: Sequence[inspect.Parameter]) -> bool:
    return bool(parameters) and parameters[0].kind is inspect.Parameter.POSITIONAL_ONLY


def _call(self: Any, arguments: Mapping[str, Any]) -> Any:
    """Runs the variant that holds for the arguments."""
    recipe: ClassRecipe = self._recipe
    leaves, spec = flattened(arguments)
    for index, variant in enumerate(recipe.variants):
        if variant.takes(self._cut_guards[index], leaves, spec):
            return getattr(self, _name(index))(*variant.arguments(leaves))
    given = ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())
    known = " or ".join(dict.fromkeys(variant.pinned for variant in recipe.variants))
    raise InputDataError(
        f"Expected {known} in a call of {recipe.base.__name__}, whose channels were cut for this,"
        f" got {given}; call it so, or use the network from before the cut."
    )


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 60 else type(value).__name__


def _reduce(self: Any, protocol: Any) -> Any:
    return _restore, (type(self)._recipe,), self.__getstate__()


def _restore(recipe: ClassRecipe) -> nn.Module:
    cls = rebuild_class(recipe)
    module: nn.Module = cls.__new__(cls)
    return module

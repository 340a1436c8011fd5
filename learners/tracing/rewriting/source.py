"""Writes the code of a rewritten forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from amc_compress.learners.tracing.rewriting.forward_tracing import Record
from amc_compress.learners.tracing.rewriting.rewrite import Constants, Edit, Sizes
from amc_compress.learners.tracing.rewriting.rewritten_class import (
    ClassRecipe,
    Source,
    VariantCode,
    rebuild_class,
)
from amc_compress.learners.tracing.rewriting.symbolic_forward import Variant


@dataclass
class Part:
    """A forward that holds for some calls of a module.

    Args:
        variant: The graph of the original.
        guards: Nodes that depend on no tensor -> the value that the part holds for.
        edits: What is replaced in it.
        records: The calls that it was made for.
    """

    variant: Variant
    guards: dict[fx.Node, Any]
    edits: list[Edit]
    records: list[Record] = field(default_factory=list)


def rewritten_class(module: nn.Module, parts: Sequence[Part]) -> type[nn.Module]:
    """Returns the class that a module gets; its parts are tried in order."""
    first = next(n for n in range(len(vars(module)) + 1)
                 if not any(key.startswith(f"_cut_{n}_") for key in vars(module)))  # fmt: skip
    codes = []
    for index, part in enumerate(parts, first):
        for edit in part.edits:
            edit.prefix = f"_cut_{index}"
        codes.append(_code(part))
    base = type(module)
    recipe = vars(base).get("_recipe")
    return rebuild_class(
        ClassRecipe(recipe.base if isinstance(recipe, ClassRecipe) else base, tuple(codes))
    )


def _code(part: Part) -> VariantCode:
    variant = part.variant
    return VariantCode(
        forward=_forward(part),
        guards=_guards(part),
        expected=tuple(part.guards.values()),
        spec=variant.spec,
        free=tuple(variant.free),
        constants=tuple(variant.constants.items()),
        present=tuple(variant.present),
        pinned=_pinned(part),
    )


def _forward(part: Part) -> Source:
    graph = part.variant.graph_module.graph
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = new.graph_copy(graph, copies)
    new.output(output)
    for edit in part.edits:
        node = copies[edit.node]
        if isinstance(edit, Sizes):
            edit.apply(new, node)
        elif isinstance(edit, Constants):
            edit.apply(node, copies)
            for number in edit.values:
                copies[number].meta["replaced"] = copies[number]
        else:
            copies[edit.node] = edit.apply(new, node, copies)
            copies[edit.node].meta["replaced"] = node
    _drop_unused(new, copies)
    return _source(new)


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    rest = list(nodes)
    while rest:
        node = rest.pop()
        if node not in found:
            found.add(node)
            rest += node.all_input_nodes
    return found


def _guards(part: Part) -> Source:
    """Writes the function that computes the numbers which the part depends on."""
    needed = _ancestors(list(part.guards))
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in part.variant.graph_module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = new.node_copy(node, copies.__getitem__)
    new.output(tuple(copies[node] for node in part.guards))
    return _source(new)


def _pinned(part: Part) -> str:
    """Names the arguments that the part depends on, with their values."""
    variant = part.variant
    values = dict(variant.constants)
    placeholders = [node for node in variant.graph_module.graph.nodes if node.op == "placeholder"]
    needed = _ancestors(list(part.guards))
    numbers = part.records[0].numbers if part.records else variant.known
    for index, node in zip(variant.free, placeholders, strict=True):
        if node in needed:
            values[index] = numbers.get(node, "a tensor of such a size as on the example")
        elif index in variant.present:
            values[index] = "not None"
    if not values:
        return f"the arguments {', '.join(variant.names)}"
    return ", ".join(f"{variant.names[i]}={value}" for i, value in sorted(values.items()))


def _drop_unused(graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]) -> None:
    """Removes what fed only replaced nodes; anything else may have effects and stays."""
    dead = [node.meta["replaced"] for node in copies.values() if "replaced" in node.meta]
    while dead:
        node = dead.pop()
        if node.users or node.op in ("placeholder", "call_module"):
            continue
        inputs = list(node.all_input_nodes)
        if node in graph.nodes:
            graph.erase_node(node)
            dead.extend(inputs)


def _source(graph: fx.Graph) -> Source:
    code = graph.python_code("self")
    return Source(code.src, dict(code.globals))

"""Rewritten forwards for cut copies, or the reasons why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.tracing.rewriting.rewrite import Edit
from amc_compress.learners.tracing.rewriting.rewritten_class import ClassRecipe, rebuild_class


class CannotRewriteError(Exception):
    """A forward needs new numbers, and no single code computes them."""


@dataclass
class Rewrite:
    """A module whose forward is replaced in sliced copies.

    Args:
        name: Qualified module name.
        cls: The class that its copies get.
        edits: What computes the numbers that the new forward reads.
        touched: Which units the module sees, shape ``(n_units,)``.
    """

    name: str
    cls: Any
    edits: list[Edit]
    touched: Tensor

    def is_needed(self, alive: Tensor) -> bool:
        """Whether a cut reaches the module."""
        return bool((self.touched & ~alive).any())

    def apply(self, module: nn.Module, alive: Tensor, device: torch.device) -> None:
        """Turns a copied module into one that works at the cut widths."""
        module.__class__ = self.cls
        for edit in self.edits:
            for key, value in edit.attributes(alive).items():
                if isinstance(value, Tensor):
                    module.register_buffer(key, value.to(device), persistent=False)
                else:
                    setattr(module, key, value)

    def __reduce__(self) -> Any:
        # Neither the made class nor graph nodes pickle; the one is rebuilt from its source, and of
        # the others nothing but the name is read once that source is written.
        edits = [edit.detached() for edit in self.edits]
        return _restore_rewrite, (self.name, self.cls._recipe, edits, self.touched)


def _restore_rewrite(name: str, recipe: ClassRecipe, edits: list[Edit], touched: Tensor) -> Rewrite:
    return Rewrite(name, rebuild_class(recipe), edits, touched)


@dataclass
class Obstacle:
    """A module whose forward cannot be rewritten.

    Args:
        name: Qualified module name.
        touched: Which units it sees, shape ``(n_units,)``.
        reason: Why not.
    """

    name: str
    touched: Tensor
    reason: str

"""Proves channel groups: a sliced network must compute what the masked one computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from learners.surgery import Surgeon

TOLERANCE = 1e-5


def randomised(model: nn.Module, generator: torch.Generator) -> None:
    """Makes degenerate tensors generic, in place; for a copy that only serves the proof.

    A batch norm that has its initial values, or a residual branch that starts at zero, hides
    every mistake: all its channels are equal.
    """
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            if bool((tensor == 0).float().mean() > 0.3) or float(tensor.std()) == 0:
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                scale = 0.5 if tensor.dim() < 2 else 2 / max(1, tensor[0].numel()) ** 0.5
                positive = name.endswith("running_var")
                tensor.add_(noise * scale if positive else (noise - 0.5) * scale)


def random_cut(
    sizes: Mapping[str, int], generator: torch.Generator, fraction: float | None = 0.5
) -> dict[str, Tensor]:
    """Returns a random set of kept units per group; ``fraction=None`` draws that as well."""
    kept = {}
    for name, size in sizes.items():
        share = fraction
        if share is None:
            share = float(torch.rand((), generator=generator))
        count = min(size - 1, max(1, round(share * size))) if size > 1 else size
        kept[name] = torch.randperm(size, generator=generator)[:count].sort().values
    return kept


def difference(first: object, second: object) -> float:
    """Returns the largest deviation relative to ``max(1, |output|)``; infinite if shapes differ."""
    worst = 0.0
    pairs = list(zip(tree_leaves(first), tree_leaves(second), strict=True))
    for a, b in pairs:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            a, b = a.double(), b.double()
            scale = max(1.0, float(b.abs().max()))
            deviation = float((a - b).abs().max()) / scale
            worst = max(worst, deviation if deviation == deviation else float("inf"))
    return worst


class Prover:
    """Compares sliced and masked copies of a network on some inputs.

    Args:
        surgeon: Cuts a copy of the network (with generic weights).
        inputs: Argument tuples to run it on.
    """

    def __init__(self, surgeon: Surgeon, inputs: Sequence[tuple[Tensor, ...]]) -> None:
        self.surgeon = surgeon
        self.inputs = inputs

    def fault(self, kept: Mapping[str, Tensor]) -> str | None:
        """Returns what is wrong with a cut, None if it is right."""
        try:
            sliced, masked = self.surgeon.slice(kept), self.surgeon.mask(kept)
            with torch.no_grad():
                for arguments in self.inputs:
                    deviation = difference(sliced(*arguments), masked(*arguments))
                    if not deviation <= TOLERANCE:
                        return f"a cut changes the output by {deviation:.1e}"
        except Exception as error:  # any failure of a cut network is a reason not to cut it
            text = str(error).strip().splitlines() or [type(error).__name__]
            return f"a cut network does not run: {text[0][:200]}"
        return None

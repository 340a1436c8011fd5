"""Makes the rewrites of a network, and drops those that change its outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference, tensors_in
from amc_compress.learners.tracing.rewriting.forward_tracing import TracedForward
from amc_compress.learners.tracing.rewriting.plan import plan_rewrite
from amc_compress.learners.tracing.rewriting.rewrites import Obstacle, Rewrite
from amc_env.validation.sentences import first_line

_TOLERANCE = 1e-5


@dataclass
class Rewrites:
    """Rewrites of a network's modules, needed for cuts.

    Args:
        rewrites: New forwards.
        obstacles: Modules that would need one, but have none.
    """

    rewrites: list[Rewrite] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)

    def explained(self, fault: str, units: Tensor) -> str:
        """Returns why a group is not cut, with the module that stands in its way if there is one.

        Args:
            fault: What went wrong with its cut.
            units: The units of the group.
        """
        found = [obstacle for obstacle in self.obstacles if bool(obstacle.touched[units].any())]
        if not found:
            return fault
        nearest = min(found, key=lambda obstacle: int(obstacle.touched.sum()))
        place = f"the forward of {nearest.name!r}" if nearest.name else "the network's own forward"
        return f"{fault}; {place} cannot be rewritten: {nearest.reason}"


def make_rewrites(
    model: nn.Module,
    traced: Mapping[str, TracedForward],
    unit_of_label: Tensor,
    cuts: tuple[Sequence[Tensor], Sequence[Tensor]],
    run: Callable[[nn.Module], Any],
) -> Rewrites:
    """Returns the rewrites that all cuts need, each of which computes the original's outputs.

    Args:
        model: The network, with generic weights.
        traced: Modules that move data, as they were executed.
        unit_of_label: Unit of every label.
        cuts: Some cuts of all groups, and cuts of one group each, as masks of what stays.
        run: Runs a network on the example.
    """
    made = Rewrites()
    for name, forward in traced.items():
        plan = plan_rewrite(name, forward, unit_of_label, *cuts)
        if isinstance(plan, Rewrite):
            made.rewrites.append(plan)
        elif plan is not None:
            made.obstacles.append(plan)
    if made.rewrites:
        _drop_wrong(made, model, run)
    return made


def _drop_wrong(made: Rewrites, model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    reference = run(model)
    if _fault(made.rewrites, model, run, reference) is None:
        return
    right: list[Rewrite] = []
    for rewrite in made.rewrites:
        fault = _fault([*right, rewrite], model, run, reference)
        if fault is None:
            right.append(rewrite)
        else:
            made.obstacles.append(Obstacle(rewrite.name, rewrite.touched, fault))
    made.rewrites = right


def _fault(
    rewrites: Sequence[Rewrite],
    model: nn.Module,
    run: Callable[[nn.Module], Any],
    reference: Any,
) -> str | None:
    """Returns what is wrong with rewritten forwards where nothing is cut, None if all is right."""
    network = copy.deepcopy(model)
    whole = torch.ones_like(rewrites[0].touched)
    try:
        for rewrite in rewrites:
            rewrite.apply(network.get_submodule(rewrite.name), whole, torch.device("cpu"))
        output = run(network)
        if not any(tensor.numel() for tensor in tensors_in(reference)):
            return None
        deviation = difference(output, reference)
    except Exception as error:  # whatever it is, the original runs
        return f"the new one does not run ({first_line(error)})"
    return None if deviation <= _TOLERANCE else f"the new one changes the output by {deviation:.1e}"

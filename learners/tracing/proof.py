"""Proves channel groups: a sliced network must compute what the masked one computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import compare, difference, tensors_in
from amc_compress.learners.tracing.cases import Case
from amc_compress.learners.tracing.claims import Claims
from amc_compress.learners.tracing.examples.variations import floats, n_samples
from amc_compress.learners.tracing.grouping import Grouper, Grouping
from amc_compress.learners.tracing.labelled_run import Watch
from amc_compress.learners.tracing.probing import Probes
from amc_compress.learners.tracing.rewriting.attributes import Attributes, find_attributes
from amc_compress.learners.tracing.rewriting.checks import Rewrites, make_rewrites
from amc_compress.learners.tracing.rewriting.forward_tracing import TracedForward
from amc_compress.learners.tracing.rewriting.rewrites import Rewrite
from amc_compress.learners.tracing.surgery import Surgeon
from amc_env.graph import ChannelGroup
from amc_env.validation.sentences import first_line

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
    sizes: Mapping[str, int],
    generator: torch.Generator,
    fraction: float | None = 0.5,
    least: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Returns a random set of kept units per group.

    Args:
        sizes: Units per group.
        generator: The source of randomness.
        fraction: Share that stays. None draws one per group, of any size, with much weight on a
            single unit and on all of them: equal shares everywhere would hide mistakes.
        least: Units that must stay, of groups that need more than one.
    """
    least = least or {}
    kept = {}
    for name, size in sizes.items():
        share = fraction
        if share is None:
            share = 1.5 * float(torch.rand((), generator=generator)) - 0.25
        most = size if fraction is None else max(1, size - 1)
        count = min(most, max(1, round(share * size)))
        count = max(count, min(size, least.get(name, 1)))
        kept[name] = torch.randperm(size, generator=generator)[:count].sort().values
    return kept


def _cut_of(
    groups: Iterable[ChannelGroup], generator: torch.Generator, fraction: float | None = 0.5
) -> dict[str, Tensor]:
    groups = list(groups)
    sizes = {group.name: group.size for group in groups}
    return random_cut(sizes, generator, fraction, {group.name: group.least for group in groups})


def lively(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Returns a copy with weights of a usual size, whatever they were, for a second proof.

    Signals neither vanish in it nor saturate, and no bias keeps a detector from finding something.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            statistic = name.endswith(("running_mean", "running_var"))
            if not tensor.is_floating_point() or not (
                isinstance(tensor, nn.Parameter) or statistic
            ):
                continue
            if tensor.dim() >= 2:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise * (2 / max(1, tensor[0].numel())) ** 0.5)
            else:
                noise = torch.rand(tensor.shape, generator=generator)
                shift = -0.5 if name.endswith(("bias", "running_mean")) else 0.5
                tensor.copy_(noise + shift)
    return model


@dataclass(frozen=True)
class Finding:
    """Result of a comparison.

    Args:
        fault: What is wrong with a cut, None if nothing is.
        case: Where that was, None if nothing is wrong.
        is_shown: Whether some output depends on what was cut: else nothing was compared.
    """

    fault: str | None
    case: Case | None
    is_shown: bool


class Prover:
    """Compares sliced and masked copies of a network.

    Args:
        surgeon: Cuts a copy of the network (with generic weights).
    """

    def __init__(self, surgeon: Surgeon) -> None:
        self.surgeon = surgeon
        self._parameters: set[str] = set()  # of the masked copy, that are masked
        self._whole: dict[Case, Any] = {}

    @cached_property
    def masked(self) -> nn.Module:
        """A copy in which nothing reads what is cut: made when it is first needed."""
        return copy.deepcopy(self.surgeon.model)

    def forget(self) -> None:
        """Gives the memory of the copy back; it is made again when it is needed."""
        vars(self).pop("masked", None)
        self._parameters.clear()

    def examine(self, kept: Mapping[str, Tensor], cases: Sequence[Case]) -> Finding:
        """Tells whether a cut is right in all cases."""
        is_shown = False
        for position, case in enumerate(cases):
            try:
                if not position:
                    sliced = self.surgeon.slice(kept, shares=True)
                    self.surgeon.mask_copy(self.masked, kept, self._parameters)
                reference = case.run(self.masked)
                deviation = difference(case.run(sliced), reference)
                if TOLERANCE < deviation < math.inf:
                    deviation = exactly(case, sliced, self.masked, deviation)
                empty = not compare(reference, reference).n_compared
            except Exception as error:  # any failure of a cut network is a reason not to cut it
                fault = f"a cut network does not run{case.what}: {first_line(error)}"
                return Finding(fault, case, is_shown)
            if not empty and not deviation <= TOLERANCE:
                fault = f"a cut changes the output by {deviation:.1e}{case.what}"
                return Finding(fault, case, is_shown)
            is_shown = is_shown or self._shows(case, reference)
        return Finding(None, None, is_shown)

    def _shows(self, case: Case, reference: Any) -> bool:
        """Whether an output, if there is one, is another than that of the whole network."""
        if case not in self._whole:
            self._whole[case] = case.run(self.surgeon.model)
        pairs = zip(tensors_in(reference), tensors_in(self._whole[case]), strict=False)
        return any(masked.numel() and difference(masked, whole) > TOLERANCE
                   for masked, whole in pairs)  # fmt: skip


def exactly(case: Case, sliced: nn.Module, masked: nn.Module, deviation: float) -> float:
    """Returns the deviation of two networks in double precision, where they run in it.

    Batch statistics of few numbers, and sums of large numbers that cancel in a deep trained
    network, blow rounding up, which is not a wrong cut.
    """
    double = replace(case, inputs=floats(Tensor.double, case.inputs))
    try:
        first, second = (copy.deepcopy(net).double() for net in (sliced, masked))
        return difference(double.run(first), double.run(second))
    except Exception:  # a network that insists on single precision
        return deviation


class _Provers:
    """Provers of one grouping on several weights.

    Args:
        grouping: The groups.
        rewrites: What their cuts need.
        networks: With the real weights, with generic ones, and what makes one with others.
    """

    def __init__(
        self, grouping: Grouping, rewrites: Sequence[Rewrite | Attributes],
        networks: tuple[nn.Module, nn.Module, Callable[[], nn.Module]],
    ) -> None:  # fmt: skip
        real, generic, self._make_lively = networks
        self._cut_by = (grouping, rewrites)
        self.real, self.generic = (Prover(Surgeon(x, *self._cut_by)) for x in (real, generic))

    @cached_property
    def lively(self) -> Prover:
        """A prover on weights of a usual size, for faults that the others do not show."""
        return Prover(Surgeon(self._make_lively(), *self._cut_by))


@dataclass
class _Trial:
    """Groups to prove, with what is needed to cut along them."""

    grouping: Grouping
    provers: _Provers
    probes: Probes
    proved: set[ChannelGroup]
    generator: torch.Generator

    def faults(self) -> dict[str, str]:
        """Returns group -> what is wrong with it; empty once all are right, alone and together."""
        groups = [group for group in self.grouping.graph.groups if group not in self.proved]
        faults: dict[str, str] = {}
        for group in groups:
            fault = self._alone(_cut_of([group], self.generator))
            if fault is None:
                self.proved.add(group)
            else:
                faults[group.name] = fault
        return faults or self._joint_faults()

    def _alone(self, kept: Mapping[str, Tensor]) -> str | None:
        finding = self.provers.generic.examine(kept, self.probes.alone)
        groups = [group for group in self.grouping.graph.groups if group.name in kept]
        # Other weights, more inputs, other cuts: what was cut may have been behind dead rectifiers.
        for fraction in (0.5, 0.5, 0.0):
            if finding.fault is not None or finding.is_shown:
                return finding.fault
            kept = _cut_of(groups, self.generator, fraction)
            finding = self.provers.lively.examine(kept, [*self.probes.alone, *self.probes.wide])
        if finding.fault is not None or finding.is_shown:
            return finding.fault
        return "no output that was seen depends on it, so a comparison proves nothing"

    def _joint_faults(self) -> dict[str, str]:
        groups = self.grouping.graph.groups
        alone, everywhere = self.probes.alone, [*self.probes.alone, *self.probes.together]
        trials = (
            (self.provers.generic, None, everywhere), (self.provers.generic, None, alone),
            (self.provers.generic, 0.0, alone), (self.provers.real, 0.5, alone),
        )  # fmt: skip
        for prover, fraction, cases in trials:
            if prover is self.provers.real:
                self.provers.generic.forget()
            kept = _cut_of(groups, self.generator, fraction)
            finding = prover.examine(kept, cases) if groups else None
            if finding is not None and finding.fault is not None and finding.case is not None:
                return self._blamed(prover, kept, finding.fault, finding.case)
        return {}

    def _blamed(
        self, prover: Prover, kept: Mapping[str, Tensor], fault: str, case: Case
    ) -> dict[str, str]:
        """Returns the groups that are wrong alone in a case, else one that is so with others."""
        if case in self.probes.together:
            found = {name: prover.examine({name: kept[name]}, [case]).fault for name in kept}
            faults = {name: text for name, text in found.items() if text is not None}
            if faults:
                return faults
        return {self._culprit(prover, kept, case): f"together with other groups {fault}"}

    @staticmethod
    def _culprit(prover: Prover, kept: Mapping[str, Tensor], case: Case) -> str:
        """Returns the last group of the shortest wrong prefix: right alone, wrong together."""
        names = list(kept)
        low, high = 0, len(names)  # the prefix of length `low` is right, that of `high` is wrong
        while high - low > 1:
            middle = (low + high) // 2
            if prover.examine({name: kept[name] for name in names[:middle]}, [case]).fault is None:
                low = middle
            else:
                high = middle
        return names[high - 1]


def prove(
    model: nn.Module, watch: Watch, probes: Probes, batch: int | None = None
) -> tuple[Grouping, list[Rewrite | Attributes]]:
    """Returns groups that are right alone and together, and the rewrites they need.

    Args:
        model: The network.
        watch: Runs it under labels.
        probes: The cases in which it must be right.
        batch: Samples in the example, where its tensors do not tell: costs are those of one.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = probes.example.inputs
    batch = batch or n_samples(inputs)
    generic = copy.deepcopy(model)
    randomised(generic, generator)
    vivid = cache(lambda: lively(model, torch.Generator().manual_seed(2)))
    rejected: dict[int, str] = {}
    proved: set[ChannelGroup] = set()
    attributes: dict[str, list[Attributes]] = {}  # group -> numbers that shrink with it
    while True:
        run = watch.run()
        grouping = Grouper(model, run.mode, batch, run.unseen).build(rejected)
        made = _rewrites(grouping, run.traced, generator, generic, probes)
        placed = _placed(attributes, grouping)
        rewrites: list[Rewrite | Attributes] = [*made.rewrites, *placed]
        provers = _Provers(grouping, rewrites, (model, generic, vivid))
        faults = _Trial(grouping, provers, probes, proved, generator).faults()
        if not faults:
            claims = Claims(provers.real.surgeon, inputs, batch)
            faults = claims.faults(torch.Generator().manual_seed(0))
        if not faults:
            return replace(grouping, graph=claims.completed()), rewrites
        sizes = {group.name: group.size for group in grouping.graph.groups}
        for name, reason in faults.items():
            start = grouping.first_unit[name]
            if name not in attributes:
                before = chain(*attributes.values())
                found = _attributes(name, made, rewrites, (generic, grouping), probes, before)
                if found is not None:
                    attributes[name] = found
                    continue
            units = grouping.unit_of_label
            inside = (units >= start) & (units < start + sizes[name])
            reason = made.explained(reason, torch.arange(start, start + sizes[name]))
            # Runs number their labels alike, so a label stands for the same data next time.
            rejected |= dict.fromkeys(inside.nonzero()[:, 0].tolist(), reason)


def _placed(attributes: Mapping[str, Sequence[Attributes]], grouping: Grouping) -> list[Attributes]:
    """Returns the numbers of groups that are still there, with their units of now."""
    return [
        replace(entry, start=grouping.first_unit[group.name])
        for group in grouping.graph.groups
        for entry in attributes.get(group.name, ())
        if entry.size == group.size
    ]


def _attributes(
    name: str,
    made: Rewrites,
    rewrites: Sequence[Rewrite | Attributes],
    network: tuple[nn.Module, Grouping],
    probes: Probes,
    before: Iterable[Attributes],
) -> list[Attributes] | None:
    """Returns the numbers that make a cut of one group right where no forward can be rewritten."""
    model, grouping = network
    size = next(group.size for group in grouping.graph.groups if group.name == name)
    start = grouping.first_unit[name]
    kept = {name: torch.arange((size + 1) // 2)}

    def is_right(trial: Sequence[Attributes]) -> bool:
        surgeon = Surgeon(model, grouping, [*rewrites, *trial])
        return Prover(surgeon).examine(kept, probes.alone).fault is None

    def run() -> None:
        for case in probes.alone:
            case.run(model)

    units = range(start, start + size)
    return find_attributes(model, made.obstacles, units, is_right, run, before)


def _rewrites(
    grouping: Grouping,
    traced: Mapping[str, TracedForward],
    generator: torch.Generator,
    model: nn.Module,
    probes: Probes,
) -> Rewrites:
    groups = grouping.graph.groups
    sizes = {group.name: group.size for group in groups}
    if not sizes or not traced:
        return Rewrites()

    def alive(kept: Mapping[str, Tensor]) -> Tensor:
        mask = torch.ones(grouping.n_units, dtype=torch.bool)
        for name, units in kept.items():
            start = grouping.first_unit[name]
            mask[start : start + sizes[name]] = False
            mask[start + units] = True
        return mask

    joint = [alive(_cut_of(groups, generator, share)) for share in (0.5, 0.0, *[None] * 4)]
    alone = [alive({name: torch.tensor([sizes[name] - 1])}) for name in sizes]
    usual = probes.alone[0]
    return make_rewrites(model, traced, grouping.unit_of_label, (joint, alone), usual.run)

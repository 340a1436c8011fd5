"""The decisions of quantization: bits of the weights and of the input, layer by layer."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from amc_compress.learners.quantization.uniform.quantizer import MAX_BITS, MIN_BITS
from amc_env.costs.storage import LEGAL_BITS, OFF_BITS
from amc_env.plan import CompressionPlan, Decision, DecisionKind

Bits = int | Sequence[int]


def check_bits(name: str, bits: Bits) -> tuple[int, ...]:
    """Returns bits in ascending order, a single number as a tuple of one.

    Raises:
        ValueError: If there is none, or one is neither 2 to 8 nor 16.
    """
    numbers = (bits,) if isinstance(bits, int) else tuple(bits)
    if not numbers or any(b not in LEGAL_BITS for b in numbers):
        raise ValueError(
            f"Expected {name} from {MIN_BITS} to {MAX_BITS}, or {OFF_BITS} for float, got {bits!r}."
        )
    return tuple(sorted({int(b) for b in numbers}))


@dataclass(frozen=True)
class BitPair:
    """Bits of one layer's weights and input; 16 is float."""

    weights: int
    inputs: int


@dataclass(frozen=True)
class BitChoice:
    """The layers' decided and fixed bits.

    Attributes:
        decisions: In network order, the weights of a layer before its input.
        fixed_weights: Layer -> weight bits, where no decision is about them.
        fixed_inputs: Layer -> activation bits, likewise.
    """

    decisions: tuple[Decision, ...]
    fixed_weights: Mapping[str, int]
    fixed_inputs: Mapping[str, int]

    def read(self, plan: CompressionPlan) -> dict[str, BitPair]:
        """Returns the bits of every quantizable layer.

        Raises:
            PlanMismatchError: If the plan does not fit.
        """
        values = plan.values_for(self.decisions)
        weights, inputs = dict(self.fixed_weights), dict(self.fixed_inputs)
        for decision, value in zip(self.decisions, values, strict=True):
            chosen = weights if decision.kind is DecisionKind.WEIGHT_BITS else inputs
            chosen[decision.target] = round(value)
        return {name: BitPair(weights[name], inputs[name]) for name in weights}

    def fixed_plan(self, weight_bits: int, activation_bits: int | None) -> CompressionPlan:
        """Returns the plan with the same bits for all decided layers; the most if ``None``.

        Raises:
            PlanMismatchError: If that is no choice of a decision.
        """
        values = {}
        for d in self.decisions:
            of_weights = d.kind is DecisionKind.WEIGHT_BITS
            bits = weight_bits if of_weights else activation_bits
            values[d.key] = d.choices[-1] if bits is None else float(bits)
        plan = CompressionPlan(values)
        plan.values_for(self.decisions)
        return plan

    def most_bits(self) -> CompressionPlan:
        """Returns the plan of the most bits that are not "off", where there are such."""
        values = {
            d.key: max((c for c in d.choices if c < OFF_BITS), default=d.choices[-1])
            for d in self.decisions
        }
        return CompressionPlan(values)

    def used(self, name: str) -> tuple[set[int], set[int]]:
        """Returns the weight bits and the activation bits that a layer may get."""
        weights = {self.fixed_weights[name]} if name in self.fixed_weights else set()
        inputs = {self.fixed_inputs[name]} if name in self.fixed_inputs else set()
        for decision in self.decisions:
            if decision.target == name:
                chosen = weights if decision.kind is DecisionKind.WEIGHT_BITS else inputs
                chosen.update(round(c) for c in decision.choices)
        return weights, inputs


def bit_choice(
    sizes: Mapping[str, int],
    weight_bits: Bits,
    activation_bits: Bits,
    first_last: int | None,
    float_inputs: Container[str] = (),
    tables: Container[str] = (),
) -> BitChoice:
    """Splits bits into decided and fixed ones.

    Args:
        sizes: Layer -> number of weights, all quantizable layers in network order.
        weight_bits: A sequence is decided per layer; one number is fixed.
        activation_bits: Likewise.
        first_last: Bits of weights and inputs of the first and the last layer, where these are
            quantized at all elsewhere; ``None`` treats the two like the others.
        float_inputs: Layers of which only the weights get bits.
        tables: Those of them that are tables, which are like the others even as the first layer:
            the rule is meant for few weights, and of a language model they are up to a half.

    Raises:
        ValueError: If bits are out of range.
    """
    names = list(sizes)
    ends = set() if first_last is None else {n for n in (names[0], names[-1]) if n not in tables}
    if first_last is not None:
        check_bits("first_last_bits", first_last)
    decisions: list[Decision] = []
    fixed: dict[DecisionKind, dict[str, int]] = {}
    for kind, bits in (
        (DecisionKind.WEIGHT_BITS, weight_bits),
        (DecisionKind.ACTIVATION_BITS, activation_bits),
    ):
        choices = check_bits(kind.name, bits)
        decided = not isinstance(bits, int)
        off = choices == (OFF_BITS,)
        fixed[kind] = {}
        for name in names:
            if kind is DecisionKind.ACTIVATION_BITS and name in float_inputs:
                fixed[kind][name] = OFF_BITS
            elif name in ends and not off:
                assert first_last is not None
                fixed[kind][name] = first_last
            elif not decided:
                fixed[kind][name] = choices[0]
            else:
                decisions.append(Decision(name, kind, tuple(map(float, choices)), sizes[name]))
    decisions.sort(key=lambda d: (names.index(d.target), d.kind is not DecisionKind.WEIGHT_BITS))
    return BitChoice(
        tuple(decisions), fixed[DecisionKind.WEIGHT_BITS], fixed[DecisionKind.ACTIVATION_BITS]
    )


def is_float(bits: Mapping[str, BitPair]) -> bool:
    """Whether nothing is quantized."""
    return all(b.weights == b.inputs == OFF_BITS for b in bits.values())

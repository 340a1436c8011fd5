"""A compression problem with a formula for its accuracy: microseconds per plan, known optimum.

For trying agents: no network, no data. Widths form a plain chain of convolutions, so MACs are
bilinear in neighbouring decisions as in a real network; the accuracy is concave in each keep
ratio, with random sensitivities, and loses a little where neighbouring ratios differ. With bits,
every layer adds the noise power of its quantized weights and inputs, which falls by four with each
bit; with densities, every layer adds what the zeros among its weights lose. All of it is a sum
along the chain, so dynamic programming finds the optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from amc_env.budgets.budget import BudgetLike
from amc_env.costs.costs import COSTS, CostModel, make_cost
from amc_env.costs.storage import OFF_BITS, StorageFormat
from amc_env.env import CompressionEnv
from amc_env.graph import Branch, ChannelGroup, LayerGraph, LayerSpec, Width
from amc_env.plan import CompressionPlan, Decision, DecisionKind, keep_ratio_decision, with_depth
from amc_env.scores.metric import ACCURACY
from amc_env.validation.checks import checked

_IMAGE_SIDE = 32
_KERNEL = 3
_STREAM = 32
_ORIGINAL_SCORE = 0.92


@checked
class SyntheticLearner:
    """A chain of ``n_layers`` 3 x 3 convolutions whose accuracy is a formula.

    ``accuracy = a0 * exp(-sum_i s_i (1 - r_i)^1.5 - c sum_i (r_i - r_{i+1})^2)`` with log-normal
    sensitivities ``s_i``.

    Args:
        n_layers: Number of decisions.
        seed: Draws widths and sensitivities.
        round_to: Grid of the kept channels.
        coupling: The ``c`` above.
    """

    def __init__(
        self, n_layers: int = 12, seed: int = 0, round_to: int = 4, coupling: float = 0.1
    ) -> None:
        if n_layers < 1:
            raise ValueError(f"Expected n_layers >= 1, got {n_layers}.")
        rng = np.random.default_rng(seed)
        widths = [int(w) for w in 16 * 2 ** rng.integers(0, 3, size=n_layers)]
        self._sensitivity = 0.15 * np.exp(0.9 * rng.standard_normal(n_layers))
        self._coupling = coupling
        self.graph = _chain(widths)
        self.decisions: tuple[Decision, ...] = tuple(
            keep_ratio_decision(group.name, group.size, round_to) for group in self.graph.groups
        )
        self.original_score = _ORIGINAL_SCORE
        self.metric = ACCURACY.name
        self.best_score = ACCURACY.best_score

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the accuracy of a complete plan by the class's formula."""
        damage = self._damage_of_cutting(np.array(plan.values_for(self.decisions)))
        return _ORIGINAL_SCORE * float(np.exp(-damage))

    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns decision key -> what each choice adds to the exponent, couplings aside."""
        return {
            d.key: s * (1.0 - np.array(d.choices)) ** 1.5
            for d, s in zip(self.decisions, self._sensitivity, strict=True)
        }

    def gradient_scores(self) -> dict[str, np.ndarray]:
        """Returns what :meth:`layer_errors` does: a formula's estimates are exact."""
        return self.layer_errors()

    def _damage_of_cutting(self, ratio: np.ndarray) -> float:
        damage = float(self._sensitivity @ (1.0 - ratio) ** 1.5)
        return damage + self._coupling * float(np.sum(np.diff(ratio) ** 2))


@checked
class SyntheticBitsLearner(SyntheticLearner):
    """The same chain with bits per layer, and with keep ratios as well if asked.

    ``accuracy = a0 * exp(-cutting - sum_i (u_i 4^(2 - weight bits) + v_i 4^(2 - activation
    bits)))`` with log-normal ``u_i`` and ``v_i``; "off" adds nothing. The first convolution and the
    classifier have a fixed 8 bits.

    Args:
        n_layers: Number of convolutions, at least 2.
        seed: Draws widths and sensitivities; those of :class:`SyntheticLearner` are the same.
        channels: Whether keep ratios are decided too.
        bits: Legal bits, ascending; 16 means off.
        round_to: Grid of the kept channels.
        coupling: See :class:`SyntheticLearner`.

    Raises:
        ValueError: If there is no layer whose bits could be decided.
    """

    def __init__(
        self,
        n_layers: int = 12,
        seed: int = 0,
        channels: bool = False,
        bits: Sequence[float] = (2, 3, 4, 5, 6, 7, 8),
        round_to: int = 4,
        coupling: float = 0.1,
    ) -> None:
        super().__init__(n_layers, seed, round_to, coupling)
        if n_layers < 2:
            raise ValueError(f"Expected n_layers >= 2, got {n_layers}: the first one has 8 bits.")
        rng = np.random.default_rng((seed, 1))
        names = [layer.name for layer in self.graph.layers]
        keep_ratios = self.decisions if channels else ()
        self._noise: dict[str, float] = {}
        decisions: list[Decision] = []
        full = self.graph.full()
        for layer in self.graph.layers:
            decisions += [d for d in keep_ratios if d.target == layer.name]
            if layer.name in (names[0], names[-1]):
                continue
            size = round(layer.weights(full))
            for kind in (DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS):
                decision = Decision(layer.name, kind, tuple(float(b) for b in bits), size)
                decisions.append(decision)
                self._noise[decision.key] = 0.15 * float(np.exp(0.9 * rng.standard_normal()))
        self.decisions = tuple(decisions)
        fixed = {names[0]: 8.0, names[-1]: 8.0}
        self.storage = StorageFormat(weight_bits=fixed, activation_bits=fixed)
        self.cost_models: dict[str, CostModel] = {
            name: make_cost(name, self.graph, self.decisions, self.storage) for name in COSTS
        }

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the accuracy of a complete plan by the class's formula."""
        values = dict(
            zip((d.key for d in self.decisions), plan.values_for(self.decisions), strict=False)
        )
        ratio = [values.get(f"{group.name}:keep_ratio", 1.0) for group in self.graph.groups]
        damage = self._damage_of_cutting(np.array(ratio)) + sum(
            self.layer_noise(key, values[key]) for key in self._noise
        )
        return _ORIGINAL_SCORE * float(np.exp(-damage))

    def layer_noise(self, key: str, bits: float) -> float:
        """Returns what a decision about bits adds to the exponent."""
        return 0.0 if bits >= OFF_BITS else self._noise[key] * 4.0 ** (2.0 - bits)

    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns decision key -> what each choice adds to the exponent, couplings aside."""
        sensitivity = dict(
            zip((g.name for g in self.graph.groups), self._sensitivity, strict=False)
        )
        return {
            d.key: np.array(
                [
                    self.layer_noise(d.key, choice)
                    if d.key in self._noise
                    else sensitivity[d.target] * (1.0 - choice) ** 1.5
                    for choice in d.choices
                ]
            )
            for d in self.decisions
        }


@checked
class SyntheticDensityLearner(SyntheticLearner):
    """The same chain, whole, with a density per layer.

    ``accuracy = a0 * exp(-sum_i t_i (1 - d_i)^4)`` with log-normal ``t_i``: the first half of the
    weights is nearly free, the last tenth is not. The classifier is dense.

    Args:
        n_layers: Number of decisions.
        seed: Draws widths and sensitivities; the widths of :class:`SyntheticLearner` are the same.
        step: Densities come in multiples of this.
    """

    def __init__(self, n_layers: int = 12, seed: int = 0, step: float = 0.02) -> None:
        if not 0.0 < step <= 1.0:
            raise ValueError(f"Expected a step above 0 and up to 1, got {step}.")
        super().__init__(n_layers, seed)
        rng = np.random.default_rng((seed, 2))
        n_choices = round(1.0 / step)
        choices = tuple((k + 1) / n_choices for k in range(n_choices))
        full = self.graph.full()
        self.decisions = tuple(
            Decision(layer.name, DecisionKind.DENSITY, choices, round(layer.weights(full)))
            for layer in self.graph.layers[:-1]
        )
        self._loss = 0.15 * np.exp(0.9 * rng.standard_normal(n_layers))

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the accuracy of a complete plan by the class's formula."""
        zeros = 1.0 - np.array(plan.values_for(self.decisions))
        return _ORIGINAL_SCORE * float(np.exp(-self._loss @ zeros**4))

    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns decision key -> what each choice adds to the exponent."""
        return {
            d.key: loss * (1.0 - np.array(d.choices)) ** 4
            for d, loss in zip(self.decisions, self._loss, strict=True)
        }


@checked
class SyntheticDepthLearner(SyntheticLearner):
    """A chain of residual blocks of two convolutions: which are there, and how wide within.

    ``accuracy = a0 * exp(-sum_i ((1 - p_i) u_i + p_i s_i (1 - r_i)^1.5))`` with log-normal ``u_i``
    and ``s_i``: a block that is left out loses ``u_i``, whatever its width.

    Args:
        n_layers: Number of blocks, two decisions each.
        seed: Draws widths and sensitivities.
        round_to: Grid of the kept channels.
    """

    def __init__(self, n_layers: int = 12, seed: int = 0, round_to: int = 4) -> None:
        super().__init__(n_layers, seed, round_to)
        rng = np.random.default_rng((seed, 3))
        widths = [group.size for group in self.graph.groups]
        self.graph = _residual(widths)
        ratios = [keep_ratio_decision(g.name, g.size, round_to) for g in self.graph.groups]
        self.decisions = with_depth(self.graph, ratios)
        self._block = 0.3 * np.exp(0.9 * rng.standard_normal(n_layers))

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the accuracy of a complete plan by the class's formula."""
        there, ratio = np.array(plan.values_for(self.decisions)).reshape(-1, 2).T
        cutting = self._sensitivity * (1.0 - ratio) ** 1.5
        damage = np.where(there > 0.0, cutting, self._block)
        return _ORIGINAL_SCORE * float(np.exp(-damage.sum()))

    def layer_errors(self) -> dict[str, np.ndarray]:
        """Returns decision key -> what each choice adds to the exponent, all blocks there."""
        curves: dict[str, np.ndarray] = {}
        for i, (block, width) in enumerate(
            zip(self.decisions[::2], self.decisions[1::2], strict=True)
        ):
            curves[block.key] = self._block[i] * (1.0 - np.array(block.choices))
            curves[width.key] = self._sensitivity[i] * (1.0 - np.array(width.choices)) ** 1.5
        return curves


def _residual(widths: list[int]) -> LayerGraph:
    """A stem -> blocks of two convolutions, each added to what it reads -> classifier."""
    stream, side = Width(_STREAM), (_IMAGE_SIDE, _IMAGE_SIDE)

    def conv(name: str, inputs: Width, outputs: Width) -> LayerSpec:
        return LayerSpec(
            name, "conv", inputs, outputs, (_KERNEL, _KERNEL), (1, 1), 1, _IMAGE_SIDE**2,
            input_size=side,
        )  # fmt: skip

    layers, groups, branches = [conv("stem", Width(3), stream)], [], []
    for i, size in enumerate(widths):
        name, first, second = f"block{i}", f"block{i}.conv1", f"block{i}.conv2"
        inner = Width(0, ((first, 1),))
        layers += [conv(first, stream, inner), conv(second, inner, stream)]
        groups.append(ChannelGroup(first, size, (first,), (second,)))
        branches.append(Branch(name, (first, second), groups=(first,)))
    layers.append(LayerSpec("classifier", "linear", stream, Width(10), has_bias=True))
    return LayerGraph(tuple(layers), tuple(groups), branches=tuple(branches))


def _chain(widths: list[int]) -> LayerGraph:
    """conv0 -> conv1 -> ... -> classifier, one channel group per convolution."""
    names = [f"conv{i}" for i in range(len(widths))]
    layers, groups = [], []
    previous = Width(3)
    for i, (name, width) in enumerate(zip(names, widths, strict=True)):
        side = max(4, _IMAGE_SIDE >> (i // 4))
        output = Width(0, ((name, 1),))
        layers.append(
            LayerSpec(
                name, "conv", previous, output, (_KERNEL, _KERNEL), (1, 1), 1, side * side,
                input_size=(side, side),
            )
        )  # fmt: skip
        consumer = names[i + 1] if i + 1 < len(names) else "classifier"
        groups.append(ChannelGroup(name, width, (name,), (consumer,)))
        previous = output
    layers.append(LayerSpec("classifier", "linear", previous, Width(10), has_bias=True))
    return LayerGraph(tuple(layers), tuple(groups))


_KINDS: Mapping[str, tuple[Callable[[int, int], SyntheticLearner], str]] = {
    "channels": (SyntheticLearner, "macs=0.5"),
    "bits": (SyntheticBitsLearner, "mean_bits=4/32"),
    "joint": (partial(SyntheticBitsLearner, channels=True), "macs=0.5,bytes=0.1"),
    "density": (SyntheticDensityLearner, "density=0.1"),
    "depth": (SyntheticDepthLearner, "macs=0.5"),
}
"""What is decided -> learner and budget."""


@checked
def make_synthetic(
    n_layers: int = 12,
    seed: int = 0,
    budget: BudgetLike | None = None,
    action: str = "centred",
    reward: str = "accuracy",
    render_mode: str | None = None,
    cost_models: Mapping[str, str] | None = None,
    kind: Literal["channels", "bits", "joint", "density", "depth"] = "channels",
) -> CompressionEnv:
    """Builds the environments behind ``amc/synthetic-v0``, ``amc/synthetic-bits-v0`` and so on."""
    learner, usual = _KINDS[kind]
    return CompressionEnv(
        learner(n_layers, seed),
        usual if budget is None else budget,
        action=action,
        reward=reward,
        cost_models=cost_models,
        render_mode=render_mode,
    )

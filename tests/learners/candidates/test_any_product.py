"""Repairs of layers that are no plain ``Conv2d``, against least squares on their Jacobian.

A layer is linear in its weight. Its Jacobian, one run of the layer's own forward for each weight,
holds all columns there are, and knows nothing of how they are found.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call

from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.reconstruction import (
    LayerReconstruction,
    prepare_reconstruction,
)
from amc_compress.learners.sparsification import Pattern
from amc_compress.learners.sparsification.refit import refit
from amc_compress.learners.tasks.inputs import Call


class PaddedAtTheEnd(nn.Conv2d):
    """Pads as TensorFlow does where the stride is 2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Centred(nn.Linear):
    """Does something else before and behind its product."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * F.linear(x - x.mean(-1, keepdim=True) / 2.0, self.weight, self.bias)


class InputsFirst(nn.Module):
    """As the ``Conv1D`` of GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.flatten(0, -2), self.weight)
        return flat.unflatten(0, x.shape[:-1])


class Squared(nn.Linear):
    """Multiplies with something that was computed from its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.square(), self.bias)


SHAPES = {1: (9,), 2: (5, 4), 3: (3, 4, 3)}
LAYERS = {
    "1-d": (lambda: nn.Conv1d(4, 3, 3, padding=1, dilation=2), (4, 9)),
    "3-d": (lambda: nn.Conv3d(4, 3, (3, 2, 1), stride=(1, 2, 1), padding=(1, 0, 0)), (4, 3, 4, 3)),
    "transposed 1-d": (lambda: nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), (4, 9)),
    "transposed 2-d": (
        lambda: nn.ConvTranspose2d(4, 3, 3, (2, 3), (1, 2), (1, 2), dilation=(2, 1)), (4, 5, 4)
    ),
    "transposed 3-d": (lambda: nn.ConvTranspose3d(4, 3, 2, stride=2, bias=False), (4, 2, 2, 3)),
    "padded in its forward": (lambda: PaddedAtTheEnd(4, 3, 3, stride=2, bias=False), (4, 6, 5)),
    "with more in its forward": (lambda: Centred(5, 3), (5,)),
    "inputs first": (lambda: InputsFirst(5, 3), (6, 5)),
}  # fmt: skip
GROUPED = {"transposed, grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, groups=2), (4, 9))}


def prepared(name: str) -> tuple[nn.Module, Tensor, LayerReconstruction, bool]:
    make, shape = {**LAYERS, **GROUPED}[name]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layer = make()
        x = torch.randn(12, *shape) + 0.3
    axis = -1 if layer.weight.dim() == 2 else 1
    x = x + 0.7 * x.roll(1, axis)  # correlated: there is something to repair
    moments = collect_statistics(layer, [x[:5], x[5:]], [""], positions=10**6)
    return layer, x, prepare_reconstruction(layer, moments, ridge=1e-12)[""], moments[""].adds_bias


def normal_equations(layer: nn.Module, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns the layer's Jacobian (outputs of all samples, weights) and its outputs."""
    weight = layer.weight.detach()
    bias = None if layer.bias is None else torch.zeros_like(layer.bias)

    def outputs(value: Tensor) -> Tensor:
        return functional_call(layer, {"weight": value, "bias": bias}, (x,)) / scale

    with torch.no_grad():
        units = torch.eye(weight.numel()).view(-1, *weight.shape)
        jacobian = torch.stack([outputs(unit) for unit in units], -1)
    return jacobian.double(), outputs(weight).detach().double()


def expected(layer: nn.Module, x: Tensor, stays: Tensor, fits_bias: bool) -> tuple[Tensor, Tensor]:
    """Returns weights and intercepts by least squares on what stays, one output at a time."""
    scale = 2.0 if isinstance(layer, Centred) else 1.0
    jacobian, wanted = normal_equations(layer, x, scale)
    axis = 1 if layer.weight.dim() > 2 else -1
    weights = torch.zeros(layer.weight.numel(), dtype=torch.float64)
    shifts = []
    for output in range(wanted.shape[axis]):
        rows = jacobian.select(axis - (axis < 0), output).flatten(0, -2)
        target = wanted.select(axis, output).flatten()
        used = (rows.abs().amax(0) > 0) & stays.flatten()
        design = rows[:, used]
        if fits_bias:
            design = torch.cat([design, torch.ones(len(design), 1, dtype=torch.float64)], 1)
        solved = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
        weights[used.nonzero()[:, 0]] = solved[: int(used.sum())]
        shifts.append(solved[-1])
    return weights.view(layer.weight.shape), torch.stack(shifts)


@pytest.mark.parametrize("name", LAYERS)
def test_a_cut_layer_is_the_least_squares_solution(name: str) -> None:
    layer, x, statistics, adds_bias = prepared(name)
    axis = int(statistics.form.inputs_first) ^ 1
    kept = torch.tensor([0, 2, 3])
    stays = torch.zeros_like(layer.weight, dtype=torch.bool).index_fill(axis, kept, True)
    has_bias = layer.bias is not None
    assert adds_bias or not has_bias
    weight, bias = statistics.solve(kept)
    solution, shift = expected(layer, x, stays, has_bias)
    torch.testing.assert_close(
        weight.double(), solution.index_select(axis, kept), atol=3e-5, rtol=0
    )
    assert (bias is None) == (not has_bias)
    if bias is not None:
        torch.testing.assert_close((bias - layer.bias).double(), shift, atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", [*LAYERS, *GROUPED])
def test_a_masked_layer_is_the_least_squares_solution(name: str) -> None:
    layer, x, statistics, _ = prepared(name)
    mask = Pattern.parse("unstructured").mask(layer.weight, layer.weight.numel() // 2)
    weight, _ = refit(statistics, mask, iterations=500, tolerance=0.0)
    solution, _ = expected(layer, x, mask, layer.bias is not None)
    torch.testing.assert_close(weight.double(), solution, atol=1e-4, rtol=0)


def test_a_computed_weight_has_no_statistics() -> None:
    assert collect_statistics(Squared(4, 3), [torch.randn(8, 4)], [""]) == {}


def test_an_intercept_goes_to_a_norm_only_behind_the_bare_product() -> None:
    layer = Centred(5, 3, bias=False)
    network = nn.Sequential(layer, nn.BatchNorm1d(3))
    moments = collect_statistics(network, [torch.randn(30, 5)], ["0"])
    assert not moments["0"].is_output
    assert prepare_reconstruction(network, moments, ["0"])["0"].bias is None


class Tokens(nn.Linear):
    """Takes a mask besides its tokens."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(x)


def test_padding_is_not_fitted() -> None:
    x, mask = torch.randn(12, 7, 5), torch.arange(7) < torch.randint(1, 8, (12, 1))
    call = Call((), {"x": torch.where(mask[:, :, None], x, 1e3), "attention_mask": mask.long()})
    found = collect_statistics(Tokens(5, 3), [call], [""])[""]
    real = x[mask].double()
    assert found.rows == len(real)
    torch.testing.assert_close(found.uncentred()[0], real.T @ real, rtol=1e-5, atol=1e-5)
    few = collect_statistics(Tokens(5, 3), [call], [""], positions=2)[""]
    assert few.rows == int(mask.sum(1).clamp(max=2).sum())

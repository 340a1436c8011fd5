"""SparseGPT as a repair: exact counts, patterns, less lost than by magnitudes, files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amc_compress.learners import WeightSparsification
from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.reconstruction import prepare_reconstruction
from amc_compress.learners.layers.masked import mask_of, masked_layers
from amc_compress.learners.sparsification import Pattern
from amc_compress.learners.sparsification.refit import relative_error
from amc_compress.learners.sparsification.sparsegpt import sparsegpt
from amc_compress.learners.testing.networks import EXAMPLE, Residual, make_data

LAYERS = {
    "convolution": (lambda: nn.Conv2d(8, 5, 3, padding=1, bias=False), (20, 8, 5, 5)),
    "grouped": (lambda: nn.Conv2d(8, 4, 3, padding=1, groups=2), (20, 8, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 2, stride=2), (20, 8, 5, 5)),
    "linear": (lambda: nn.Linear(160, 7), (400, 160)),
}


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("name", LAYERS)
def test_zeros_are_as_many_as_asked_for_and_cost_less_than_the_smallest_weights(name, pattern):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build()
    x = torch.randn(shape) * torch.linspace(0.2, 3.0, shape[1]).view(-1, *[1] * (len(shape) - 2))
    x += 0.8 * x.roll(1, 1)
    moments = collect_statistics(layer, [x], [""], positions=10**6)
    known, form = prepare_reconstruction(layer, moments)[""], Pattern.parse(pattern)
    weight = layer.weight.detach()
    stored = known.form.outputs_first(weight)
    for share in (0.5,) if form.m else (0.3, 0.5, 0.71):
        keep = round(share * weight.numel())
        level = sparsegpt(known, form, keep)
        mask = level["mask"]
        assert int(mask.sum()) == keep
        assert not level["weight"][~mask].any()
        assert mask.shape == weight.shape
        if form.m:  # two of four input channels at every kernel position
            lines = known.form.outputs_first(mask).movedim(1, -1).unflatten(-1, (-1, 4))
            assert (lines.sum(-1) == 2).all()
        magnitude = weight * known.form.stored(form.mask(stored, keep))
        assert relative_error(known, level["weight"]) < 0.95 * relative_error(known, magnitude)
        if layer.bias is not None:
            pruned = build()
            pruned.weight.data, pruned.bias.data = level["weight"], level["bias"]
            off = (layer(x) - pruned(x)).transpose(0, 1).flatten(1).mean(1)
            assert off.abs().max() < 1e-4


def test_the_learner_puts_plans_together_and_says_what_does_not_go_together():
    data = make_data(96, 0), make_data(64, 1)
    torch.manual_seed(0)
    network = Residual().eval()
    learner = WeightSparsification(network, EXAMPLE, *data, repair="sparsegpt")
    plan = learner.plan_for("uniform", 0.4)
    found = learner.compress(plan)
    kept = learner.kept_weights(plan)
    for name, layer in masked_layers(found).items():
        if name in kept:
            assert torch.equal(mask_of(layer), learner.fitted.mask(name, kept[name]))
            used = layer.weight.detach() * mask_of(layer)
            assert torch.equal(used, learner.fitted.solve(name, kept[name])[0])
    assert 0.0 <= learner.evaluate(plan) <= 1.0
    plain = WeightSparsification(network, EXAMPLE, *data)
    assert any(
        not torch.equal(plain.fitted.mask(name, n), learner.fitted.mask(name, n))
        for name, n in kept.items()
    )
    for wrong, message in (
        ({"pattern": "block4"}, "blocks have repair='least-squares'"),
        ({"proxy": "recalibration"}, "proxy with reconstruction"),
        ({}, ""),
    ):
        if wrong:
            with pytest.raises(ValueError, match=message):
                WeightSparsification(network, EXAMPLE, *data, repair="sparsegpt", **wrong)
    with pytest.raises(ValueError, match="repair"):
        WeightSparsification(network, EXAMPLE, *data, repair="other")

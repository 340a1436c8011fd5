"""Layers that are too wide for a repair are named, not passed over in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amc_compress.learners import ChannelPruning, UniformQuantization, WeightSparsification
from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.layers.wide_layers import MAX_COLUMNS, wide_layers, wide_layers_note
from amc_compress.learners.testing.networks import EXAMPLE, make_data


def network(width: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(width * 64, 4)
        )


@pytest.mark.parametrize(("width", "is_wide"), [(78, False), (79, True)])
def test_a_layer_without_moments_is_named(width: int, is_wide: bool) -> None:
    learner = ChannelPruning(network(width), EXAMPLE, make_data(64, 1), make_data(64, 2))
    assert (width * 64 > MAX_COLUMNS) == is_wide
    assert wide_layers(learner.graph) == ({"3": width * 64} if is_wide else {})
    found = collect_statistics(network(width), [EXAMPLE], ["0", "3"])
    assert ("3" not in found) == is_wide
    said = [note for note in learner.notes if "without a repair" in note]
    assert said == list(wide_layers_note(learner.graph))
    assert bool(said) == is_wide
    if is_wide:
        assert "3 (5,056)" in said[0]


def test_learners_say_it_where_they_repair() -> None:
    data = make_data(64, 1)
    sparse = WeightSparsification(network(79), EXAMPLE, data, make_data(64, 2))
    assert any("without a repair" in note for note in sparse.notes)
    quantized = UniformQuantization(network(79), EXAMPLE, data, make_data(64, 2))
    assert not any("without a repair" in note for note in quantized.notes)

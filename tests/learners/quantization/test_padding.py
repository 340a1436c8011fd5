"""What a network makes of padding counts in no statistic that quantizers are fitted by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners import UniformQuantization
from amc_compress.learners.tasks.inputs import counted_rows
from amc_env import CompressionPlan

_TOKENS, _PADDING = 6, 10
_WIDTH = 8


class _Encoder(nn.Module):
    """Embeds tokens; what it makes of padding is large."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, _WIDTH)
        self.up = nn.Linear(_WIDTH, 16)
        self.down = nn.Linear(16, _WIDTH)
        with torch.no_grad():
            self.table.weight[0] = 50.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids)
        hidden: Tensor = self.down(self.up(x).relu()) + x
        return hidden


def _batches(padding: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (64, _TOKENS), generator=generator)
    ids = torch.cat([ids, torch.zeros(64, padding, dtype=torch.int64)], 1)
    return [{"input_ids": x, "attention_mask": (x != 0).long()} for x in ids.split(16)]


def _learner(padding: int) -> UniformQuantization:
    torch.manual_seed(0)
    batches = _batches(padding)
    return UniformQuantization(
        _Encoder().eval(),
        batches[0],
        batches,
        batches,
        task="embedding",
        activation_bits=8,
        weight_bits=(3, 4, 8),
        first_last_bits=None,
        threads=1,
    )


def test_quantizers_do_not_depend_on_how_long_samples_are_padded() -> None:
    alone, padded = _learner(0), _learner(_PADDING)
    plan = CompressionPlan({d.key: d.choices[0] for d in alone.decisions})
    for key, curve in alone.layer_errors().items():
        np.testing.assert_allclose(padded.layer_errors()[key], curve, rtol=1e-4)
    ours, others = alone.compress(plan), padded.compress(plan)
    for (name, one), other in zip(
        ours.state_dict().items(), others.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4)])
def test_rows_of_tokens_are_those_that_the_mask_counts(shape: tuple[int, ...]) -> None:
    values = torch.arange(24.0).view(shape)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = torch.arange(24.0).view(6, 4)[[0, 1, 3]]
    assert counted_rows(values, mask).equal(expected)


def test_all_rows_count_without_tokens_or_without_anything_but_padding() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert len(counted_rows(torch.ones(2, 5, 4), mask)) == 10
    assert len(counted_rows(torch.ones(2, 4), mask)) == 2
    assert len(counted_rows(torch.ones(2, 3, 4), torch.zeros_like(mask))) == 6
    assert len(counted_rows(torch.ones(2, 3, 4), None)) == 6

"""Language models and texts that cannot be worked with: one sentence each, before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc_compress
from amc_env import CompressionError
from amc_env.errors import InfeasibleBudgetError, InputDataError

WORDS = 20
IDS = torch.randint(WORDS, (4, 6), generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """One block with a head that is the embedding; it returns a tuple, as with a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.words.weight
        self.norm = nn.LayerNorm(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.5, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.words(input_ids)
        hidden = None if attention_mask is None else attention_mask == 0
        y = self.block(x, src_key_padding_mask=hidden)
        return self.head(self.norm(y)), (y,)


def with_weight(value: float) -> nn.Module:
    net = Reader()
    net.block.linear1.weight.data[0, 0] = value
    return net


def batches(ids: Tensor = IDS, **more: Tensor) -> list[Any]:
    return [{"input_ids": ids, **more}]


def compressed(network: nn.Module, train: Any, **options: Any) -> Any:
    given = {"budget": {"macs": 0.8}, "task": "language-modelling", "agent": "random"} | options
    return amc_compress.compress(
        network, train, train, evaluations=1, round_to=1, quiet=True, proxy="none", **given
    )


BAD: dict[str, tuple[Any, Any, str]] = {
    "nothing": (Reader, [], "at least one batch in train"),
    "one token": (Reader, batches(IDS[:, :1]), "at least one token to measure on"),
    "unknown words": (Reader, batches(IDS + WORDS), "cannot read the samples"),
    "numbers": (Reader, batches(IDS.float()), "cannot read the samples"),
    "other labels": (Reader, batches(labels=IDS * 0 + 1), "Expected the token ids as labels"),
    "NaN": (lambda: with_weight(float("nan")), batches(), "'block.linear1.weight' holds NaN"),
    "infinite": (lambda: with_weight(float("inf")), batches(), "holds infinite numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_worked_with_gets_one_sentence(name: str) -> None:
    make, train, sentence = BAD[name]
    with pytest.raises(InputDataError) as caught:
        compressed(make(), train)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message


def test_a_budget_below_one_head_and_one_unit_of_each_layer_is_named() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"macs=0\.001.*reachable on this grid: macs"):
        compressed(Reader(), batches(), budget={"macs": 0.001})
    assert issubclass(InfeasibleBudgetError, CompressionError)


def test_a_network_in_training_mode_is_scored_without_dropout_and_stays_so() -> None:
    net = Reader().train()
    result = compressed(net, batches(attention_mask=torch.ones_like(IDS)))
    assert net.training
    small = result.network
    assert not small.training
    assert small.head.weight is small.words.weight
    with torch.no_grad():
        assert torch.equal(small(IDS)[0], small(IDS)[0])

"""What networks are called with: structure, samples, joining, and the types of a network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.conform import conform, plain_targets, settled
from amc_compress.learners.tasks.inputs import (
    Call,
    Split,
    ask,
    count,
    form,
    joined,
    merged,
    moved,
    pieces,
    rows,
    to_inputs,
)
from amc_env.errors import InputDataError


def values(size: int, length: int = 3) -> list[Any]:
    """Batches of every structure."""
    x = torch.arange(size * length).reshape(size, length).float()
    ids = x.long()
    return [
        x,
        Call((x, ids)),
        Call((), {"ids": ids, "mask": x > 1, "scale": 2.0, "nothing": None}),
        Call((x,), {"nested": ({"a": ids}, x)}),
        [x[i] for i in range(size)],
        {"boxes": [torch.zeros(i, 4) for i in range(size)], "labels": ids},
    ]


@pytest.mark.parametrize("place", range(6))
def test_pieces_of_a_batch_joined_are_the_batch(place: int) -> None:
    whole = values(7)[place]
    parts = pieces(whole, 3)
    assert [count(part) for part in parts] == [3, 3, 1]
    again = joined(parts)
    assert form(again) == form(whole)
    assert repr(again) == repr(whole)


@pytest.mark.parametrize("place", range(6))
def test_rows_by_places_by_mask_and_by_slice_are_the_same(place: int) -> None:
    whole = values(5)[place]
    mask = torch.tensor([False, True, True, False, False])
    found = [rows(whole, slice(1, 3)), rows(whole, torch.tensor([1, 2])), rows(whole, mask)]
    assert repr(found[0]) == repr(found[1]) == repr(found[2])
    assert count(moved(found[0], "cpu")) == 2


def test_only_batches_of_one_form_are_joined() -> None:
    batches = [Split(values(2, n)[2], torch.zeros(2)) for n in (3, 3, 4, 3)]
    assert [count(batch) for batch in merged(batches)] == [4, 2, 2]


class Both(nn.Module):
    """Takes one argument by position, one by name."""

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return x * scale


def test_a_network_is_called_with_its_arguments() -> None:
    x, scale = torch.randn(2, 3), torch.randn(2, 1)
    assert torch.equal(ask(Both(), Call((x,), {"scale": scale})), x * scale)
    assert torch.equal(ask(nn.Identity(), x), x)


@pytest.mark.parametrize("example", [[], {}, "a file", (1, 2)])
def test_what_holds_no_tensor_is_no_input(example: object) -> None:
    with pytest.raises(InputDataError, match="Expected inputs as a tensor"):
        to_inputs(example)


def test_integers_become_floats_only_for_networks_that_need_floats() -> None:
    ids = torch.randint(9, (4, 6))
    assert settled(nn.Embedding(9, 2), ids, "cpu").dtype == torch.int64  # type: ignore[union-attr]
    assert settled(nn.Linear(6, 2), ids, "cpu").dtype == torch.float32  # type: ignore[union-attr]
    pixels = torch.zeros(1, 6, dtype=torch.uint8)
    assert settled(nn.Linear(6, 2), pixels, "cpu").dtype == torch.float32  # type: ignore[union-attr]


def test_a_network_is_left_in_its_mode() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).train()
    network[0].eval()
    settled(network, torch.randint(9, (4, 6)), "cpu")
    assert (network.training, network[0].training, network[1].training) == (True, False, True)
    assert network[1].num_batches_tracked == 0


def test_batches_get_the_types_of_the_example() -> None:
    example = Call((torch.zeros(1, 3),), {"ids": torch.zeros(1, 3, dtype=torch.int64)})
    given = Call((torch.ones(2, 3).double(),), {"ids": torch.ones(2, 5, dtype=torch.int32)})
    found = conform(given, example, "validation ")
    assert isinstance(found, Call)
    assert found.args[0].dtype == torch.float32
    assert found.kwargs["ids"].dtype == torch.int64
    targets = plain_targets({"a": torch.ones(2).half(), "b": torch.ones(2, dtype=torch.uint8)})
    assert (targets["a"].dtype, targets["b"].dtype) == (torch.float32, torch.int64)


ONE = Call((), {"ids": torch.zeros(1, 3, dtype=torch.int64)})


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(2, 3, dtype=torch.int64),
        Call((), {"ids": torch.zeros(2, 3, 1, dtype=torch.int64)}),
        Call((), {"tokens": torch.zeros(2, 3, dtype=torch.int64)}),
        Call((torch.zeros(2, 3, dtype=torch.int64),)),
        Call((), {**ONE.kwargs, "mask": torch.ones(1, 3)}),
    ],
)
def test_a_batch_of_another_structure_is_named(given: Any) -> None:
    with pytest.raises(InputDataError, match="Expected validation batches of the same structure"):
        conform(given, ONE, "validation ")


def test_numbers_must_be_finite_and_images_of_one_size() -> None:
    example = torch.zeros(1, 3, 4, 4)
    with pytest.raises(InputDataError, match="NaN or infinite pixels"):
        conform(example / 0, example, "training ")
    with pytest.raises(InputDataError, match=r"shape \(3, 4, 4\).*got \(3, 5, 5\)"):
        conform(torch.zeros(1, 3, 5, 5), example, "training ")
    other = Call((torch.full((2, 3), float("inf")),))
    with pytest.raises(InputDataError, match="NaN or infinite numbers"):
        conform(other, Call((torch.zeros(1, 3),)), "training ")

"""Only the validation images of an episode are held, whatever their loader; the rest is re-read."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.selection import quick
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from amc_compress.learners import (
    ChannelPruning,
    CodebookQuantization,
    UniformQuantization,
    WeightSparsification,
    joint_compression,
)
from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.testing.networks import EXAMPLE, accuracy_of, make_data, make_model
from amc_env import CompressionEnv, CompressionPlan
from amc_env.errors import InputDataError

CHANNELS_LAST = torch.channels_last
MAKE: dict[str, Any] = {
    "channels": ChannelPruning,
    "uniform": UniformQuantization,
    "codebook": CodebookQuantization,
    "density": WeightSparsification,
    "joint": joint_compression,
}


def smallest(learner: Any) -> CompressionPlan:
    return CompressionPlan({d.key: d.choices[0] for d in learner.decisions})


class OnDisk(Dataset[tuple[Tensor, int]]):
    """Images made when they are asked for, as those of files are."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 8, 8, generator=generator), index % 4


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """The same without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in make_data(200, 3):
            yield from zip(x, y, strict=True)


class Shuffled:
    """Batches in an order that no seed decides."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches
        self.random = random.Random(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.random.sample(self.batches, len(self.batches)))


def bytes_held(value: object) -> int:
    """Bytes of all tensors that an object leads to, each memory counted once and whole."""
    found: dict[int, int] = {}

    class Tensors(pickle.Pickler):
        def reducer_override(self, item: object) -> Any:
            if isinstance(item, Tensor):
                storage = item.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
            return NotImplemented

    Tensors(io.BytesIO()).dump(value)
    return sum(found.values())


@pytest.mark.parametrize("kind", quick(MAKE, "channels", "uniform"))
def test_what_is_held_does_not_grow_with_the_images_that_no_episode_uses(kind: str) -> None:
    model = make_model("plain")
    learners = [
        MAKE[kind](
            model, EXAMPLE, make_data(32, 2), DataLoader(OnDisk(n), 32), n_validation=16,
            n_calibration=32, n_recalibration=32,
        )
        for n in (64, 320)
    ]  # fmt: skip
    few, many = map(bytes_held, learners)
    # A label of 8 bytes, against 768 of an image; costs are measured, and may differ by a bit.
    assert abs(many - few) < 16 * (320 - 64)


@pytest.fixture(scope="module")
def prepared() -> tuple[Any, ...]:
    data = make_data(200, 3)
    model = make_model("residual").eval()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(7))[:60]
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    return model, data, accuracy_of(model, [(x[order], y[order])]), accuracy_of(model, data)


SOURCES: dict[str, Any] = {
    "a list": lambda data: data,
    "uint8 or float64 would do": lambda data: [(x.double(), y.int()) for x, y in data],
    "a generator": lambda data: (batch for batch in data),
    "a loader": lambda data: DataLoader([p for x, y in data for p in zip(x, y, strict=True)], 7),
    "a loader without a length": lambda data: DataLoader(Stream(), 30),
    "batches of any kind": lambda data: type("Batches", (), {"__iter__": lambda _: iter(data)})(),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_images_are_evaluated_whatever_yields_them(
    source: str, prepared: tuple[Any, ...]
) -> None:
    model, data, of_episode, of_all = prepared
    found = HeldOut(SOURCES[source](data), EXAMPLE, n_validation=60, seed=7)
    layout = torch.contiguous_format
    found.settle([torch.float32], device=torch.device("cpu"), fused=False, layout=layout)
    assert (found.n_samples, found.n_held) == (200, 60)
    assert found.score(model, torch.float32) == of_episode
    for _ in range(2):
        assert found.score(model, torch.float32, full=True) == of_all
    # In a type that was not announced: read again.
    assert found.score(model, torch.bfloat16) > 0.5
    assert accuracy_of(model, list(found.batches)) == of_all


def test_a_loader_that_drops_the_last_batch_is_read_once(prepared: tuple[Any, ...]) -> None:
    pairs = [pair for x, y in prepared[1] for pair in zip(x, y, strict=True)]
    found = HeldOut(DataLoader(pairs, 32, drop_last=True), EXAMPLE, n_validation=None, seed=0)
    assert (found.batches.expected(), found.n_samples, found.n_held) == (192, 192, 192)


def test_batches_in_an_order_that_no_seed_decides_are_kept(prepared: tuple[Any, ...]) -> None:
    model, data, _, of_all = prepared
    found = HeldOut(Shuffled(data), EXAMPLE, n_validation=60, seed=7)
    found.settle(
        [torch.float32], device=torch.device("cpu"), fused=False, layout=torch.contiguous_format
    )
    assert found.score(model, torch.float32, full=True) == of_all


def test_a_loader_that_yields_other_images_later_is_noticed(prepared: tuple[Any, ...]) -> None:
    model, data, _, _ = prepared
    batches = list(data)
    learner = ChannelPruning(model, EXAMPLE, make_data(96, 2), batches, n_validation=60)
    for changed in (batches[:-1], batches[::-1], [*batches, batches[0]]):
        batches[:] = changed
        with pytest.raises(InputDataError, match="same validation images in every pass"):
            learner.evaluate_full(smallest(learner))
        batches[:] = data


def test_labels_and_pixels_of_all_images_are_checked(prepared: tuple[Any, ...]) -> None:
    model, data, _, _ = prepared
    x, y = data[-1]
    for last, message in (((x, y + 4), "labels from 0 to 3"), ((x / 0, y), "finite")):
        with pytest.raises(InputDataError, match=message):
            ChannelPruning(model, EXAMPLE, make_data(96, 2), [*data[:-1], last], n_validation=8)


def test_a_loader_that_does_not_pickle_is_left_out(prepared: tuple[Any, ...]) -> None:
    model, data, _, _ = prepared
    source = SOURCES["batches of any kind"](data)
    learner = ChannelPruning(model, EXAMPLE, make_data(96, 2), source, n_validation=60)
    twin = pickle.loads(pickle.dumps(learner))
    plan = smallest(learner)
    assert twin.evaluate(plan) == learner.evaluate(plan)
    with pytest.raises(InputDataError, match="validation=loader"):
        twin.evaluate_full(plan)
    copied = copy.deepcopy(learner)
    assert copied.evaluate_full(plan) == learner.evaluate_full(plan)


def test_a_copy_of_an_environment_shares_its_learner(prepared: tuple[Any, ...]) -> None:
    model, data, _, _ = prepared
    env = CompressionEnv(ChannelPruning(model, EXAMPLE, make_data(96, 2), data), "macs=0.5")
    env.action_space.seed(0)
    env.reset()
    env.step(env.action_space.sample())
    twin = copy.deepcopy(env)
    assert twin.learner is env.learner
    action = env.action_space.sample()
    first, second = env.step(action), twin.step(action)
    assert (first[0] == second[0]).all()
    assert first[1:] == second[1:]
    env.reset()
    assert (twin.step(action)[0] != env.step(action)[0]).any()


def test_the_first_samples_are_scored_alone_and_besides_the_others() -> None:
    data = make_data(130, 3)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    held = HeldOut(data, EXAMPLE, n_validation=None, seed=0)
    held.settle([torch.float32], device=torch.device("cpu"), fused=False, layout=CHANNELS_LAST)
    network = make_model("residual").eval()
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))[:70]
    first = accuracy_of(network, [(images[order], labels[order])])
    whole = held.score(network, torch.float32)
    assert held.both_scores(network, torch.float32, 70) == (whole, pytest.approx(first))
    assert held.first_score(network, torch.float32, 70) == pytest.approx(first)
    assert held.both_scores(network, torch.float32, None) == (whole, whole)

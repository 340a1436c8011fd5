"""Learners evaluate, compress and fine-tune for every task; mistakes in data are said at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support import tasks as small
from support.selection import quick

from amc_compress.learners import ChannelPruning, TrainingConfig, evaluate, make_task, train
from amc_env.errors import InputDataError
from amc_env.plan import CompressionPlan


def of_images(targets):
    return lambda n, seed: (small.images(n, seed), targets(n, seed))


def tokens(n, seed):
    return small.whole(small.VOCABULARY, n, 6, seed=seed)


TASKS: dict[str, tuple[Any, Any]] = {
    "multilabel": (partial(small.vectors, 5), of_images(lambda n, s: small.whole(2, n, 5, seed=s))),
    "regression": (
        partial(small.vectors, 1),
        of_images(lambda n, s: small.images(n, s)[:, 0, 0, 0]),
    ),
    "segmentation": (
        partial(small.pixels, 4),
        of_images(lambda n, s: small.whole(4, n, 8, 8, seed=s).to(torch.uint8)),
    ),
    "detection": (small.Detector, of_images(small.boxes_of)),
    "language-modelling": (partial(small.Tokens, small.VOCABULARY), tokens),
    "token-classification": (
        partial(small.Tokens, 5),
        lambda n, s: (tokens(n, s), small.whole(5, n, 6, seed=s)),
    ),
    "token-distribution": (partial(small.Tokens, small.VOCABULARY), tokens),
    "embedding": (partial(small.vectors, 5), small.images),
    "agreement": (partial(small.vectors, 5), lambda n, s: [small.images(n, s)]),
}


def data(name, sizes=(6, 6, 5), seed=0):
    make = TASKS[name][1]
    return [make(size, seed + k) for k, size in enumerate(sizes)]


def learner_of(name, *, calibration=None, validation=None, **options):
    network = small.seeded(TASKS[name][0], 0).eval()
    task = make_task(name)
    return ChannelPruning(
        network,
        task.split(data(name)[0])[0],
        data(name) if calibration is None else calibration,
        data(name, seed=7) if validation is None else validation,
        task=task,
        round_to=1,
        **options,
    )


@pytest.mark.parametrize("name", quick(TASKS, "detection", "language-modelling"))
def test_a_learner_is_prepared_evaluates_and_finetunes(name):
    learner = learner_of(name)
    whole = CompressionPlan.full(learner.decisions)
    assert learner.task.name == name
    assert learner.evaluate(whole) == pytest.approx(learner.original_score, rel=1e-4)
    best = learner.task.best_score
    assert best is None or learner.original_score <= best + 1e-4
    smallest = CompressionPlan({d.key: d.choices[0] for d in learner.decisions})
    network = learner.compress(smallest)
    found = evaluate(network, data(name, seed=7), task=learner.task)
    assert learner.evaluate(smallest) == pytest.approx(found, rel=1e-3, abs=1e-3)
    config = TrainingConfig(epochs=1, learning_rate=0.01)
    result = learner.finetune(network, data(name), config=config)
    assert result.best_score == pytest.approx(
        evaluate(network, data(name, seed=7), task=learner.task), rel=1e-4, abs=1e-4
    )


@pytest.mark.parametrize(
    "name", ["regression", "segmentation", "detection", "token-classification"]
)
def test_targets_missing_in_validation_only_are_said(name):
    missing = [inputs for inputs, _ in data(name)]
    with pytest.raises(InputDataError, match=r"validation .*for the task.*'agreement'"):
        learner_of(name, validation=missing)
    network = small.seeded(TASKS[name][0], 0)
    with pytest.raises(InputDataError, match=r"validation .*for the task.*'agreement'"):
        train(network, data(name), missing, TrainingConfig(epochs=1), task=name)


def test_a_batch_without_boxes_is_trained_and_evaluated_on():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    batches = data("detection")
    batches[1] = (batches[1][0], [empty] * len(batches[1][0]))
    learner = learner_of("detection", calibration=batches, validation=batches)
    network = small.seeded(small.Detector, 0)
    result = train(network, batches, batches, TrainingConfig(epochs=1), task="detection")
    assert 0.0 <= result.best_score < 1.0
    assert learner.original_score == pytest.approx(
        evaluate(small.seeded(small.Detector, 0), batches, task="detection"), abs=1e-6
    )


def test_masks_of_another_size_are_said():
    wrong = [(images, masks[:, ::2, ::2]) for images, masks in data("segmentation")]
    message = r"size of the network's logits, \[\d, 8, 8\].*got \[\d, 4, 4\]"
    with pytest.raises(InputDataError, match=message):
        learner_of("segmentation", calibration=wrong)
    with pytest.raises(InputDataError, match=message):
        evaluate(small.seeded(TASKS["segmentation"][0], 0), wrong, task="segmentation")


@pytest.mark.parametrize("name", ["language-modelling", "token-classification"])
def test_ids_beyond_the_vocabulary_are_said_for_each_loader(name):
    beyond = data(name)
    ids = beyond[2] if name == "language-modelling" else beyond[2][0]
    ids[0, 0] = 99
    message = "{} token ids from 0 to 10, the rows of the embedding 'embedding', got 99"
    with pytest.raises(InputDataError, match=message.format("calibration")):
        learner_of(name, calibration=beyond)
    with pytest.raises(InputDataError, match=message.format("validation")):
        learner_of(name, validation=beyond)
    network = small.seeded(TASKS[name][0], 0)
    with pytest.raises(InputDataError, match=message.format("training")):
        train(network, beyond, data(name), TrainingConfig(epochs=1), task=name)


def test_a_loss_that_ignores_the_outputs_stops_training_at_once():
    class Constant(type(make_task("regression"))):
        def loss(self, outputs, targets):
            return targets.square().mean()

    network = small.seeded(TASKS["regression"][0], 0)
    with pytest.raises(InputDataError, match="the loss of task 'regression' to depend"):
        train(network, data("regression"), data("regression"), TrainingConfig(epochs=1),
              task=Constant())  # fmt: skip


def test_outputs_in_another_order_are_said_when_a_learner_is_prepared():
    class Sorted(type(small.vectors(1))):
        def forward(self, images):
            return super().forward(images[images.sum((1, 2, 3)).argsort()])

    network = Sorted(*small.seeded(TASKS["regression"][0], 0)).eval()
    batches = data("regression")
    with pytest.raises(InputDataError, match="the samples of a batch in their order"):
        ChannelPruning(network, batches[0][0], batches, batches, task="regression")

"""Each ready-made task, and one with a metric and a loss of the user's own, keep the contract."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support import tasks as small
from torch import nn
from torch.nn import functional

from amc_compress.learners import make_task
from amc_compress.learners.testing import TaskContract


class TestClassification(TaskContract):
    def make(self):
        return make_task("classification")

    def network(self, seed=0):
        return small.seeded(partial(small.vectors, 7), seed)

    def batch(self, samples, seed):
        return small.images(samples, seed), small.whole(7, samples, seed=seed)


class TestMultilabel(TestClassification):
    def make(self):
        return make_task("multilabel")

    def batch(self, samples, seed):
        labels = small.whole(2, samples, 7, seed=seed)
        labels[0, 0] = 1
        return small.images(samples, seed), labels.float()


@pytest.mark.slow
class TestBinary(TestMultilabel):
    def network(self, seed=0):
        return small.seeded(partial(small.vectors, 1), seed)

    def batch(self, samples, seed):
        labels = small.whole(2, samples, seed=seed)
        labels[0] = 1
        return small.images(samples, seed), labels


class TestRegression(TestClassification):
    def make(self):
        return make_task("regression")

    def batch(self, samples, seed):
        return small.images(samples, seed), small.images(samples, seed + 1).flatten(1)[:, :7]


class TestSegmentation(TestClassification):
    def make(self):
        return make_task("segmentation")

    def network(self, seed=0):
        return small.seeded(partial(small.pixels, 4), seed)

    def batch(self, samples, seed):
        masks = small.whole(4, samples, small.SIDE, small.SIDE, seed=seed)
        masks[:, 0] = 255
        return small.images(samples, seed), masks.to(torch.uint8)


@pytest.mark.slow
class TestSegmentationOfOneClass(TestSegmentation):
    def network(self, seed=0):
        return small.seeded(partial(small.pixels, 1), seed)

    def batch(self, samples, seed):
        return small.images(samples, seed), small.whole(2, samples, 1, 8, 8, seed=seed)


class TestDetection(TaskContract):
    def make(self):
        return make_task("detection")

    def network(self, seed=0):
        return small.seeded(small.Detector, seed)

    def batch(self, samples, seed):
        return small.images(samples, seed), small.boxes_of(samples, seed)


@pytest.mark.slow
class TestDetectionInLists(TestDetection):
    def batch(self, samples, seed):
        return tuple(small.images(samples, seed)), tuple(small.boxes_of(samples, seed))


class TestLanguageModelling(TaskContract):
    def make(self):
        return make_task("language-modelling")

    def network(self, seed=0):
        return small.seeded(partial(small.Tokens, small.VOCABULARY), seed)

    def batch(self, samples, seed):
        ids = small.whole(small.VOCABULARY, samples, 6, seed=seed)
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


class TestTokenClassification(TestLanguageModelling):
    def make(self):
        return make_task("token-classification")

    def network(self, seed=0):
        return small.seeded(partial(small.Tokens, 5), seed)

    def batch(self, samples, seed):
        return super().batch(samples, seed) | {"labels": small.whole(5, samples, 6, seed=seed)}


class TestEmbedding(TestLanguageModelling):
    def make(self):
        return make_task("embedding")

    def network(self, seed=0):
        return small.seeded(partial(small.Tokens, 9, key="last_hidden_state"), seed)

    def batch(self, samples, seed):
        found = super().batch(samples, seed)
        found["attention_mask"][0, 4:] = 0
        return found


class TestTokenDistribution(TestLanguageModelling):
    def make(self):
        return make_task("token-distribution")


class TestAgreementOfLogits(TaskContract):
    def make(self):
        return make_task("agreement")

    def network(self, seed=0):
        return small.seeded(partial(small.vectors, 7), seed)

    def batch(self, samples, seed):
        return small.images(samples, seed)


@pytest.mark.slow
class TestAgreementOfTokens(TestLanguageModelling):
    def make(self):
        return make_task("agreement")


@pytest.mark.slow
class TestAgreementOfNumbers(TestAgreementOfLogits):
    def network(self, seed=0):
        return small.seeded(partial(small.vectors, 1), seed)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = small.vectors(6), nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, x):
        shared = self.body(x).relu()
        return self.first(shared), self.second(shared)


def _both_heads(outputs, targets):
    return sum(functional.cross_entropy(*pair) for pair in zip(outputs, targets, strict=True))


def _first_head(outputs, targets):
    return (outputs[0].argmax(1) == targets[0]).double().mean()


class TestCustom(TaskContract):
    def make(self):
        return make_task("custom", metric=_first_head, loss=_both_heads, higher_is_better=True)

    def network(self, seed=0):
        return small.seeded(TwoHeads, seed)

    def batch(self, samples, seed):
        labels = tuple(small.whole(n, samples, seed=seed + n) for n in (3, 4))
        return small.images(samples, seed), labels


def _huber(outputs, targets):
    return functional.smooth_l1_loss(outputs, targets)


def _worst(outputs, targets):
    return (outputs - targets).abs().max()


_worst.higher_is_better = False


class TestOwn(TestRegression):
    def make(self):
        return make_task("regression", metric=_worst, loss=_huber)


@pytest.mark.slow
class TestOffered(TestRegression):
    def make(self):
        return make_task("regression", metric="mae", loss=nn.L1Loss)
